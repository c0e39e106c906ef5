"""What stands in a directory beside an artefact, how files are made there, and places where none can be."""

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from artefacts import FILES, Net, in_child, loaded_value, names, rewrite, save_value

from norton_plugin.artifact import MANIFEST, WEIGHTS, check_replaceable, load, read_manifest
from norton_plugin.artifact.folder import pending_name
from norton_plugin.errors import ArtifactError


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return save_value(tmp_path / "small", 1)


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, those of links not included."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_files_of_others_are_kept(target: Path) -> None:
    (target / "NOTES.txt").write_text("mine")
    (target / "work" / "deep").mkdir(parents=True)
    (target / "work" / "deep" / "log").write_text("mine")
    (target / ".hidden").write_text("mine")
    (target / ".norton-notes").write_text("like ours, but not ours")
    (target / "link").symlink_to("NOTES.txt")
    before = tree(target)
    save_value(target, 2)
    after = tree(target)
    assert {k: v for k, v in after.items() if k not in FILES} == {k: v for k, v in before.items() if k not in FILES}
    assert loaded_value(target) == 2 and (target / "link").is_symlink()


def _other_weights(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"somebody's own weights")


def _cut_weights(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-1])


def _flipped_weights(directory: Path) -> None:
    data = bytearray((directory / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (directory / WEIGHTS).write_bytes(data)


def _other_manifest(directory: Path) -> None:
    (directory / MANIFEST).write_text('{"format": "of another tool"}')


def _no_manifest(directory: Path) -> None:
    (directory / MANIFEST).unlink()


def _weights_are_a_folder(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()
    (directory / WEIGHTS / "mine").write_text("mine")


def _manifest_is_a_pipe(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    os.mkfifo(directory / MANIFEST)


def _weights_are_a_device(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "change",
    [
        _other_weights,
        _cut_weights,
        _flipped_weights,
        _other_manifest,
        _no_manifest,
        _weights_are_a_folder,
        _manifest_is_a_pipe,
        _weights_are_a_device,
    ],
)
def test_what_is_no_whole_artefact_is_neither_loaded_nor_replaced(target: Path, change: Callable[[Path], None]) -> None:
    change(target)
    before = tree(target)
    for attempt in (lambda: save_value(target, 2), lambda: load(target, Net()), lambda: check_replaceable(target)):
        with pytest.raises(ArtifactError):
            attempt()
        assert tree(target) == before


def test_a_foreign_file_or_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / WEIGHTS).write_bytes(b"a cat")
    (tmp_path / "file").write_bytes(b"text")
    before = tree(tmp_path)
    for name in ("photos", "file", "file/below"):
        with pytest.raises(ArtifactError):
            save_value(tmp_path / name, 1)
        with pytest.raises(ArtifactError):
            load(tmp_path / name, Net())
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("umask", "files", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_modes_are_those_of_the_umask(tmp_path: Path, umask: int, files: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        directory = save_value(tmp_path / "small", 1)
        save_value(directory, 2)
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((directory / name).stat().st_mode) for name in FILES}
    assert modes == dict.fromkeys(FILES, files)
    assert stat.S_IMODE(directory.stat().st_mode) == folder


def test_everything_is_on_the_disk_before_the_new_artefact_takes_over(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        events.append(f"sync {path.name}")
        sync(number)

    def replaced(old: Path, new: Path) -> None:
        events.append(f"rename {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save_value(target, 2)
    pending = pending_name(read_manifest(target).weights_hash)
    assert sorted(events[:2]) == [f"sync {WEIGHTS}", f"sync {MANIFEST}"]
    assert events[2:] == [
        f"rename {pending}",
        f"sync {target.name}",
        f"rename {MANIFEST}",
        f"sync {target.name}",
        f"rename {WEIGHTS}",
        f"sync {target.name}",
    ]


def test_a_full_disk(target: Path) -> None:
    """The weights have 17 kB, of which 10 kB can be written."""

    def attempt() -> None:
        with pytest.raises(ArtifactError, match="File too large"):
            save_value(target, 2)
        with pytest.raises(ArtifactError, match="File too large"):
            save_value(target.with_name("new"), 2)

    before = tree(target.parent)
    assert in_child(attempt, file_size=10_000) == 0
    assert tree(target.parent) == before and names(target.parent) == {target.name}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(target: Path) -> None:
    before = tree(target)
    target.chmod(0o555)
    try:
        with pytest.raises(ArtifactError, match="Permission denied"):
            save_value(target, 2)
    finally:
        target.chmod(0o755)
    assert tree(target) == before and names(target) == FILES


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real")
    for value in (1, 2):
        assert loaded_value(save_value(link, value)) == value
        assert link.is_symlink() and names(tmp_path / "real") == FILES
    shutil.rmtree(tmp_path / "real")
    assert loaded_value(save_value(link, 3)) == 3  # a link that led nowhere: what it names is made
    assert link.is_symlink() and loaded_value(tmp_path / "real") == 3


def test_files_that_are_links_are_read_and_replaced_not_followed(target: Path) -> None:
    """As in the cache of a model hub, which must not be written to."""
    blobs = target.parent / "blobs"
    blobs.mkdir()
    for name in FILES:
        (target / name).rename(blobs / name)
        (target / name).symlink_to(blobs / name)
    before = tree(blobs)
    assert loaded_value(target) == 1
    save_value(target, 2)
    assert loaded_value(target) == 2 and tree(blobs) == before
    assert not any((target / name).is_symlink() for name in FILES)


def test_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for value in (1, 2):
        save_value(Path("."), value)
        assert loaded_value(Path(".")) == value
        assert names(tmp_path / "here") == FILES and os.path.samestat(os.stat("."), (tmp_path / "here").stat())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="exists and is not an artefact"):
        save_value(Path("."), 3)
    assert names(tmp_path) == {"here"}


def test_a_current_directory_that_is_gone(tmp_path: Path) -> None:
    def attempt() -> None:
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        for work in (lambda: save_value(Path("."), 1), lambda: load(".", Net())):
            with pytest.raises(ArtifactError):
                work()

    assert in_child(attempt) == 0


@pytest.mark.parametrize("name", ["with\0nul", "loop", "loop/below", "x" * 300, "\udcff\0"])
def test_names_that_no_directory_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    for attempt in (
        lambda: save_value(path, 1),
        lambda: load(path, Net()),
        lambda: read_manifest(path),
        lambda: check_replaceable(path),
    ):
        with pytest.raises(ArtifactError) as caught:
            attempt()
        assert str(caught.value).isprintable()
    assert names(tmp_path) == {"loop"}


def test_a_name_that_is_no_text_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """The library that reads tensors could not open files there."""
    with pytest.raises(ArtifactError, match="UnicodeEncodeError") as caught:
        save_value(tmp_path / "\udcff", 1)
    assert str(caught.value).isprintable() and names(tmp_path) == set()


def test_an_artefact_of_an_earlier_release_is_loaded_and_replaced(target: Path) -> None:
    rewrite(target, lambda data: data.pop("manifest_hash"), signed=False)
    (target / WEIGHTS).chmod(0o600)
    assert loaded_value(target) == 1
    assert loaded_value(save_value(target, 2)) == 2


def test_the_callers_model_is_left_as_it_was(target: Path) -> None:
    dense = Net().eval()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    load(target, dense)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
