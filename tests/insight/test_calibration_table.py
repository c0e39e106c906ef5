"""Table of what the fit did."""

import io

from rich.console import Console

from norton_plugin.calibration import CalibrationReport, LayerFit
from norton_plugin.insight import calibration_table


def test_layers_are_grouped_by_what_they_were_fitted_to():
    def layer(name, decomposed, target, note, before, after):
        return LayerFit(name, decomposed, target, note, 9, 100, before, after)

    report = CalibrationReport(
        layers=(
            layer("a", True, "stream", "", 0.5, 0.3),
            layer("b", True, "stream", "", 0.3, 0.2),
            layer("c", False, "output", "why", 0.125, 0.0625),
        ),
        left=(("d", "not run"), ("e", "not run"), ("f", "not run"), ("g", "not run")),
        chosen="fitted",
        images=56,
        held_back=8,
        divergence={"plain": 2.5, "fitted": 0.75},
        seconds=1.0,
    )
    stream = io.StringIO()
    Console(file=stream, width=160).print(calibration_table(report))
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines() if line.strip()]
    assert lines[0] == "Fitted to 56 images; divergence: plain 2.5, fitted 0.75; kept: fitted"
    assert lines[-3:] == [
        "decomposed stream 2 0.400 0.250 -",
        "dense output 1 0.125 0.062 why",
        "left - 4 - - not run: d, e, f and 1 more",
    ]
