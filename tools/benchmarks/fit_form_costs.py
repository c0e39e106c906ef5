"""Fit the costs of ``norton_plugin/blocks/form_choice.py`` to form_costs.json, and tell how good the choice is.

    python tools/benchmarks/fit_form_costs.py

A form takes the sum over its convolutions of a cost per MAC, per number read or written and per group, by the kind of
convolution, and a cost per call; relative errors count, large ones less. Needs scipy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
from form_costs import Shape
from scipy.optimize import nnls

from norton_plugin.blocks import FORMS, Form
from norton_plugin.blocks.form_choice import static_form
from norton_plugin.blocks.stages import BlockShape, Kind, stages

RESULTS = Path("docs/results/form_costs.json")
KINDS = get_args(Kind)
ROUNDS = 30


def block_shape(row: dict[str, Any]) -> BlockShape:
    """Return the sizes of a measured block."""
    shape = Shape(*(row[name] for name in Shape._fields))
    side = (shape.size + 2 * (shape.kernel // 2) - shape.kernel) // shape.stride + 1
    places = 1 if row["clusters"] is None else -(-shape.filters // row["clusters"])
    sizes = ((shape.size,) * 2, (side, side))
    kernel = (shape.kernel, shape.kernel)
    return BlockShape(shape.channels, shape.filters, kernel, shape.groups, row["clusters"], row["rank"], places, *sizes)


def amounts(shape: BlockShape, form: Form) -> np.ndarray:
    """Return what a form costs in millions of MACs and numbers and thousands of groups, by kind, and in calls."""
    found = np.zeros(3 * len(KINDS) + 1)
    for stage in stages(shape, form):
        start = 3 * KINDS.index(stage.kind)
        groups = 0.0 if stage.kind == "full" else 1e-3 * stage.groups
        found[start : start + 3] += (1e-6 * stage.macs, 1e-6 * stage.numbers, groups)
        found[-1] += 1
    return found


def fit(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the costs, none of them negative."""
    pairs = [(amounts(block_shape(row), form), row["ms"][form]) for row in rows for form in FORMS]
    matrix = np.array([found / milliseconds for found, milliseconds in pairs])
    costs, _ = nnls(matrix, np.ones(len(pairs)))
    for _ in range(ROUNDS):
        weights = np.maximum(np.abs(matrix @ costs - 1), 0.1) ** -0.5
        costs, _ = nnls(matrix * weights[:, None], weights)
    return costs


def main() -> None:
    """Fit and print."""
    rows = json.loads(RESULTS.read_text())["rows"]
    for name in sorted({row["format"] for row in rows}):
        own = [row for row in rows if row["format"] == name]
        costs = fit(own)
        print(name, {kind: costs[3 * i : 3 * i + 3].round(4).tolist() for i, kind in enumerate(KINDS)}, costs[-1])
        last = name == "channels_last"
        chosen = [row["ms"][static_form(block_shape(row), channels_last=last)[0]] for row in own]
        losses = [ms / min(row["ms"][form] for form in FORMS) for ms, row in zip(chosen, own, strict=True)]
        slower = sum(ms > 1.05 * row["ms"]["dense"] for ms, row in zip(chosen, own, strict=True))
        print(f"the choice takes {np.mean(losses):.3f} times the fastest form; slower than dense: {slower}/{len(own)}")


if __name__ == "__main__":
    main()
