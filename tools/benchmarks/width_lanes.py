"""Latency of convolutions over their widths: which multiple ``round_to`` should be on this processor.

    OMP_NUM_THREADS=1 python tools/benchmarks/width_lanes.py
    OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python tools/benchmarks/width_lanes.py

A 3x3 convolution of as many filters as channels, and a 1x1, single precision, batch 1, one thread, widths in turns.
What counts is the time per MAC: a width that fills its vector registers costs less of it. Rows of other instruction
sets stay in the file.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quiet_timing import FORMATS, METHOD, middle, prepare, repeated
from torch import nn

WIDTHS = (60, 61, 62, 63, 64, 66, 68, 72, 76, 80, 88, 96)
SIZES = {3: 28, 1: 28}


def measure(kernel: int, size: int, memory_format: str, rounds: int) -> dict[str, Any]:
    """Return picoseconds per MAC for every width."""
    calls = {}
    for width in WIDTHS:
        conv = nn.Conv2d(width, width, kernel, padding=kernel // 2).eval().to(memory_format=FORMATS[memory_format])
        x = torch.randn(1, width, size, size).to(memory_format=FORMATS[memory_format])
        calls[width] = partial(conv, x)
    [timed] = repeated(calls, runs=1, rounds=rounds, budget=20.0)
    cost = {width: middle([1e12 * timed[width] / (width**2 * kernel**2 * size**2)]) for width in WIDTHS}
    means = {}
    for lanes in (16, 8, 4, 2, 1):  # each width counts for the largest power of two that divides it
        own = [
            cost[width] for width in WIDTHS if width % lanes == 0 and width % (2 * lanes if lanes < 16 else width + 1)
        ]
        means[lanes] = middle([sum(own) / len(own)]) if own else None
    return {"kernel": kernel, "size": size, "format": memory_format, "ps_per_mac": cost, "mean_by_multiple": means}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="timed calls of each width")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for width_lanes.json")
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    rows = [measure(kernel, size, name, arguments.rounds) for kernel, size in SIZES.items() for name in FORMATS]
    for row in rows:
        print(row)
    path, capability = arguments.output / "width_lanes.json", torch.backends.cpu.get_cpu_capability()
    before = json.loads(path.read_text())["rows"] if path.exists() else {}
    content = {
        "command": "OMP_NUM_THREADS=1 python tools/benchmarks/width_lanes.py",
        "method": METHOD,
        "torch": torch.__version__,
        "rows": {**before, capability: rows},
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
