"""The section of the results page on whole models as they are delivered."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from report_table import Facts, table

_RUNTIMES = ("PyTorch", "torch.compile", "onnxruntime", "OpenVINO")
_HEADER = ["model", "point", "MACs, G", "parameters, M", "fewer MACs", "batch", "threads"]
_GOALS = {"PyTorch": 0.75, "best": 0.90}
_FEWER = 5  # times fewer MACs, up to which rows are averaged apart


def throughput(facts: Facts) -> str:
    """Whole models: speed-up in every runtime, and efficiency."""
    timed = {runtime for _, setting in _settings(facts) for runtime in setting["runtimes"]}
    runtimes = [runtime for runtime in _RUNTIMES if runtime in timed]
    rows = [_row(row, setting, runtimes) for row, setting in _settings(facts)]
    header = [*_HEADER, *(f"{runtime}: ms, speed-up, efficiency" for runtime in runtimes), "Torch-Pruning, speed-up"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        "Random weights: this is the time alone. Compressed, lowered and folded by the package, timed by "
        "`norton_plugin.bench` with the dense model in turn; the dense model has its norms folded too, and both are in "
        "the faster memory format. Speed-up is over the dense model in the same runtime, efficiency is speed-up over "
        "the ratio of MACs. Detectors run whole in PyTorch, with their boxes; those of two stages all on the same 1000 "
        "regions of 16 to 512 pixels and with the same 100 objects, because random weights propose different ones in "
        "each model, and often none (their own choice, by NMS, still runs). A file of a detector of mmdet ends at the "
        "tensors of its head, of two stages at those of the RPN, and is held against the MACs of that part. "
        "The last column is Torch-Pruning's plain magnitude pruning at no more MACs, by the same runtimes: nothing but "
        "narrower dense layers, so it is what compression of this kind can reach. "
        "Processor time on one thread, wall time on several; "
        f"{versions}.\n\n" + table(header, rows) + f"\n\n{_verdict(facts)}"
    )


def _settings(facts: Facts) -> Iterator[tuple[Facts, Facts]]:
    for row in facts["variants"].values():
        for setting in row["settings"]:
            yield row, setting


def _row(row: Facts, setting: Facts, runtimes: Sequence[str]) -> list[object]:
    peer = _same(row.get("torch_pruning", {}).get("settings", []), setting)
    return [
        row["model"],
        row["point"],
        f"{row['macs_dense'] / 1e9:.2f} to {row['macs'] / 1e9:.2f}",
        f"{row['parameters_dense'] / 1e6:.1f} to {row['parameters'] / 1e6:.1f}",
        f"{row['macs_ratio']:.2f}" + (f" (file: {row['file_macs_ratio']:.2f})" if _is_part(row) else ""),
        setting["batch"],
        setting["threads"],
        *(_cell(setting["runtimes"].get(runtime)) for runtime in runtimes),
        " / ".join(f"{peer[runtime]['speed_up']:.2f}" for runtime in runtimes if runtime in peer) or "-",
    ]


def _same(settings: list[Facts], setting: Facts) -> dict[str, Any]:
    """Return the runtimes of the peer at the same batch and threads."""
    key = (setting["batch"], setting["threads"])
    return next((each["runtimes"] for each in settings if (each["batch"], each["threads"]) == key), {})


def _is_part(row: Facts) -> bool:
    """Tell whether files hold a part of the model only."""
    return abs(row["file_macs_ratio"] / row["macs_ratio"] - 1) > 0.01


def _cell(timing: Facts | None) -> str:
    if timing is None:
        return "-"
    times = f"{timing['dense_ms']:.4g} to {timing['ms']:.4g}"
    return f"{times}, {timing['speed_up']:.2f}x, {timing['efficiency']:.2f}"


def _verdict(facts: Facts) -> str:
    """Say in figures what is reached of efficiency and of layers that are not slower than dense."""
    settings = list(_settings(facts))
    pruned = [setting for row, setting in settings if "pruned" in row["point"]]
    factors = [setting for row, setting in settings if "pruned" not in row["point"]]
    near = [setting for row, setting in settings if row["macs_ratio"] <= _FEWER]
    far = [setting for row, setting in settings if row["macs_ratio"] > _FEWER]
    pytorch, best = _efficiencies([setting for _, setting in settings])
    slower = sum(len(row["layers_slower_than_dense"]) for row in facts["variants"].values())
    layers = sum(row["layers"] for row in facts["variants"].values())
    missing: dict[str, dict[str, None]] = {}  # reason -> models, in their order
    for row in facts["variants"].values():
        for _, reason in row["left"]:
            missing.setdefault(reason, {})[row["model"]] = None
    text = (
        f"Mean efficiency {statistics.mean(pytorch):.2f} in PyTorch (the goal is {_GOALS['PyTorch']}) and "
        f"{statistics.mean(best):.2f} in the best runtime (the goal is {_GOALS['best']}); {_means(near)} in the rows "
        f"with at most {_FEWER} times fewer MACs, {_means(far)} in the others, in which what has no MACs (boxes, "
        f"regions, masks, activations) weighs more; {_means(pruned)} in the rows that are pruned alone, "
        f"{_means(factors)} in those with factors. Of {layers} changed layers {slower} are more than 5 % slower than "
        "the dense layer."
    )
    for reason, models in missing.items():
        text += f" Not timed as files when they were measured: {', '.join(models)} ({reason})."
    return text


def _efficiencies(settings: list[Facts]) -> tuple[list[float], list[float]]:
    """Return the efficiency of every setting in PyTorch, and in its best runtime."""
    runtimes = [setting["runtimes"] for setting in settings]
    best = [max(timing["efficiency"] for timing in found.values()) for found in runtimes]
    return [found["PyTorch"]["efficiency"] for found in runtimes], best


def _means(settings: list[Facts]) -> str:
    return " and ".join(f"{statistics.mean(found):.2f}" for found in _efficiencies(settings))
