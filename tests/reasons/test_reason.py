"""The enum of reasons: codes, fields, and that nothing depends on words."""

import ast
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import norton_plugin
from norton_plugin import compress
from norton_plugin.errors import TracingError
from norton_plugin.reasons import Reason
from norton_plugin.recipe import Decomposition, Pruning, Recipe, Scope

PACKAGE = Path(norton_plugin.__file__).parent
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
RANK_ONE = Decomposition(rank=1, sweeps=3, restarts=1)


def test_codes_are_unique_and_kebab_case():
    codes = [reason.code for reason in Reason]
    assert len(set(codes)) == len(codes) == len(Reason.__members__)  # members of equal value would be one
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code) for code in codes)


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_every_reason_says_what_it_has_to(reason):
    for text in (reason.template, reason.advice, reason.example):
        assert text and "\n" not in text and not text.endswith(".")
    values = dict.fromkeys(reason.fields, 7.0)
    cause = reason.because(**values)
    assert (cause.code, cause.blocks, cause.advice) == (reason.code, reason.blocks, reason.advice)
    assert str(cause) == cause.text == reason.template.format(**values)
    assert cause == reason.because(**values) and len({cause, reason.because(**values)}) == 1
    with pytest.raises(TypeError, match=rf"the reason {reason.code} has the fields"):
        reason.because(**values, nonsense=1)
    if values:
        with pytest.raises(TypeError, match=rf"the reason {reason.code} has the fields .*; got \[\]"):
            reason.because()


def test_details_part_causes():
    one, other = (Reason.NO_RULE.because(operation=name) for name in ("sort", "topk"))
    assert one != other and one.text == "no rule follows channels through sort"
    nested = Reason.ROUNDED_ANYWAY.because(other=one, size=4, keep=0.7, round_to=8)
    assert (
        nested.text == "no rule follows channels through sort; and 4 channels at keep 0.7 come to 4 in multiples of 8"
    )
    assert one.blocks and not nested.blocks


def test_every_reason_is_given_somewhere():
    used = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "reasons":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason":
                used.add(node.attr)
    assert used == set(Reason.__members__)


def test_an_error_of_the_trace_carries_its_cause():
    error = TracingError(Reason.TRACE_TIME.because())
    assert str(error) == Reason.TRACE_TIME.template
    assert pickle.loads(pickle.dumps(error)).cause == error.cause


class Sorted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values


def net(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), middle, nn.Conv2d(16, 4, 3)).eval()


def outcome(middle: nn.Module, **options: object) -> tuple[str, dict[str, str]]:
    recipe = Recipe(decomposition=RANK_ONE, pruning=Pruning(keep=0.5), **options)
    report = compress(net(middle), IMAGE, recipe)[1]
    return report.status, {entry.name: entry.code for entry in report.pruning.skipped}


def test_no_status_depends_on_words(monkeypatch):
    def outcomes():
        return [
            outcome(nn.ReLU()),
            outcome(Sorted()),
            outcome(nn.ReLU(), scope=Scope(exclude=("1",))),
            outcome(Sorted(), scope=Scope(include=("0", "3"))),
            outcome(nn.Sequential(nn.Conv2d(16, 6, 1), nn.Conv2d(6, 16, 1))),
        ]

    before = outcomes()
    assert before == [
        ("full", {"3": "model-output"}),
        ("partial", {"1": "taken-over-channels", "3": "model-output"}),
        ("full", {"1": "member-outside-scope", "3": "model-output"}),
        ("partial", {"1": "taken-over-channels", "3": "model-output"}),
        ("full", {"2.0": "rounded", "3": "model-output"}),
    ]
    old = {reason: reason.template for reason in Reason}
    reworded = property(lambda reason: f"reworded {reason.name.lower()[::-1]}")
    monkeypatch.setattr(Reason, "template", reworded)
    assert all(reason.template != old[reason] for reason in Reason)
    assert outcomes() == before
    alone = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    report = compress(alone, IMAGE, Recipe(decomposition=RANK_ONE, pruning=Pruning(keep=0.5)))[1]
    assert report.status == "decompose-only" and report.skipped[-1].reason == "reworded tuptuo_ledom"
