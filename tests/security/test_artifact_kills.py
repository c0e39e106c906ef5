"""A directory holds one whole artefact at any moment, whoever is killed and whoever else reads or writes."""

import errno
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from artefacts import FILES, at_step, in_child, loaded_value, names, save_value

from norton_plugin.artifact import WEIGHTS, folder_lock, read_manifest, weights
from norton_plugin.artifact.folder import is_temporary, pending_name
from norton_plugin.errors import ArtifactError

OTHERS = {"NOTES.txt", "work"}


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power failure would tell the difference, and busy disks take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An artefact of value 1 in a directory that also holds files of the user's."""
    directory = save_value(tmp_path / "small", 1)
    (directory / "NOTES.txt").write_text("mine")
    (directory / "work").mkdir()
    (directory / "work" / "log").write_text("mine too")
    return directory


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new" / "small"


def _steps(directory: Path, value: int) -> list[str]:
    with at_step(-1, _end) as steps:
        save_value(directory, value)
    return steps


def _telling(steps: list[str]) -> list[int]:
    """Every line of the functions that rename files, and some of the others."""
    return sorted(
        {n for n, name in enumerate(steps) if name in ("_replace", "_finish")} | set(range(0, len(steps), 41))
    )


def _check_users_files(directory: Path) -> None:
    assert (directory / "NOTES.txt").read_text() == "mine"
    assert (directory / "work" / "log").read_text() == "mine too"


def _killed_at(directory: Path, number: int) -> None:
    def attempt() -> None:
        with at_step(number, _end):
            save_value(directory, 2)

    assert in_child(attempt) == -signal.SIGKILL


def _kill_while_replacing(target: Path, choose: Callable[[list[str]], Iterable[int]]) -> list[int]:
    """Kills a save before the lines chosen; returns what stood there afterwards, in the order of the lines."""
    save_value(target, 1)
    left = []
    for number in choose(_steps(target, 2)):
        save_value(target, 1)
        _killed_at(target, number)
        left.append(loaded_value(target))
        _check_users_files(target)
        save_value(target, 3)
        assert loaded_value(target) == 3
        assert names(target) == FILES | OTHERS  # what the dead left is gone
    assert set(left) == {1, 2} and left == sorted(left)
    return left


def test_killed_while_replacing(target: Path) -> None:
    assert len(_kill_while_replacing(target, _telling)) >= 20


@pytest.mark.slow
def test_killed_while_replacing_before_every_line(target: Path) -> None:
    assert len(_kill_while_replacing(target, lambda steps: range(len(steps)))) >= 250


def test_killed_while_saving_for_the_first_time(empty: Path) -> None:
    outcomes = set()
    for number in _telling(_steps(empty, 2))[::2]:
        shutil.rmtree(empty, ignore_errors=True)
        _killed_at(empty, number)
        if (empty / "norton.json").exists():
            outcomes.add(loaded_value(empty))
        else:
            outcomes.add(0)
            with pytest.raises(ArtifactError, match="is not an artefact"):
                loaded_value(empty)
        assert loaded_value(save_value(empty, 3)) == 3
        assert names(empty) == FILES
    assert outcomes == {0, 2}


@pytest.mark.slow
def test_killed_at_random_times(target: Path) -> None:
    rng = random.Random(0)
    start = time.perf_counter()
    save_value(target, 2)
    duration = time.perf_counter() - start
    previous, kills = 2, 0
    for value in range(3, 1003):
        if value > 102 and kills >= 50:  # on a busy machine more savers end before they are killed
            break
        child = os.fork()
        if child == 0:
            save_value(target, value)
            os._exit(0)
        time.sleep(rng.uniform(0, 1.2 * duration))
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found = loaded_value(target)
        assert found in (previous, value)
        assert not [name for name in names(target) - FILES - OTHERS if not is_temporary(name)]
        _check_users_files(target)
        previous = found
    assert kills >= 50
    save_value(target, 1)
    assert names(target) == FILES | OTHERS


