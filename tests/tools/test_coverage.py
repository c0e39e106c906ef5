"""tools/coverage.py: what becomes of a model, one row for every outcome; and the fixed sample of models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "coverage.py"
SAMPLE = json.loads(TOOL.with_name("coverage_models.json").read_text())["ci"]
# In place of the process that examines one model: what it does is the model's name.
WORKER = """
import json, sys, time
from pathlib import Path

name = sys.argv[1].partition(":")[2]
with Path(__file__).with_suffix(".log").open("a") as file:
    file.write(name + "\\n")
if name == "sleeps":
    time.sleep(30)
if name == "grows":
    room = bytearray(2**31)
if name == "dies":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
if name == "fails":
    raise RuntimeError("something | else")
row = {"model": sys.argv[1], "status": "full", "pruned": "3/3", "macs_before": 2_500_000, "error": 2e-7, "seconds": 0.1}
print("noise of an import")
print(json.dumps(row))
"""


@pytest.fixture
def tool(load_tool):
    threads = torch.get_num_threads()
    yield load_tool("coverage.py")
    torch.set_num_threads(threads)


@pytest.fixture
def sweep(tool, tmp_path, monkeypatch):
    """Runs the tool on made-up models; returns the rows in the file, the page, and which models were examined."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(tool, "__file__", str(worker))

    def run(*arguments: str) -> tuple[list[dict], str, list[str]]:
        log = worker.with_suffix(".log")
        log.write_text("")
        results, table = tmp_path / "results" / "rows.jsonl", tmp_path / "page.md"
        command = [str(TOOL), *arguments, "--results", str(results), "--table", str(table)]
        monkeypatch.setattr(sys, "argv", command)
        tool.main()
        return (
            [json.loads(line) for line in results.read_text().splitlines()],
            table.read_text(),
            log.read_text().split(),
        )

    return run


def test_every_outcome_has_a_row(sweep):
    names = ["works", "sleeps", "grows", "dies", "fails"]
    rows, page, _ = sweep(*(f"timm:{name}" for name in names), "--time", "1", "--memory", "1")
    assert {row["model"]: row["status"] for row in rows} == {
        "timm:works": "full", "timm:sleeps": "timeout", "timm:grows": "memory", "timm:dies": "memory",
        "timm:fails": "error",
    }  # fmt: skip
    reasons = {row["model"]: row.get("reason") for row in rows}
    assert reasons["timm:sleeps"] == "over 1 s" and reasons["timm:fails"] == "RuntimeError: something | else"
    assert "5 models: 1 full, 1 error, 1 timeout, 2 memory." in page
    assert "| timm:works | full |  | 3/3 | 2 M |  |  | 2e-07 | 0.1 |" in page
    assert "RuntimeError: something / else |" in page  # a bar would end the cell


def test_a_stopped_sweep_goes_on_where_it_was(sweep):
    sweep("timm:one", "timm:fails")
    rows, _, examined = sweep("timm:one", "timm:fails", "timm:two")
    assert examined == ["two"] and [row["model"] for row in rows] == ["timm:one", "timm:fails", "timm:two"]
    rows, page, examined = sweep("timm:one", "timm:fails", "--redo", "error", "timeout")
    assert examined == ["fails"] and len(rows) == 4
    assert "3 models: 2 full, 1 error." in page  # the last row of a model counts


