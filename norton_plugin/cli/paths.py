"""Paths on the command line, looked at before any work is done."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

import typer

from norton_plugin.errors import ArtifactError, SourceError

_LONGEST_NAME = 200  # bytes; file systems take 255, and what is written first gets a longer name for a while
_EXPORTED = (".onnx", ".pt2")
_CONFIGS = (".py", ".json", ".yaml", ".yml")
_REASONS = {
    errno.ENOENT: "it is not there",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EACCES: "you may not read it",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long",
}


def existing_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse an option's path that is no file which can be read.

    Raises:
        SourceError: With the reason.
    """
    if value is not None:
        _check_readable(_name(param), value, folder=False)
    return value


def existing_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse an option's path that is no folder which can be read.

    Raises:
        SourceError: With the reason.
    """
    if value is not None:
        _check_readable(_name(param), value, folder=True)
    return value


def existing_file_or_pretrained(param: typer.CallbackParam, value: str | None) -> str | None:
    """Refuse an option's text that is neither ``pretrained`` nor a file which can be read.

    Raises:
        SourceError: With the reason.
    """
    if value is not None and value != "pretrained":
        _check_readable(_name(param), read_path(value), folder=False)
    return value


def artefact_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse an option's path where no artefact can be put; what may be replaced there is decided elsewhere.

    Raises:
        ArtifactError: With the reason.
    """
    if value is not None:
        option, target = _name(param), _resolved(_name(param), value)
        if _holds_current_folder(target):
            raise ArtifactError(
                f"{option} {_shown(value)} is the current folder or above it; give the name of a new one"
            )
        if target.exists() and not target.is_dir():
            raise ArtifactError(f"{option} {_shown(value)} is a file; give the name of a new folder")
        _check_writable(option, target.parent)
    return value


def working_folder(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse an option's path that is no folder which can be written, nor can become one.

    Raises:
        ArtifactError: With the reason.
    """
    if value is not None:
        check_working_folder(_name(param), value)
    return value


def check_working_folder(option: str, path: Path, *, apart_from: Path | None = None) -> None:
    """Refuse a path that is no folder which can be written, nor can become one.

    Args:
        option: What gave the path, for the message.
        path: The folder.
        apart_from: The folder of an artefact: it could not be written where something else lies in it.

    Raises:
        ArtifactError: With the reason.
    """
    target = _resolved(option, path)
    if any(0xD800 <= ord(character) <= 0xDFFF for character in str(target)):  # how Python shows bytes that are not text
        raise ArtifactError(f"{option} {_shown(path)} is not UTF-8, which log files need; give another name")
    if apart_from is not None:
        artefact = _resolved("the output", apart_from)
        if artefact == target or artefact in target.parents:
            raise ArtifactError(f"{option} {_shown(path)} is the output or inside of it; give another folder")
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{option} {_shown(path)} is a file; expected a folder, or the name of a new one")
    _check_writable(option, target)


def output_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse an option's path that no file can be written to; one that is there already is replaced.

    Raises:
        ArtifactError: With the reason.
    """
    if value is not None:
        option, target = _name(param), _resolved(_name(param), value)
        if target.exists() and not target.is_file():
            other = "a folder" if target.is_dir() else "a device, pipe or socket"
            raise ArtifactError(f"{option} {_shown(value)} is {other}; expected a file, or the name of a new one")
        _check_writable(option, target.parent)
    return value


def new_config(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse an option's path that no config can be written to: there already, of another suffix, or in no folder.

    Raises:
        ArtifactError: With the reason.
    """
    if value is not None:
        if value.suffix not in _CONFIGS:
            raise ArtifactError(f"{_name(param)} {_shown(value)} should end in one of {', '.join(_CONFIGS)}")
        option, target = _name(param), _resolved(_name(param), value)
        if os.path.lexists(value):
            raise ArtifactError(f"{option} {_shown(value)} is already there; give another name, or remove it")
        if not target.parent.is_dir():
            raise ArtifactError(f"{option} {_shown(value)} is in a folder that is not there; make it first")
        _check_writable(option, target.parent)
    return value


def exported_file(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse an option's path that no exported file can be written to: of another suffix, or in no folder.

    Raises:
        ArtifactError: With the reason.
    """
    if value is not None:
        option, target = _name(param), _resolved(_name(param), value)
        if target.is_dir():
            raise ArtifactError(f"{option} {_shown(value)} is a folder; give the name of a file")
        if value.suffix not in _EXPORTED:
            raise ArtifactError(f"{option} {_shown(value)} should end in {' or '.join(_EXPORTED)}")
        if not target.parent.is_dir():
            raise ArtifactError(f"{option} {_shown(value)} is in a folder that is not there; make it first")
        _check_writable(option, target.parent)
    return value


def read_path(text: str | Path) -> Path:
    """Return a text as a path; an empty one would mean the current folder.

    Raises:
        typer.BadParameter: It is empty or holds a NUL character.
    """
    if not str(text):
        raise typer.BadParameter("it is empty; expected a path")
    if "\0" in str(text):
        raise typer.BadParameter(f"{str(text)!r} holds a NUL character, which no path can")
    return Path(text)


def reason(error: OSError) -> str:
    """Return in words why a path cannot be used."""
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def _name(param: typer.CallbackParam) -> str:
    return param.opts[0] if param.opts[0].startswith("-") else str(param.metavar or param.name)


def _shown(path: Path) -> str:
    return repr(str(path))


def _check_readable(option: str, path: Path, *, folder: bool) -> None:
    wanted = "folder" if folder else "file"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SourceError(f"{option} {_shown(path)} is not a {wanted}: {reason(error)}") from error
    if not (stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode)):
        other = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device, pipe or socket"
        raise SourceError(f"{option} {_shown(path)} is not a {wanted}: it is {other}")
    try:
        if folder:
            os.scandir(path).close()
            os.stat(os.path.join(path, "."))  # the right to open what is in it is another one
        else:
            path.open("rb").close()
    except OSError as error:
        raise SourceError(f"{option} {_shown(path)} cannot be read: {reason(error)}") from error


def _resolved(option: str, path: Path) -> Path:
    """Return the absolute path without symbolic links, of something that need not be there."""
    try:
        target = path.resolve()
        target.exists()
    except RuntimeError as error:  # until Python 3.12
        raise ArtifactError(f"{option} {_shown(path)} cannot be used: {_REASONS[errno.ELOOP]}") from error
    except OSError as error:
        raise ArtifactError(f"{option} {_shown(path)} cannot be used: {reason(error)}") from error
    longest = max(len(os.fsencode(part)) for part in target.parts)
    if longest > _LONGEST_NAME:
        raise ArtifactError(
            f"{option} {_shown(path)} cannot be used: a name of {longest} bytes; give one of at most {_LONGEST_NAME}"
        )
    return target


def _holds_current_folder(target: Path) -> bool:
    try:
        here = Path.cwd().resolve()
    except FileNotFoundError:  # it was removed
        return False
    return target == here or target in here.parents


def _check_writable(option: str, folder: Path) -> None:
    """Write and remove an empty folder in the nearest folder that is there; permissions alone do not tell."""
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".norton-", dir=folder):
            pass
    except OSError as error:
        why = "you may not write there" if error.errno == errno.EACCES else reason(error)
        raise ArtifactError(f"{option} cannot be used: nothing can be written to {str(folder)!r} ({why})") from error
