"""What the attacks on the command line share."""

import json
import os
import sys
from pathlib import Path

import pytest

import norton_plugin
from norton_plugin.cli.app import run

ERROR_KEYS = {"type", "message", "exit_code"}
SLOW_MODEL = """
import multiprocessing, pathlib, time

import torch


class Slow(torch.nn.Module):
    input_size, mean, std = (1, 16, 16), (0.5,), (0.5,)

    def __init__(self, cleanup):
        super().__init__()
        self.cleanup = cleanup
        self.conv = torch.nn.Conv2d(1, 8, 3)

    def forward(self, x):
        if x.shape[0] > 1 or self.cleanup:
            workers = [child.pid for child in multiprocessing.active_children()]
            pathlib.Path("ready.part").write_text(" ".join(map(str, workers)))
            pathlib.Path("ready.part").rename("ready")
            try:
                time.sleep(60)
            finally:
                time.sleep(self.cleanup)
        return self.conv(x).mean((2, 3))


def plain():
    return Slow(0)


def at_once():
    return Slow(0.01)


def slow_to_clean_up():
    return Slow(60)


def leaves():
    raise SystemExit(0)
"""


class Answer:
    """What a command line in this process came to."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def error(self):
        """The JSON object on stdout, checked against the line on stderr."""
        (told,) = json.loads(self.out).values()
        assert set(told) == ERROR_KEYS
        assert told["exit_code"] == self.code
        beside = ("warning: ", "still ")  # the latter tells every ten seconds what a slow machine is at
        lines = [line for line in self.err.splitlines() if line and not line.startswith(beside)]
        assert lines == [f"error: {told['message']}"]
        return told


@pytest.fixture
def answer_of():
    """``(code, stdout, stderr)`` of a process as an ``Answer``."""
    return Answer


@pytest.fixture
def environment():
    """Variables under which a process imports the package that is tested here."""
    return {**os.environ, "PYTHONPATH": str(Path(norton_plugin.__file__).parents[1])}


@pytest.fixture
def norton(capsys):
    """Runs ``norton ARGUMENTS`` in this process."""

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a file, folders, links, a pipe and the models above in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cli_slow_models", raising=False)
    (tmp_path / "cli_slow_models.py").write_text(SLOW_MODEL)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full" / "sub").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Makes building a model a failure that no test mistakes for a refusal."""

    def refuse(*_, **__):
        raise AssertionError("work was done")

    monkeypatch.setattr("norton_plugin.cli.models.open_model", refuse)
    monkeypatch.setattr("norton_plugin.demo.run.load_digits", refuse)
