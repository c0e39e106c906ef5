"""Table of what the fit did."""

import io

from rich.console import Console

from norton_plugin.calibration import CalibrationReport, LayerFit
from norton_plugin.insight import calibration_table
from norton_plugin.pipeline.wording import calibration_in_words


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
    assert lines[0] == "Fitted to 56 images; divergence on 8 others: plain 2.5, fitted 0.75; kept: fitted"
    assert lines[-3:] == [
        "decomposed stream 2 0.400 0.250 -",
        "dense output 1 0.125 0.062 why",
        "left - 4 - - not run: d, e, f and 1 more",
    ]


def test_a_choice_on_the_images_of_the_fit_is_said_to_be_one():
    """Of a single batch nothing is held back; a divergence of next to nothing there says little."""
    report = CalibrationReport(
        layers=(),
        left=(),
        chosen="fitted",
        images=1,
        held_back=0,
        divergence={"plain": 2.5, "fitted": 1e-13},
        seconds=1.0,
    )
    stages = "divergence on the same images: plain 2.5, fitted 1e-13; kept: fitted"
    assert calibration_table(report).title == f"Fitted to 1 image; {stages}"
    assert "on the same images: plain 2.5" in calibration_in_words(report)[0]
