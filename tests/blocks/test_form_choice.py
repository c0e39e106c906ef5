"""The static choice of a form: what it counts, and what it chooses where the measured answer is clear."""

import json
from pathlib import Path

import pytest
import torch

from norton_plugin.blocks import FORMS, CPDBlock, form_for
from norton_plugin.blocks.form_choice import is_channels_last, shape_for, static_form
from norton_plugin.blocks.forms import FORM_FUNCTIONS
from norton_plugin.blocks.stages import BlockShape, Stage, stages

ROWS = json.loads((Path(__file__).parents[2] / "docs" / "results" / "form_costs.json").read_text())["rows"]


def shape(channels=64, filters=64, size=56, *, rank=1, clusters=None, kernel=3, stride=1, groups=1) -> BlockShape:
    places = 1 if clusters is None else -(-filters // clusters)
    out = (size + 2 * (kernel // 2) - kernel) // stride + 1
    return BlockShape(channels, filters, (kernel, kernel), groups, clusters, rank, places, (size, size), (out, out))


def test_stages_are_those_of_the_lowered_forms():
    asked = shape(8, 6, 10, rank=2, stride=2)  # output 5 x 5
    assert list(stages(asked, "dense")) == [Stage("full", 6 * 8 * 9 * 25, 8 * 100 + 6 * 25, 1)]
    pointwise = Stage("full", 12 * 8 * 100, 20 * 100, 1)
    assert list(stages(asked, "separable")) == [
        pointwise,
        Stage("depthwise", 12 * 3 * 50, 12 * 100 + 12 * 50, 12),
        Stage("line", 6 * 2 * 3 * 25, 12 * 50 + 6 * 25, 6),
    ]
    assert list(stages(asked, "grouped")) == [pointwise, Stage("narrow", 6 * 2 * 9 * 25, 9 * (12 * 100 + 6 * 25), 6)]
    assert [stage.kind for stage in stages(asked, "depthwise")] == ["full", "depthwise", "sum"]
    shared = shape(8, 6, 10, rank=5, clusters=1)
    assert [stage.kind for stage in stages(shared, "separable")] == ["full", "depthwise", "depthwise", "full"]


def test_the_choice_is_close_to_the_best_on_every_measured_shape():
    losses, slower = [], 0
    for row in ROWS:
        asked = shape(
            *(row[name] for name in ("channels", "filters", "size")),
            **{name: row[name] for name in ("rank", "clusters", "kernel", "stride", "groups")},
        )
        form, _ = static_form(asked, channels_last=row["format"] == "channels_last")
        losses.append(row["ms"][form] / min(row["ms"][name] for name in FORMS))
        slower += row["ms"][form] > 1.05 * row["ms"]["dense"]
    assert len(losses) > 600
    assert sum(losses) / len(losses) < 1.04 and sorted(losses)[int(0.9 * len(losses))] < 1.12
    assert slower < 0.02 * len(losses)
    always = [row["ms"]["separable"] / min(row["ms"][name] for name in FORMS) for row in ROWS]
    assert sum(always) / len(always) > 1.5  # what the choice is worth


def test_words_say_why():
    assert static_form(shape(256, 256, 14))[0] == "grouped"
    form, reason = static_form(shape(64, 64, 112, rank=6))
    assert form == "dense" and "no factored form should be faster than the dense one" in reason


def test_a_block_that_is_not_lowered_pays_for_its_weight():
    asked = shape(256, 256, 7, rank=6)
    assert static_form(asked)[0] == "dense" != static_form(asked, lowered=False)[0]


def test_an_automatic_block_runs_in_the_form_of_its_input(monkeypatch):
    used = []
    for name, function in dict(FORM_FUNCTIONS).items():
        monkeypatch.setitem(FORM_FUNCTIONS, name, lambda *a, n=name, f=function: (used.append(n), f(*a))[1])
    block = CPDBlock(64, 64, 3, 2, padding=1).eval()
    small, large = torch.randn(1, 64, 7, 7), torch.randn(1, 64, 56, 56)
    with torch.no_grad():
        block(small), block(large), block.train()(small)
    assert block.form == "auto" and block.training_form == "dense"
    assert used == [form_for(block, small, lowered=False)[0], form_for(block, large, lowered=False)[0], "dense"]
    assert len(set(used[:2])) == 2


def test_without_an_input_the_size_is_a_usual_one_and_traces_run_at_any_size():
    block = CPDBlock(64, 64, 3, 1, padding=1).eval()
    assert form_for(block) == form_for(block, torch.zeros(1, 64, 28, 28))
    traced = torch.jit.trace(block, torch.randn(1, 64, 9, 9))
    x = torch.randn(2, 64, 12, 12)
    torch.testing.assert_close(traced(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("padding", "size"), [(1, (5, 4)), ("dynamic_same", (5, 4)), (0, (4, 3))])
def test_sizes_are_those_of_the_output(padding, size):
    block = CPDBlock(3, 4, 3, 1, stride=2, padding=padding)
    x = torch.randn(1, 3, 9, 8)
    assert shape_for(block, (9, 8)).output_size == tuple(block(x).shape[-2:]) == size


def test_memory_formats_are_told_apart():
    x = torch.zeros(2, 4, 5, 5)
    assert is_channels_last(x.to(memory_format=torch.channels_last)) and not is_channels_last(x)
    assert not is_channels_last(torch.zeros(2, 4, 1, 1)) and not is_channels_last(x[0])


def test_a_tracer_sees_the_macs_of_the_factors():
    """get_flops.py of mmdet traces a model: what it counts has to be what reports say."""
    block = CPDBlock(64, 64, 3, 8, padding=1).eval()
    x = torch.randn(1, 64, 8, 8)
    assert form_for(block, x)[0] == "dense"
    traced = torch.jit.trace(block, x)
    assert str(traced.inlined_graph).count("aten::_convolution") == 3
