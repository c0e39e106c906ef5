"""What the hook reports: a table in the log, a file in the work dir, scalars for the visualizer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from mmengine.runner import Runner

from norton_plugin.mm.run.left import everything_left, lines_of_left
from norton_plugin.pipeline import (
    LEVEL_HEADINGS,
    CompressionReport,
    budget_in_words,
    calibration_in_words,
    distillation_in_words,
    in_words,
    level_cells,
    note_on_distances,
)

REPORT = "norton_report.json"


def log_surgery(runner: Runner, report: CompressionReport, *, traced: str) -> None:
    """Log the table and what was left, and write ``norton_report.json``: straight after surgery, on the first rank.

    Args:
        runner: Gives logger and work dir.
        report: Of ``compress``.
        traced: What was traced, in words.
    """
    if runner.rank != 0:
        return
    for line in layer_lines(report):
        runner.logger.log(logging.DEBUG, line)
    left = lines_of_left(report)
    heading = [f"left as they were (all by name in {REPORT}):"] if left else []
    found = [] if report.budget is None else [budget_in_words(report.budget)]
    found += [] if report.calibration is None else calibration_in_words(report.calibration)
    found += [] if report.distillation is None else [distillation_in_words(report.distillation)]
    lines = [*summary_table(report, traced=traced), *found, *heading, *(f"  {line}" for line in left)]
    runner.logger.info("%s", "\n".join(lines))
    _write(runner, report, {})
    for warning in report.warnings:
        runner.logger.warning("NORTON: %s", warning)
    note = note_on_distances(report)
    if note:
        runner.logger.info("NORTON: %s", note)


def log_outcome(runner: Runner, report: CompressionReport, *, metrics: Mapping[str, float]) -> None:
    """Log what followed surgery, complete ``norton_report.json`` and add scalars, on the first rank only.

    Args:
        runner: Gives logger, work dir and visualizer.
        report: Of ``compress``, with the images that BatchNorm statistics come from.
        metrics: Of the model straight after surgery; empty where it was not validated.
    """
    if runner.rank != 0:
        return
    _write(runner, report, metrics)
    if report.calibration_images:
        runner.logger.info("NORTON: BatchNorm statistics are those of %d training images", report.calibration_images)
    if metrics:
        scores = "  ".join(f"{name}: {value:.4f}" for name, value in metrics.items())
        runner.logger.info("NORTON: after surgery, before fine-tuning: %s", scores)
    scalars = {
        "norton/macs_before": report.macs_before,
        "norton/macs_after": report.macs_after,
        "norton/parameters_before": report.parameters_before,
        "norton/parameters_after": report.parameters_after,
        "norton/seconds": report.seconds,
        **{f"norton/{name}": value for name, value in metrics.items()},
    }
    runner.visualizer.add_scalars(scalars, step=runner.iter)


def _write(runner: Runner, report: CompressionReport, metrics: Mapping[str, float]) -> None:
    content = {**report.to_dict(), "left": everything_left(report), "metrics_after_surgery": dict(metrics)}
    text = json.dumps(content, indent=1) + "\n"
    (Path(runner.work_dir) / REPORT).write_text(text, encoding="utf-8")


def layer_lines(report: CompressionReport) -> list[str]:
    """Return one line per layer, the skipped ones with their reason."""
    lines = [
        f"{layer.name}: MACs {layer.macs_before} -> {layer.macs_after}, {in_words(layer)}, kept {layer.kept:.0%}"
        for layer in report.layers
    ]
    return lines + [f"{skipped.name}: left, {skipped.reason}" for skipped in report.skipped]


def summary_table(report: CompressionReport, *, traced: str) -> list[str]:
    """Return the lines of the table: every layer that changed, then the totals."""
    changed = [layer for layer in report.layers if layer.macs_after != layer.macs_before or layer.rank is not None]
    width = max([len(layer.name) for layer in changed] + [len("layer")])
    lines = [
        f"NORTON: {len(report.decomposition.layers)} layers decomposed, {len(report.pruning.groups)} groups of "
        f"channels pruned, in {report.seconds:.1f} s; traced: {traced}",
        f"{'layer':<{width}}  {_columns(LEVEL_HEADINGS)}  {'NMSE':>6}  {'kept':>5}  {'MMACs':>9}  {'after':>9}",
    ]
    for layer in changed:
        nmse = "-" if layer.nmse is None else f"{layer.nmse:.4f}"
        lines.append(
            f"{layer.name:<{width}}  {_columns(level_cells(layer))}  {nmse:>6}  {layer.kept:>5.0%}  "
            f"{layer.macs_before / 1e6:>9.1f}  {layer.macs_after / 1e6:>9.1f}"
        )
    lines.append(f"{len(report.layers) - len(changed)} of {len(report.layers)} layers with MACs are as they were")
    macs = 1 - report.macs_after / max(report.macs_before, 1)
    parameters = 1 - report.parameters_after / max(report.parameters_before, 1)
    lines.append(f"MACs {report.macs_before / 1e9:.3f} G -> {report.macs_after / 1e9:.3f} G (-{macs:.1%})")
    old, new = report.parameters_before / 1e6, report.parameters_after / 1e6
    lines.append(f"parameters {old:.3f} M -> {new:.3f} M (-{parameters:.1%})")
    return lines


def _columns(cells: tuple[str, str, str]) -> str:
    level, rank, components = cells
    return f"{level:<12}  {rank:>4}  {components:>10}"