def test_the_page_sums_up(tool):
    done = {"macs_before": 10**9, "narrowest": 68.8, "seconds": 2.0, "error": 2e-7}
    rows = [
        {"model": "timm:beit_base_patch16_224", "status": "full", "macs_down": 50.0, **done},
        {"model": "timm:halonet_h1", "status": "full", "macs_down": 44.0, **done, "error": 3e-6, "seconds": 9.0},
        {"model": "timm:nasnetalarge", "status": "partial", "macs_down": 20.0, **done, "narrowest": 61.5,
         "reason": "2 x it differs by 4.7e-02 (at most 0.0001); 1 x shape '[1, 2]' | is invalid"},
        {"model": "timm:coat_tiny", "status": "partial", "macs_down": 30.0, **done,
         "reason": "3 x it differs by inf (at most 0.0001)"},
        {"model": "mmdet:atss/atss_r18.py", "status": "not buildable", "reason": "mmdet:atss/atss_r18.py needs CUDA"},
        {"model": "timm:levit_128s", "status": "timeout", "reason": "over 9 s", "seconds": 9.0},
    ]  # fmt: skip
    lines = tool.markdown(rows, ["command"]).splitlines()
    assert "| timm | 5 | 2 | 2 | 0 | 0 | 0 | 1 | 37.0 (20.0) | 3e-06 | 61.5 | 2.0 (9.0) |" in lines
    assert "| mmdet | 1 | 0 | 0 | 0 | 0 | 1 | 0 |" in lines
    assert "| timm-families | 85 | 2 | 1 | 1 | 33 |" in lines
    assert "| timm-known | 48 | 0 | 1 | 0 | 37 |" in lines
    reasons = lines[lines.index("| reason | groups | models |") + 2 :][:2]
    assert reasons == ["| it differs | 5 | 2 |", "| shape '[1, 2]' / is invalid | 1 | 1 |"]
    assert not any(line.startswith("## Rules that failed") for line in lines)
    assert "| mmdet:atss/atss_r18.py | needs CUDA |" in lines
    assert sum(line.startswith("| BatchNorm without a bias |") for line in lines) == 1


def test_reasons_are_counted_by_code_where_rows_have_codes(tool):
    rows = [
        {"model": "timm:a", "status": "partial", "reason": "9 x sort is taken over its channels",
         "codes": {"taken-over-channels": 9, "differs": 1}, "rule_failures": ["the rule for sort failed"]},
        {"model": "timm:b", "status": "partial", "reason": "2 x softmax is taken over its channels",
         "codes": {"taken-over-channels": 2}, "rule_failures": []},
        {"model": "timm:c", "status": "partial", "reason": "3 x it differs by inf (at most 0.0001)"},
        {"model": "timm:d", "status": "full", "reason": "", "codes": {}, "rule_failures": []},
    ]  # fmt: skip
    lines = tool.markdown(rows, ["command"]).splitlines()
    assert lines[lines.index("| reason | groups | models |") + 2 :][:3] == [
        "| [`taken-over-channels`](reasons.md#taken-over-channels) | 11 | 2 |",
        "| it differs | 3 | 1 |",
        "| [`differs`](reasons.md#differs) | 1 | 1 |",
    ]
    rules = lines.index("## Rules that failed (mistakes of this package)")
    assert lines[rules + 4 : rules + 6] == ["| timm:a | the rule for sort failed |", ""]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--list", "no-such-list"], "invalid choice: 'no-such-list'"),
        (["--source", "keras"], "invalid choice: 'keras'"),
        (["--redo", "perfect"], "invalid choice: 'perfect'"),
        (["--keep", "most"], "invalid float value: 'most'"),
    ],
)
def test_bad_arguments_end_with_what_is_expected(arguments, message):
    done = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr


def test_lists_hold_what_they_promise(tool):
    lists = json.loads(tool.LISTS.read_text())
    assert len(lists["ci"]) == len(set(lists["ci"])) == 25
    alone = json.loads(TOOL.with_name("coverage_alone.json").read_text())
    assert all(set(alone[name]) <= set(lists[name]) for name in alone if name != "note")
    assert (len(lists["timm-families"]), len(lists["timm-known"]), len(lists["mmdet-families"])) == (85, 48, 88)


MODELS = """
from torch import nn

def net():
    model = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 3))
    model.input_size = (3, 12, 12)
    return model

def sorted_():
    class Sort(nn.Module):
        def forward(self, x):
            return x.sort(1).values

    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), Sort(), nn.Conv2d(32, 4, 3))
    model.input_size = (3, 12, 12)
    return model

def single():
    return nn.Sequential(nn.Conv2d(3, 32, 1))

def greedy():
    raise MemoryError
"""


