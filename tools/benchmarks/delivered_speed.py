"""Figures of `norton bench` as the results page needs them: the best of every runtime, dense and delivered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from norton_plugin.bench import bench
from norton_plugin.deploy import prepare
from norton_plugin.zoo import ModelSource

RUNTIMES = ("onnxruntime", "openvino")  # beside PyTorch
_NAMES = ("PyTorch", "torch.compile", "onnxruntime", "OpenVINO")


def delivered_speed(source: ModelSource, model: nn.Module) -> dict[str, Any]:
    """Return the time of one image on one thread, as delivered, in every runtime beside the dense model."""
    example = source.example_inputs
    forms = prepare(model, example, forms="measured").deployment.forms
    settings: dict[str, Any] = {"forms": forms, "runtimes": RUNTIMES, "layers": False, "clock": time.process_time}
    return settings_of(bench(source.model, model, example, **settings).to_dict())[0]


def settings_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return batch, threads and the times in every runtime, setting by setting.

    Args:
        report: `BenchReport.to_dict`, or what ``norton bench -o`` wrote.
    """
    return [_setting(setting) for setting in report["settings"]]


def _setting(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the best of every runtime, whichever memory format it is."""
    found: dict[str, Any] = {}
    for runtime in _NAMES:
        own = [timing for timing in setting["timings"] if timing["runtime"].partition(",")[0] == runtime]
        dense = [timing for timing in own if timing["efficiency"] is None]
        delivered = [timing for timing in own if timing["model"] == "delivered"]
        if dense and delivered:
            found[runtime] = _pair(min(dense, key=_time), min(delivered, key=_time))
    return {**{key: setting[key] for key in ("batch", "threads", "rounds")}, "runtimes": found}


def _pair(dense: Mapping[str, Any], delivered: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dense_ms": round(dense["milliseconds"], 3),
        "ms": round(delivered["milliseconds"], 3),
        "speed_up": round(dense["milliseconds"] / delivered["milliseconds"], 3),
        "efficiency": round(delivered["efficiency"] or 0.0, 3),
        "over_loaded_in_pytorch": round(delivered["speed_up_in_all"], 3),
    }


def _time(timing: Mapping[str, Any]) -> float:
    return float(timing["milliseconds"])
