"""Rules that raise an exception, and two for one operation."""

import logging

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import compress
from norton_plugin.channels import operations, register_rule
from norton_plugin.recipe import Pruning, Recipe

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).roll(1, 2).roll(2, 3))


@pytest.fixture
def broken(monkeypatch):
    """The rule of ``roll`` raises, each time something else."""

    def fail(trace, call):
        raise IndexError(f"no such dimension: {call.args[2]}")

    monkeypatch.setitem(operations._OPERATIONS, "roll", operations.Operation("roll", fail))


@pytest.mark.usefixtures("broken", "failing_rules_tolerated")
def test_a_rule_that_fails_says_so_and_breaks_nothing(caplog):
    torch.manual_seed(0)
    with caplog.at_level(logging.DEBUG, "norton_plugin"):
        _, report = compress(Net().eval(), IMAGE, Recipe(pruning=Pruning(keep=0.5)))
    text = "the rule for roll failed (IndexError: no such dimension: [2])"
    assert {entry.name: (entry.code, entry.reason) for entry in report.pruning.skipped if entry.name != "head"} == {
        "second": ("rule-failed", text)
    }
    assert [group.root for group in report.pruning.groups] == ["first"] and report.status == "partial"
    assert [cause.text for cause in report.pruning.rule_failures] == [text]
    assert report.to_dict()["pruning"]["rule_failures"] == [text]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and text in warnings[0].getMessage()
    [trace] = [record for record in caplog.records if record.exc_info]
    assert trace.levelno == logging.DEBUG and trace.exc_info[0] is IndexError


@pytest.mark.usefixtures("broken")
def test_in_the_tests_it_is_an_error():
    with pytest.raises(pytest.fail.Exception, match="the rule for roll failed"):
        compress(Net().eval(), IMAGE, Recipe(pruning=Pruning(keep=0.5)))


def test_a_rule_that_declines_is_told_from_none():
    class Strided(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x))
            return self.head(x.as_strided((1, 16, 4, 4), x.stride()))

    _, report = compress(Strided().eval(), IMAGE, Recipe(pruning=Pruning(keep=0.5)))
    [entry] = [entry for entry in report.pruning.skipped if entry.name == "second"]
    assert (entry.code, entry.reason) == ("rule-declined", "the rule for as_strided does not cover this use of it")
    assert report.pruning.rule_failures == ()


def test_two_rules_for_one_operation_are_refused():
    known = dict(operations._OPERATIONS)
    with pytest.raises(ValueError, match=r"roll has the rule norton_plugin\..*\.roll already; .*again must not"):

        @register_rule("not_an_operation_yet", "roll")
        def again(trace, call):
            return None

    assert known == operations._OPERATIONS
