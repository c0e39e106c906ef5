"""What the status and the reasons say: outputs are outputs, hooks have names, a rank is not a rounding."""

import warnings

import pytest
import torch
from torch import nn

from norton_plugin import Recipe, compress

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Ending(nn.Module):
    """A classifier whose last step is given."""

    def __init__(self, end):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.end = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 10, 3, padding=1), end

    def forward(self, image):
        return self.end(self.body(torch.relu(self.stem(image))))


def softmax(x):
    return x.mean((2, 3)).softmax(1)


def log_softmax(x):
    return x.mean((2, 3)).log_softmax(1)


def distances_of_bins(x):
    """Two sides of a box, each the mean of five bins (DFL of the YOLO family), beside the raw maps."""
    share = x.flatten(2).view(len(x), 2, 5, -1).softmax(2)
    return (share * torch.arange(5.0).view(1, 1, 5, 1)).sum(2), x


def attention_among_channels_only(x):
    """The softmax is taken inside: no output has these channels."""
    return (x.mean((2, 3)).softmax(1) @ torch.ones(10, 4)).relu()


def report_of(model, **pruning):
    recipe = {"pruning": {"keep": 0.5, "round_to": 1, **pruning}}
    return compress(model.eval(), IMAGE, Recipe.from_dict(recipe)).report


@pytest.mark.parametrize("end", [softmax, log_softmax, distances_of_bins])
def test_channels_that_are_outputs_anyway_do_not_count_against_the_status(end):
    report = report_of(Ending(end))
    assert report.status == "full"
    assert [(entry.name, entry.code) for entry in report.skipped] == [("body", "model-output")]


def test_a_softmax_within_the_model_still_counts():
    report = report_of(Ending(attention_among_channels_only))
    assert report.status == "partial"
    assert [(entry.name, entry.code) for entry in report.skipped] == [("body", "taken-over-channels")]


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_hooks_that_compute_a_weight_are_named(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        body = getattr(nn.utils, name)(nn.Conv2d(16, 16, 3))
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), body, nn.Conv2d(16, 4, 1)).eval()
        report = compress(
            model, IMAGE, Recipe.from_dict({"decomposition": {"rank": 1}, "pruning": {"keep": 0.5}})
        ).report
    words = f"a hook of torch.nn.utils.{name} computes its weight; torch.nn.utils.remove_{name} ends that"
    for step in (report.decomposition, report.pruning):
        assert {entry.name: (entry.code, entry.reason) for entry in step.skipped}["2"] == ("parametrized", words)


def test_global_ranking_does_not_speak_of_rounding():
    """Without multiples there is no rounding: a layer keeps all its channels because others rank lower."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 10, 3), nn.ReLU(), nn.Conv2d(10, 4, 1))
    with torch.no_grad():  # the filters of one layer are nearly alike, those of the other are not
        model[0].weight.copy_(model[0].weight[:1] + 1e-3 * torch.randn_like(model[0].weight))
    report = report_of(model, keep=0.7, global_ranking=True)
    assert [group.root for group in report.pruning.groups] == ["0"]
    (entry,) = (each for each in report.pruning.skipped if each.name == "2")
    assert entry.code == "ranked-higher" and "round" not in entry.reason and not entry.cause.blocks
