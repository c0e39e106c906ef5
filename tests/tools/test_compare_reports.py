"""tools/compare_reports.py: which fields of two reports count as changed, and one model from end to end."""

import copy
import json

import pytest

REPORT = {
    "model": "cifar:resnet20",
    "status": "full",
    "macs_after": 1000,
    "seconds": 1.5,
    "decomposition": {"layers": [{"names": ["conv1"], "nmse_mean": 0.5}], "skipped": []},
    "pruning": {"groups": [{"root": "conv1", "after": 8, "error": 1e-5}], "skipped": [{"name": "fc", "reason": "fc"}]},
    "largest_error": 1e-9,
}


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_reports.py")


def changed(**values):
    """The report with other values, by dotted path; a number is a place in a list."""
    report = copy.deepcopy(REPORT)
    for path, value in values.items():
        *above, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place = report
        for part in above:
            place = place[part]
        place[last] = value
    return report


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, []),
        ({"seconds": 90.0, "pruning__skipped__0__reason": "in other words", "verify_seconds": 2.0}, []),
        ({"status": "partial"}, ["status: full -> partial"]),
        ({"macs_after": 1001}, ["macs_after: 1000 -> 1001"]),
        ({"macs_after": None}, ["macs_after: 1000 -> None"]),
        ({"pruning__groups__0__after": 16}, ["pruning.groups[0].after: 8 -> 16"]),
        ({"pruning__skipped__0__name": "head"}, ["pruning.skipped[0].name: fc -> head"]),
        ({"pruning__skipped": []}, ["pruning.skipped: [{'name': 'fc', 'reason': 'fc'}] -> []"]),
        # NMSEs are equal up to the order of additions, errors up to rounding.
        ({"decomposition__layers__0__nmse_mean": 0.5 + 4e-7}, []),
        ({"decomposition__layers__0__nmse_mean": 0.500001}, ["decomposition.layers[0].nmse_mean: 0.5 -> 0.500001"]),
        ({"pruning__groups__0__error": 9e-5}, []),
        ({"pruning__groups__0__error": 2e-4}, ["pruning.groups[0].error: 1.0e-05 -> 2.0e-04"]),
        ({"pruning__groups__0__error": 5e-7}, ["pruning.groups[0].error: 1.0e-05 -> 5.0e-07"]),
        ({"largest_error": 1e-7}, []),
    ],
)
def test_differences(tool, values, lines):
    assert list(tool.differences(REPORT, changed(**values))) == lines


def test_fields_that_go_count_and_fields_that_come_do_not(tool):
    more = REPORT | {"new": 1}
    assert list(tool.differences(REPORT, more)) == []
    assert list(tool.differences(more, REPORT)) == ["new: 1 -> None"]


def test_files_are_compared_model_by_model(tool, tmp_path, capsys):
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    other = changed(model="cifar:resnet56")
    before.write_text("\n".join(map(json.dumps, [REPORT, other])))
    after.write_text("\n".join(map(json.dumps, [changed(status="none"), changed(model="demo:digits")])))
    assert tool.compare(before, before)["differ"] == {}
    assert capsys.readouterr().out == "2 models compared, 0 differ\n"
    assert len(tool.compare(before, after)["differ"]) == 3
    assert capsys.readouterr().out.splitlines() == [
        "cifar:resnet20: status: full -> none",
        f"cifar:resnet56: only in {before.name}",
        f"demo:digits: only in {after.name}",
        "1 models compared, 3 differ",
    ]


def test_a_model_is_compressed_once_and_compared_with_itself(tool, tmp_path, capsys):
    path = tmp_path / "reports.jsonl"
    tool.write(["demo:digits", "demo:absent"], path, 60.0)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["demo:digits", "full"],
        ["demo:absent", "SourceError"],
    ]
    digits, absent = map(json.loads, path.read_text().splitlines())
    # 32 channels at 16 x 16 behind the stem; a first stage of 0.7 * 32 channels, rounded to 24.
    layers = {layer["name"]: layer for layer in digits["layers"]}
    assert layers["layer1.conv2"]["macs_before"] == 32 * 32 * 9 * 256
    assert layers["layer1.conv2"]["macs_after"] == 2 * 24 * (24 + 3 + 3) * 256
    assert len(digits["structure"]) == 64 and absent["failed"] == "SourceError"
    tool.write(["demo:digits"], path, 60.0)
    assert capsys.readouterr().out == "" and len(path.read_text().splitlines()) == 2
    assert tool.compare(path, path)["differ"] == {}
