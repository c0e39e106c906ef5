"""The environment: what is installed, whether it works together, and how to fix what does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement

DISTRIBUTION = "norton-plugin"
Verdict = Literal["ok", "absent", "wrong"]
# Distributions whose module has another name.
_MODULES = {
    "torch-pruning": "torch_pruning",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "opencv-python": "cv2",
    "grad-cam": "pytorch_grad_cam",
}
_OPS = (
    "pip install 'setuptools<80' wheel ninja && MMCV_WITH_OPS=1 FORCE_CUDA=0 pip install --no-build-isolation "
    "--no-binary mmcv --force-reinstall --no-deps mmcv==2.1.0 (minutes; FORCE_CUDA=1 for a GPU)"
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: A distribution, ``python`` or ``mmcv operators``.
        found: Its version, or what happened when it was imported.
        verdict: ``"ok"``, ``"absent"`` (an extra that is not installed) or ``"wrong"``.
        advice: What to do, empty where nothing is wrong.
    """

    name: str
    found: str
    verdict: Verdict
    advice: str = ""


def diagnose(requirements: list[str] | None = None) -> list[Finding]:
    """Look at Python and at every dependency: is it there, in range, and can it be imported.

    Args:
        requirements: Requirement strings, with the marker ``extra == "..."`` where optional; those of the installed
            ``norton-plugin`` by default.

    Returns:
        Findings, Python first.
    """
    findings = [_python()]
    lines = metadata.requires(DISTRIBUTION) or [] if requirements is None else requirements
    seen: set[str] = set()
    for requirement, extra in _parsed(lines):
        if requirement.name not in seen:
            seen.add(requirement.name)
            findings.append(_distribution(requirement, extra))
    if any(f.name == "mmcv" and f.verdict == "ok" for f in findings):
        findings.append(_operators())
    return findings


def _parsed(lines: list[str]) -> Iterator[tuple[Requirement, str | None]]:
    """Yield requirements that hold here, with the extra that asks for them; tools of development are left out."""
    for line in lines:
        requirement = Requirement(line)
        extra = None
        if requirement.marker is not None:
            text = str(requirement.marker)
            extra = text.partition("extra ==")[2].strip().strip("\"'").partition('"')[0] or None
            if extra in ("dev", "all") or not requirement.marker.evaluate({"extra": extra or ""}):
                continue
        yield requirement, extra


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding("python", version, "ok")
    return Finding("python", version, "wrong", "make a virtual environment of Python 3.10, 3.11 or 3.12")


def _distribution(requirement: Requirement, extra: str | None) -> Finding:
    name, wanted = requirement.name, f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if extra is None:
            return Finding(name, "not installed", "wrong", f"pip install '{wanted}'")
        return Finding(name, "not installed", "absent", f"pip install '{DISTRIBUTION}[{extra}]' where it is needed")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, version, "wrong", f"pip install '{wanted}'")
    problem = _import(_MODULES.get(name, name.replace("-", "_")))
    if problem is None:
        return Finding(name, version, "ok")
    return Finding(name, f"{version}, but {problem}", "wrong", _advice(name, problem, wanted))


def _import(module: str) -> str | None:
    """Return why a module cannot be imported, in one line, or None."""
    try:
        importlib.import_module(module)
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        return f"import {module} fails ({type(error).__name__}: {line[:160]})"
    return None


def _advice(name: str, problem: str, wanted: str) -> str:
    rules: list[tuple[Callable[[], bool], str]] = [
        (
            lambda: name == "torchvision",
            "torch and torchvision are not of one release: pip install torch==2.11.0 torchvision==0.26.0, or any other "
            "pair of https://github.com/pytorch/vision#installation",
        ),
        (lambda: "_ext" in problem, f"mmcv has no operators: {_OPS}"),
        (
            lambda: name == "mmdet" and "MMCV" in problem,
            "mmdet 3.3 works with mmcv from 2.0.1 up to, not including, 2.2: pip install 'mmcv>=2.0.1,<2.2'",
        ),
        (
            lambda: name == "mmdet" and "MMEngine" in problem,
            "pip install 'mmengine>=0.10.4,<1'",
        ),
    ]
    return next((text for holds, text in rules if holds()), f"pip install --force-reinstall '{wanted}'")


def _operators() -> Finding:
    problem = _import("mmcv.ops")
    if problem is None:
        return Finding("mmcv operators", "can be imported", "ok")
    return Finding("mmcv operators", problem, "wrong", f"detectors need them: {_OPS}")
