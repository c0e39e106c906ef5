"""``norton demo --quick``: everything it promises is there and agrees."""

import json

import pytest

from norton_plugin.artifact import read_manifest


@pytest.mark.slow
def test_quick_demo(norton, tmp_path):
    for module, extra in (("sklearn", "demo"), ("mmengine", "timm"), ("matplotlib", "insight")):
        pytest.importorskip(module, reason=f"needs {module}: pip install 'norton-plugin[{extra}]'")
    answer = norton("demo", "--quick", "-o", tmp_path / "demo", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert (found["train_images"], found["test_images"], found["quick"]) == (1437, 360, True)
    shares = [each["macs"] / found["dense"]["macs"] for each in found["compressed"]]
    assert shares == pytest.approx([0.5, 0.3, 0.15], abs=0.02)
    assert found["dense"]["accuracy"] > 80
    assert all(each["accuracy_after"] > 60 for each in found["compressed"])

    assert (tmp_path / "demo" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    written = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert written == {key: value for key, value in found.items() if key not in ("directory", "seconds")}
    for each in found["compressed"]:
        assert read_manifest(tmp_path / "demo" / each["name"]).extra["demo"] == each
        inspected = json.loads(norton("inspect", tmp_path / "demo" / each["name"], "--json").out)
        assert (inspected["macs"], inspected["parameters"]) == (each["macs"], each["parameters"])