@pytest.mark.parametrize("kind", [OSError, MemoryError, KeyboardInterrupt])
def test_an_error_at_any_step_leaves_one_whole_artefact(target: Path, kind: type[BaseException]) -> None:
    total = len(_steps(target, 2))

    def fail() -> None:
        raise kind(errno.ENOSPC, "No space left on device")

    expected = KeyboardInterrupt if kind is KeyboardInterrupt else ArtifactError
    outcomes = set()
    for number in range(1 + random.Random(kind.__name__).randrange(13), total, 13):
        save_value(target, 1)
        with suppress(expected), at_step(number, fail):
            save_value(target, 2)
        outcomes.add(loaded_value(target))
        _check_users_files(target)
        save_value(target, 3)
        assert names(target) == FILES | OTHERS
    assert outcomes == {1, 2}


def test_a_failed_first_save_leaves_no_directory(empty: Path) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    total = len(_steps(empty, 2))
    shutil.rmtree(empty)
    for number in range(5, total // 2, 17):
        with pytest.raises(ArtifactError, match="No space left on device"), at_step(number, fail):
            save_value(empty, 2)
        assert not empty.exists()


def _repeat(work: Callable[[int], None], seconds: float) -> int:
    """Starts a child that repeats something; it ends with 0 after that time, or with 1 at an error."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            work(number)
            number += 1
        code = 0 if number > 5 else 2
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _savers_and_loaders(target: Path, seconds: float) -> None:
    children = [_repeat(lambda n, odd=odd: save_value(target, 4 * n + odd), seconds) for odd in (1, 2)]
    children += [_repeat(lambda _: loaded_value(target), seconds) for _ in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, 0, 0]
    assert loaded_value(target) >= 1
    assert names(target) == FILES | OTHERS
    _check_users_files(target)


def test_two_savers_and_two_loaders(target: Path) -> None:
    _savers_and_loaders(target, 2.0)


@pytest.mark.slow
def test_two_savers_and_two_loaders_for_half_a_minute(target: Path) -> None:
    _savers_and_loaders(target, 30.0)


def test_a_reader_between_the_two_renames_finds_the_new_weights(target: Path) -> None:
    seen = []

    def look() -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        seen.append((loaded_value(target), read_manifest(target).extra["value"]))
        sys.settrace(tracer)

    for number in _telling(_steps(target, 2)):
        save_value(target, 1)
        with at_step(number, look):
            save_value(target, 2)
    assert all(value == told for value, told in seen)
    assert {value for value, _ in seen} == {1, 2}


def test_a_living_writer_is_waited_for_and_its_files_stay(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        write(*arguments)

    write = weights.save_file
    child = os.fork()
    if child == 0:
        weights.save_file = stop
        save_value(target, 2)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    try:
        before = names(target)
        assert len(before - FILES - OTHERS) >= 2  # the lock and what is being written
        monkeypatch.setattr(folder_lock, "PATIENCE", 0.2)
        with pytest.raises(ArtifactError, match=r"another process has been writing to .* for 0.2 s"):
            save_value(target, 3)
        assert names(target) == before and loaded_value(target) == 1
    finally:
        os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert loaded_value(target) == 2 and names(target) == FILES | OTHERS
    assert loaded_value(save_value(target, 3)) == 3


def test_a_lock_that_was_removed_counts_for_nothing(tmp_path: Path) -> None:
    """Whoever waited for it would write together with those who come later."""
    path = tmp_path / ".norton-lock"
    with folder_lock._open(path) as waiting:
        path.unlink()
        assert folder_lock._lock(waiting, path) is None
        with folder_lock._open(path) as first, folder_lock._open(path) as second:
            assert folder_lock._lock(first, path) is True
            assert folder_lock._lock(second, path) is None


def test_weights_that_get_their_lasting_name_while_they_are_opened(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = target / pending_name(read_manifest(target).weights_hash)
    (target / WEIGHTS).rename(pending)
    opened, calls = weights.safe_open, []

    def late(path: Path, **options: str) -> object:
        calls.append(Path(path).name)
        if len(calls) == 1:
            pending.rename(target / WEIGHTS)
        return opened(path, **options)

    monkeypatch.setattr(weights, "safe_open", late)
    assert loaded_value(target) == 1
    assert calls == [pending.name, WEIGHTS]


def test_without_locks_nothing_is_swept_and_saving_still_works(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    left = target / f".norton-{'0' * 32}.tmp"
    left.mkdir()
    monkeypatch.setattr(folder_lock.fcntl, "flock", unknown)
    assert loaded_value(save_value(target, 2)) == 2
    assert names(target) == FILES | OTHERS | {left.name}
    monkeypatch.undo()
    save_value(target, 3)
    assert names(target) == FILES | OTHERS
