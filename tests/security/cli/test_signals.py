"""A signal ends a command in order: children ended, temporary folders gone, one line, one exit code."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from norton_plugin.cli import signals


def _default_signals():
    """Let the command be told by signals, even where the tests run under nohup or in the background of a script."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def _running(folder, environment, *arguments):
    """A command in a session of its own, with a folder of its own for whatever is temporary."""
    # Sockets of processes that load images lie in it, and their paths may have no more than 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="norton-", dir="/tmp"))
    (folder / "scratch").symlink_to(scratch)
    places = {"TMPDIR": scratch, "XDG_CACHE_HOME": folder / "cache", "TORCHINDUCTOR_CACHE_DIR": folder / "inductor"}
    environment = {**environment, **{key: str(place) for key, place in places.items()}}
    command = [sys.executable, "-m", "norton_plugin", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_default_signals,
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "ready").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        shutil.rmtree(scratch, ignore_errors=True)


def _check_clean(answer_of, folder, process, number):
    """Everything that a command leaves behind which a signal ended."""
    out, err = process.communicate(timeout=60)
    answer = answer_of(process.returncode, out, err)
    assert answer.code == 128 + number
    assert answer.error["type"] == "Interrupted"
    expected = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert answer.error["message"] == expected
    assert "Traceback" not in err
    assert list((folder / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_a_command_in_order(folder, environment, answer_of, number):
    with _running(folder, environment, "inspect", "python:cli_slow_models:at_once", "--json") as process:
        process.send_signal(number)
        _check_clean(answer_of, folder, process, number)


@pytest.mark.parametrize("to", [os.killpg, pytest.param(os.kill, marks=pytest.mark.slow)])
def test_processes_that_load_images_end_too(folder, environment, answer_of, to):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    from PIL import Image

    for name in "ab":
        (folder / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (16, 16), i).save(folder / "data" / name / f"{i}.png")
    options = [
        "--input-size",
        "1x16x16",
        "--data",
        "data",
        "--batch-size",
        "2",
        "--workers",
        "2",
        "-o",
        "out",
        "--json",
    ]
    with _running(folder, environment, "finetune", "python:cli_slow_models:plain", *options) as process:
        workers = [Path("/proc", pid) for pid in (folder / "ready").read_text().split()]
        assert len(workers) == 2
        assert list((folder / "scratch").iterdir()) != []
        to(process.pid, signal.SIGTERM)
        _check_clean(answer_of, folder, process, signal.SIGTERM)
        assert not any(worker.exists() for worker in workers)
    assert not (folder / "out").exists()


def test_a_second_signal_does_not_wait_for_cleaning_up(folder, environment):
    with _running(folder, environment, "inspect", "python:cli_slow_models:slow_to_clean_up") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None  # it cleans up
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - start < 30
    assert (process.returncode, out) == (143, "")
    assert "Traceback" not in err


def _send_itself(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python's handler runs between two of its instructions


def test_the_same_request_twice_is_one(monkeypatch):
    monkeypatch.setattr(signals.os, "_exit", lambda code: pytest.fail(f"ended at once with {code}"))
    before = signal.getsignal(signal.SIGTERM)
    with signals.interruptible() as told:
        with pytest.raises(KeyboardInterrupt), told.while_working():
            _send_itself(signal.SIGTERM)
        _send_itself(signal.SIGTERM)
    assert told.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.interruptible():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        signal.signal(signal.SIGHUP, before)


def test_half_written_images_are_removed(folder, monkeypatch):
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")
    from PIL import Image

    from norton_plugin.mm import pack_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "data" / "a").mkdir(parents=True)
    Image.new("L", (16, 16)).save(folder / "data" / "a" / "1.png")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(folder / "data")
    assert [path for path in (folder / "cache").rglob("*") if path.is_file()] == []
