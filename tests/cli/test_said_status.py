"""Long work says so where stderr is no terminal, such as in the log of a job."""

import io
import re
import time

import pytest

from norton_plugin.cli.output import Output
from norton_plugin.errors import ArtifactError


@pytest.fixture
def out(monkeypatch):
    monkeypatch.setattr("norton_plugin.pipeline.step_log.SECONDS", 0.05)
    return Output(as_json=False, verbose=False, threads=None, stdout=io.StringIO(), stderr=io.StringIO())


def _wait_for(stream, words):
    deadline = time.monotonic() + 30
    while words not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_what_lasts_is_said_and_what_follows_it(out):
    stream = out.err.file
    with out.status("building resnet18") as status:
        assert stream.getvalue() == ""
        _wait_for(stream, "still building resnet18: 0 s\n")
        status.update("measuring forms")
        _wait_for(stream, "still measuring forms: 0 s\n")
        status.update("")
        time.sleep(0.1)  # a line that was on its way
        before = stream.getvalue()
        time.sleep(0.2)
        assert stream.getvalue() == before
    assert out.out.file.getvalue() == ""


def test_how_far_it_is_is_said(out):
    with out.counting("evaluating") as count:
        count(3, 16)
        _wait_for(out.err.file, "still evaluating: 0 s, step 3 of 16\n")
    after = out.err.file.getvalue()
    time.sleep(0.2)
    assert out.err.file.getvalue() == after


def test_a_demonstration_says_what_it_is_at(norton, monkeypatch, tmp_path):
    def run_demo(directory, *, on_step, on_note, **settings):
        time.sleep(0.3)
        on_step("training the dense network", 3, 16)
        time.sleep(0.3)
        on_step("training the dense network", 4, 16)
        time.sleep(0.3)
        on_step("compressing to half", None, None)
        time.sleep(0.3)
        raise ArtifactError("that is enough")

    monkeypatch.setattr("norton_plugin.pipeline.step_log.SECONDS", 0.05)
    monkeypatch.setattr("norton_plugin.demo.run_demo", run_demo)
    answer = norton("demo", "-o", tmp_path / "demo")
    assert answer.out == "" and answer.err.endswith("error: that is enough\n")
    lines = [re.sub(r": \d+ s", "", line) for line in answer.err.splitlines()]
    training = "still training the dense network, step"
    expected = ["still loading the digits", f"{training} 3 of 16", f"{training} 4 of 16", "still compressing to half"]
    assert [line for line in dict.fromkeys(lines) if line in expected] == expected


def test_every_epoch_of_a_fine_tuning_is_said(norton, digit_folder, tmp_path):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    options = ["--data", digit_folder / "train", "--val", digit_folder / "test", "--epochs", 2, "--batch-size", 20]
    answer = norton("finetune", "demo:digits", *options, "-o", tmp_path / "tuned")
    assert answer.code == 0, answer.err
    lines = [line for line in answer.err.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all(re.search(r"loss \d+\.\d+, top-1 \d+\.\d+ % \(\d+\.\d s\)$", line) for line in lines)
