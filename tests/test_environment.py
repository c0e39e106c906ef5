"""The environment: what is wrong is named with the command that fixes it."""

import importlib
from importlib import metadata

import pytest

from norton_plugin import environment
from norton_plugin.environment import diagnose

WANTED = ["torch>=2.1", "timm>=1.0; extra == 'timm'", "mmcv<2.2,>=2.0.1; extra == 'mmdet'", "ruff; extra == 'dev'"]


@pytest.fixture
def stack(monkeypatch):
    """An environment: versions by name, and errors that imports raise."""
    versions = {"torch": "2.11.0", "timm": "1.0.31", "mmcv": "2.1.0", "mmdet": "3.3.0", "torchvision": "0.26.0"}
    broken = {}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def load(name):
        if name in broken:
            raise broken[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(importlib, "import_module", load)
    return versions, broken


def verdicts(findings):
    return {finding.name: finding.verdict for finding in findings}


def test_a_sound_stack(stack):
    assert verdicts(diagnose(WANTED)) == dict.fromkeys(["python", "torch", "timm", "mmcv", "mmcv operators"], "ok")


def test_an_extra_that_is_absent_is_not_wrong(stack):
    del stack[0]["timm"], stack[0]["mmcv"]
    findings = {f.name: f for f in diagnose(WANTED)}
    assert findings["timm"].verdict == findings["mmcv"].verdict == "absent"
    assert "norton-plugin[timm]" in findings["timm"].advice and "norton-plugin[mmdet]" in findings["mmcv"].advice


def test_what_the_library_needs_is_wrong_where_absent_or_too_old(stack):
    stack[0]["torch"] = "1.13.1"
    assert diagnose(WANTED)[1].advice == "pip install 'torch>=2.1'" and diagnose(WANTED)[1].verdict == "wrong"
    del stack[0]["torch"]
    assert diagnose(WANTED)[1].found == "not installed" and diagnose(WANTED)[1].verdict == "wrong"


@pytest.mark.parametrize(
    ("module", "error", "name", "advice"),
    [
        ("mmcv.ops", ModuleNotFoundError("No module named 'mmcv._ext'"), "mmcv operators", "MMCV_WITH_OPS=1"),
        ("torchvision", RuntimeError("operator torchvision::nms does not exist"), "torchvision", "torchvision==0.26.0"),
        ("mmdet", AssertionError("MMCV==2.2.0 is used but incompatible."), "mmdet", "mmcv>=2.0.1,<2.2"),
        ("timm", ImportError("cannot import name"), "timm", "--force-reinstall 'timm>=1.0'"),
    ],
)
def test_imports_that_fail(stack, module, error, name, advice):
    stack[1][module] = error
    lines = [*WANTED, "torchvision>=0.16; extra == 'timm'", "mmdet<4,>=3.3; extra == 'mmdet'"]
    finding = next(f for f in diagnose(lines) if f.name == name)
    assert finding.verdict == "wrong" and advice in finding.advice and str(error) in finding.found


def test_another_python(stack, monkeypatch):
    monkeypatch.setattr(environment.sys, "version_info", (3, 14, 0))
    assert diagnose([])[0].verdict == "wrong"
