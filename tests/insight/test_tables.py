"""Tables of a report."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from norton_plugin.insight import layers_table, skipped_table, totals_table
from norton_plugin.pipeline import CompressionReport, LayerReport
from norton_plugin.reasons import Reason
from norton_plugin.surgery.report import DecompositionReport, PruningReport, Skipped


@pytest.fixture
def report():
    layers = (
        LayerReport("stem", "Conv2d", 1000, 1000, 500, 500, None, None, 1.0),
        LayerReport("block.conv", "CPDBlock", 4000, 1000, 2000, 300, 2, 0.25, 0.75, "filter"),
        LayerReport("block.shared", "CPDBlock", 4000, 900, 2000, 250, 24, 0.125, 1.0, "layer", 1, 24),
        LayerReport("fc", "Linear", 64, 48, 64, 48, None, None, 1.0),
    )
    skipped = tuple(Skipped(f"one.{i}", Reason.HAS_HOOKS.because()) for i in range(6))
    return CompressionReport(
        macs_before=5064,
        macs_after=2048,
        parameters_before=2564,
        parameters_after=848,
        layers=layers,
        decomposition=DecompositionReport((), (*skipped, Skipped("stem", Reason.OUTSIDE_SCOPE.because()))),
        pruning=PruningReport((), (Skipped("fc", Reason.MODEL_OUTPUT.because()),)),
        calibration_images=0,
        seconds=1.0,
        structure={},
    )


@pytest.fixture
def lines():
    def draw(table):
        stream = io.StringIO()
        Console(file=stream, width=140).print(table)
        return [line.split() for line in stream.getvalue().splitlines() if line.strip()]

    return draw


def test_totals(report, lines):
    rows = lines(totals_table(report))
    assert rows[-2] == ["MACs", "5.06", "k", "2.05", "k", "-59.6", "%"]
    assert rows[-1] == ["parameters", "2.56", "k", "848", "-66.9", "%"]


def test_totals_have_a_status_of_pruning_only_where_it_was_tried(report):
    assert totals_table(report).title == "Totals (pruning: decompose-only)"
    alone = replace(report, pruning=PruningReport((), ()))
    assert alone.status == "full" and totals_table(alone).title == "Totals"


def test_layers_that_changed(report, lines):
    rows = lines(layers_table(report))
    assert " ".join(rows[-3]) == "block.conv CPDBlock filter 2 - 0.250 75.0 % 4.00 k 1.00 k -75.0 % 2.00 k 300"
    assert " ".join(rows[-2]) == "block.shared CPDBlock layer - 24 0.125 100.0 % 4.00 k 900 -77.5 % 2.00 k 250"
    assert " ".join(rows[-1]) == "fc Linear - - - - 100.0 % 64 48 -25.0 % 64 48"
    assert not any(row[0] == "stem" for row in rows)


def test_all_layers(report, lines):
    rows = lines(layers_table(report, all_layers=True))
    assert [row[0] for row in rows[-4:]] == ["stem", "block.conv", "block.shared", "fc"]


def test_skipped_are_grouped_by_reason(report, lines):
    rows = [" ".join(row) for row in lines(skipped_table(report))]
    names = "6 one.0, one.1, one.2, one.3 and 2 more"
    assert rows[-3] == f"decomposition has-hooks carries hooks that a replacement would lose {names}"
    assert rows[-2] == "decomposition outside-scope outside the scope 1 stem"
    assert rows[-1] == "pruning model-output its channels are outputs of the model 1 fc"