def test_one_model_in_this_process(tool, tmp_path, monkeypatch):
    (tmp_path / "made_up_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    row = tool.examine("python:made_up_models:net", 0.7, "2", 60)
    assert (row["status"], row["decomposed"], row["pruned"], row["narrowest"]) == ("full", "2/2", "1/1", 75.0)
    assert row["error"] < 1e-6 and row["verifying"] <= row["seconds"] and row["macs_after"] < row["macs_before"]
    assert row["codes"] == {} and row["rule_failures"] == []
    row = tool.examine("python:made_up_models:sorted_", 0.7, "2", 60)
    assert (row["status"], row["codes"]) == ("partial", {"taken-over-channels": 1})
    assert row["reason"] == "1 x sort is taken over its channels"
    row = tool.examine("python:made_up_models:single", 0.7, "auto", 60)
    assert row["status"] == "none" and "1x1 kernel" in row["reason"]
    assert tool.examine("python:made_up_models:absent", 0.7, "auto", 60)["status"] == "not buildable"
    assert tool.examine("python:made_up_models:greedy", 0.7, "auto", 60)["status"] == "memory"


def test_no_parameter_stays_constant(load_tool):
    """Norms that are still the identity would hide a channel cut in the wrong place."""
    row = load_tool("coverage_row.py")
    first, again = (row.load_disturbed("demo:digits").model.state_dict() for _ in range(2))
    norms = [name for name in first if name.endswith(("bn1.weight", "bn2.weight", "bn1.bias", "bn2.bias"))]
    assert len(norms) == 14
    for name in norms:
        assert 0.05 < first[name].std() < 0.2 and torch.equal(first[name], again[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("source", SAMPLE)
def test_the_sample_is_compressed_and_proved_right(tool, source):
    """At 70 % of the channels and rank 2; all of it in about a minute."""
    pytest.importorskip(source.partition(":")[0])
    row = tool.examine(source, 0.7, "auto", 120)
    assert row["status"] in ("full", "partial"), row
    assert row["macs_down"] >= 15, row
    assert row["error"] < 1e-4, row
    assert row["narrowest"] >= 60, row


def test_several_processes_give_the_same_rows(sweep):
    names = [f"timm:{name}" for name in ("works", "dies", "fails", "a", "b")]
    rows, _, examined = sweep(*names, "--jobs", "3")
    assert {row["model"]: row["status"] for row in rows} == {
        "timm:works": "full", "timm:dies": "memory", "timm:fails": "error", "timm:a": "full", "timm:b": "full",
    }  # fmt: skip
    assert sorted(examined) == ["a", "b", "dies", "fails", "works"]


def test_jobs_are_submitted(sweep, tmp_path):
    pytest.importorskip("submitit", reason="needs pip install submitit")
    rows, _, examined = sweep("timm:works", "timm:fails", "--submit", "local", "--logs", str(tmp_path / "logs"))
    assert {row["model"]: row["status"] for row in rows} == {"timm:works": "full", "timm:fails": "error"}
    assert sorted(examined) == ["fails", "works"]


def test_a_reason_with_other_numbers_is_told_once(load_tool):
    row, page = load_tool("coverage_row.py"), load_tool("coverage_page.py")
    left = [
        (1, "pruning it breaks the model (shape [1, 7])"),
        (1, "it is a head"),
        (2, "pruning it breaks the model (9)"),
    ]
    expected = "3 x pruning it breaks the model (shape [1, 7]); 1 x it is a head"
    assert row.counted_reasons(left) == expected
    old = {"model": "timm:a", "status": "partial", "reason": "; ".join(f"{n} x {words}" for n, words in left)}
    assert f"| {expected} |" in page.markdown([old], ["command"])
