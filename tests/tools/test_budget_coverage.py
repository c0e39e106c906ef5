"""tools/budget_coverage.py: rows of models in processes of their own, and what a row says."""

import json
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "budget_coverage.py"
SAMPLE = json.loads(TOOL.with_name("budget_models.json").read_text())
WORKER = """
import json, sys

print("step: budget", file=sys.stderr, flush=True)
if "fails" in sys.argv[0] or sys.argv[1] == "timm:resnet50":
    import time
    time.sleep(30)
print(json.dumps({"model": sys.argv[1], "status": "met", "options": sys.argv[2:]}))
"""


@pytest.fixture
def tools(load_tool):
    threads = torch.get_num_threads()
    yield load_tool("budget_coverage.py"), sys.modules["budget_coverage_row"]
    torch.set_num_threads(threads)


def test_sample_covers_the_kinds_of_models():
    assert len(SAMPLE) >= 48 and all(settings["size"] for settings in SAMPLE.values())
    families = (
        "resnet",
        "mobilenetv2",
        "mobilenetv3",
        "densenet",
        "efficientnet",
        "convnext",
        "vit_",
        "swin",
        "regnet",
    )
    families += ("res2net", "nfnet", "mixer", "mobileone", "repvgg", "fastvit", "retinanet", "faster", "yolox", "atss")
    assert all(any(family in model for model in SAMPLE) for family in families)


def test_rows_are_added_and_a_limit_names_the_step(tools, tmp_path, monkeypatch):
    tool, _ = tools
    worker, results = tmp_path / "worker.py", tmp_path / "rows.jsonl"
    worker.write_text(WORKER)
    monkeypatch.setattr(tool, "__file__", str(worker))
    command = [str(TOOL), "timm:resnet18", "timm:resnet50", "--time", "3", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", command)
    tool.main()
    first, second = map(json.loads, results.read_text().splitlines())
    assert first["status"] == "met" and first["plan"] == "decomposition"
    assert first["options"][:3] == ["--worker", "--plans", "decomposition"]
    assert second["status"] == "timeout" and second["reason"] == "over 3 s, at the step: budget"
    results.write_text(results.read_text().replace('"met"', '"below"'))
    monkeypatch.setattr(sys, "argv", [*command, "--redo", "timeout"])
    tool.main()
    assert [json.loads(line)["status"] for line in results.read_text().splitlines()] == ["below", "timeout"]


def test_a_row_of_a_model(tools, monkeypatch):
    _, row = tools
    found = row.examine("demo:digits", {"size": None}, macs=0.5, images=16, plan="decomposition")
    assert found["status"] == "met" and 0.49 <= found["macs_share"] <= 0.51 and found["loads_equal"]
    assert sum(found["fitted"].values()) > 0 and found["divergence"][found["kept"]] <= found["divergence"]["plain"]
    least = row.examine("demo:digits", {"size": None}, macs=0.001, images=16, plan="decomposition")
    assert least["status"] == "minimum" and 0.001 < least["budget"] < 0.5
    assert least["macs_share"] <= 1.02 * least["budget"] and "the least that can be reached" in least["reason"]


def test_errors_are_rows_too(tools, monkeypatch):
    _, row = tools
    absent = row.examine("timm:no_such_model", {"size": 64}, macs=0.5, images=8, plan="decomposition")
    assert absent["status"] == "not buildable"
    import norton_plugin

    def fails(*_, **__):
        raise ValueError("unlucky")

    monkeypatch.setattr(norton_plugin, "compress", fails)
    found = row.examine("demo:digits", {"size": None}, macs=0.5, images=8, plan="decomposition")
    assert found["status"] == "error" and found["reason"] == "ValueError: unlucky"
