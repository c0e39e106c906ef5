"""Latency of every equivalent form of a block on many layer shapes: what the static choice of forms is fitted to.

    OMP_NUM_THREADS=1 python tools/benchmarks/form_costs.py

Lowered blocks with random factors, batch 1, in both memory formats. ``rebuilding`` is what the dense form adds in a
block that is not lowered: it makes the weight anew in every call.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quiet_timing import FORMATS, middle, prepare, seconds

from norton_plugin.blocks import FORMS, CPDBlock
from norton_plugin.deploy import lower_block


class Shape(NamedTuple):
    """A convolution with padding ``kernel // 2`` on a square map."""

    channels: int
    filters: int
    size: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1


SHAPES = (
    *(Shape(c, c, size) for c, size in ((16, 32), (32, 32), (32, 112), (64, 112), (64, 56), (64, 28), (64, 8))),
    *(Shape(c, c, size) for c, size in ((128, 56), (128, 28), (128, 14), (256, 50), (256, 28), (256, 14), (256, 7))),
    *(Shape(c, c, size) for c, size in ((512, 14), (512, 7), (48, 56), (88, 28), (184, 14), (360, 7), (90, 28))),
    *(Shape(c, n, size, 3, 2) for c, n, size in ((64, 128, 56), (128, 128, 56), (256, 256, 28), (512, 512, 14))),
    Shape(3, 64, 112, 3, 1),
    Shape(3, 64, 224, 7, 2),
    Shape(64, 64, 56, 5),
    Shape(256, 256, 14, 5),
    Shape(96, 96, 28, 7),
    Shape(128, 128, 28, 3, 1, 32),
    Shape(256, 64, 50),
    Shape(64, 256, 28),
)
RANKS = (1, 2, 3, 4, 6)
SHARES = (1, 2, 3)  # ranks of the filter level whose components the other levels are given


def blocks_of(shape: Shape) -> list[CPDBlock]:
    """Return blocks of all levels for one shape."""
    geometry: dict[str, Any] = {
        "stride": shape.stride,
        "padding": shape.kernel // 2,
        "groups": shape.groups,
        "bias": True,
    }

    def block(rank: int, clusters: int | None) -> CPDBlock:
        return CPDBlock(shape.channels, shape.filters, shape.kernel, rank, clusters=clusters, **geometry).eval()

    found = [block(rank, None) for rank in RANKS if rank <= shape.kernel**2]
    per_filter = shape.channels // shape.groups + 2 * shape.kernel
    for rank in SHARES if shape.groups == 1 else ():
        components = rank * shape.filters * per_filter // (per_filter + shape.filters)
        found.append(block(max(1, components // 16 * 16), 1))
        if shape.filters >= 64:
            found.append(block(max(1, components // 4), 4))
    return found


def measure(block: CPDBlock, x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Return milliseconds of every form, lowered, and of the block in its dense form beyond the lowered one."""
    calls: dict[str, Any] = {}
    for form in FORMS:
        lowered = lower_block(block, form).to(memory_format=_format_of(x))
        calls[form] = lambda lowered=lowered: lowered(x)
    block.form = "dense"
    calls["block"] = lambda: block(x)
    found = seconds(calls, rounds=rounds, budget=3.0)
    milliseconds = {name: middle([1e3 * found[name]]) for name in FORMS}
    return {**milliseconds, "rebuilding": middle([1e3 * max(0.0, found["block"] - found["dense"])])}


def _format_of(x: torch.Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else torch.contiguous_format


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each form")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for form_costs.json")
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        for block in blocks_of(shape):
            for name, memory in FORMATS.items():
                x = torch.randn(1, shape.channels, shape.size, shape.size).to(memory_format=memory)
                found = measure(block, x, arguments.rounds)
                facts = {"clusters": block.clusters if block.mix is not None else None, "rank": block.rank}
                rows.append({**shape._asdict(), **facts, "format": name, "ms": found})
        print(shape, rows[-1]["ms"], flush=True)
        content = {
            "command": "OMP_NUM_THREADS=1 python tools/benchmarks/form_costs.py",
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
            "torch": torch.__version__,
            "rows": rows,
        }
        (arguments.output / "form_costs.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
