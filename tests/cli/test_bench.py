"""``norton bench``: figures of an artefact, and what it refuses."""

import json

import pytest


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    from norton_plugin.cli.app import run

    folder = tmp_path_factory.mktemp("bench") / "digits"
    assert run(["compress", "demo:digits", "--rank", "1", "--keep", "0.5", "-o", str(folder)]) == 0
    return folder


def test_figures_of_an_artefact(norton, artefact, tmp_path):
    path = tmp_path / "bench.json"
    answer = norton("bench", artefact, "--rounds", "3", "--batch", "1,2", "-o", path, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found == json.loads(path.read_text())
    assert [(setting["batch"], setting["threads"], setting["rounds"]) for setting in found["settings"]] == [
        (1, 1, 3),
        (2, 1, 3),
    ]
    report = json.loads((artefact / "norton.json").read_text())["report"]
    assert (found["macs_dense"], found["macs"]) == (report["macs_before"], report["macs_after"])
    assert found["macs_ratio"] == pytest.approx(report["macs_before"] / report["macs_after"])
    assert {layer["name"] for layer in found["layers"]} == {
        layer["name"] for layer in report["layers"] if layer["macs_before"] != layer["macs_after"]
    }


def test_tables_for_people(norton, artefact):
    answer = norton("bench", artefact, "--rounds", "3", "--no-layers")
    assert answer.code == 0, answer.err
    assert "delivered" in answer.out and "times as fast as the dense model" in answer.out


def test_what_norton_deploy_chose_is_what_is_timed(norton, artefact, tmp_path, monkeypatch):
    from norton_plugin.bench import candidates

    fast, given = tmp_path / "fast", []
    assert norton("deploy", artefact, "-o", fast, "--rounds", "1").code == 0
    prepare = candidates.prepare
    monkeypatch.setattr(
        candidates, "prepare", lambda *a, forms, **b: given.append(forms) or prepare(*a, forms=forms, **b)
    )
    found = {}
    for folder in (artefact, fast):
        answer = norton("bench", folder, "--rounds", "1", "--no-layers", "--json")
        assert answer.code == 0, answer.err
        found[folder] = json.loads(answer.out)["forms"]
    blocks = json.loads((fast / "forms.json").read_text())["blocks"]
    assert blocks
    assert given == ["static", "static", "static", {block["name"]: block["form"] for block in blocks}]
    assert found == {artefact: "static", fast: "deployed"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--runtimes", "tensorrt"), "--runtimes names 'tensorrt'; expected some of pytorch,onnxruntime,openvino"),
        (("--batch", "0"), "--batch is '0'; expected numbers from 1 to"),
        (("--batch", "1,,2"), "--batch is '1,,2'"),
        (("--thread-counts", "9999"), "--thread-counts is '9999'"),
        (("--clock", "sun"), "--clock is 'sun'; expected one of wall, processor"),
        (("--clock", "processor", "--thread-counts", "1,2"), "use it with one thread"),
        (("-o", "."), "is a folder; expected a file"),
    ],
)
def test_bad_options(norton, artefact, options, words):
    answer = norton("bench", artefact, *options)
    assert answer.code == 2
    assert words in " ".join(answer.err.split())


def test_a_model_that_was_not_compressed(norton):
    answer = norton("bench", "demo:digits")
    assert answer.code != 0
    assert "is no artefact; compress it first" in " ".join(answer.err.split())
