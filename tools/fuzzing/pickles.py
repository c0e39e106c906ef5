"""Target: checkpoints that are pickles of an attacker, at every place that reads checkpoints of others."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzzing.pickle_programs import Program, attacks, random_program, whole
from fuzzing.target import Target
from fuzzing.verdict import OK, REFUSED, Result, Wrong, attempt, note
from fuzzing.watch import armed, lay_bait, trace
from norton_plugin import zoo

_CONFIG = "model = dict(type='ResNet', depth=18)\n"
# What starts a file that torch wrote before version 1.6: magic number, protocol, facts of the machine.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})


@dataclass(frozen=True)
class State:
    """What the cases share."""

    folder: Path
    attacks: list[tuple[str, Program]]
    resume: Callable[[Path], Any] | None
    export: Callable[[Path, Path, Path], Any] | None


def prepare(folder: Path) -> State:
    """Import what reads checkpoints; mmengine's loads as well where it is installed."""
    bait = lay_bait(folder)
    (folder / "config.py").write_text(_CONFIG)
    resume, export = None, None
    if find_spec("mmengine") is not None:
        import mmengine.runner.checkpoint
        from mmengine.logging import MessageHub

        from norton_plugin.mm import export_config_of_checkpoint as export

        def resume(path: Path) -> Any:
            """Do what a Runner does with a checkpoint before it touches the model."""
            content = mmengine.runner.checkpoint._load_checkpoint(str(path), map_location="cpu")
            if isinstance(content, dict) and "message_hub" in content:
                MessageHub.get_instance("fuzz").load_state_dict(content["message_hub"])
            return content

    return State(folder, attacks(bait), resume, export)


def run(state: State, rng: random.Random, number: int) -> Result:
    """Write one checkpoint and read it everywhere; the attacks come first, one after the other."""
    if number < len(state.attacks):
        label, program = state.attacks[number]
    else:
        label, program = "random program", random_program(rng)
    path, exported = state.folder / "checkpoint.pth", state.folder / "exported.py"
    content = _file(rng, whole(program))
    note(f"{label}: {len(content)} bytes {whole(program)[:300]!r}")
    path.write_bytes(content)
    answer = attempt("read_state_dict", zoo.read_state_dict, path)
    if not answer.refused:
        _check_state(answer.value)
    if state.resume is not None:
        _check_resume(state.resume, path)
    if state.export is not None:
        _check_export(state.export, state.folder / "config.py", path, exported)
    return REFUSED if answer.refused else OK


def _file(rng: random.Random, program: bytes) -> bytes:
    """Return a checkpoint around a pickle: the zip that torch writes, the older form, or the bare pickle."""
    kind = rng.choice(("zip", "zip", "zip", "legacy", "bare"))
    if kind == "bare":
        return program
    if kind == "legacy":
        head = b"".join(pickle.dumps(part, protocol=2) for part in _LEGACY)
        return head + program + pickle.dumps(["0"], protocol=2) + struct.pack("<q2f", 2, 1.0, 2.0)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        contents = {"data.pkl": program, "version": b"3\n", "byteorder": b"little", "data/0": struct.pack("<2f", 1, 2)}
        for name, content in contents.items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def _check_state(state: Any) -> None:
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise Wrong("read_state_dict returned something else than tensors", f"{type(state)}")
    for value in state.values():
        if value.layout == torch.strided and value.numel() < 10**6 and not value.is_meta:
            value.clone()  # reads all of it: memory that is not its own would show


def _check_resume(resume: Callable[[Path], Any], path: Path) -> None:
    """Load as mmengine does: its errors are its own, but nothing may run, and no object be made of bytes."""
    content = None
    with armed() as seen:
        try:
            content = resume(path)
        except Exception as error:
            note(f"mmengine's load: {type(error).__name__}: {error}"[:300])
    touched = trace(seen)
    if touched is not None:
        raise Wrong(f"mmengine's load {touched[0]}", touched[1])
    for value in _parts(content, 0):
        if isinstance(value, np.ndarray | np.generic) and value.dtype.hasobject:
            raise Wrong("an array of objects came out of a checkpoint", f"shape {value.shape}")
    with contextlib.suppress(Exception):  # a crash is what counts
        copy.deepcopy(content)


def _check_export(export: Callable[[Path, Path, Path], Any], config: Path, path: Path, exported: Path) -> None:
    """Write a config for the checkpoint, and read it as any tool of OpenMMLab would."""
    from mmengine.config import Config

    try:
        if attempt("export_config", export, config, path, exported).refused:
            return
        with armed() as seen, contextlib.suppress(Exception):
            Config.fromfile(exported)
        touched = trace(seen)
        if touched is not None:
            raise Wrong(f"the exported config {touched[0]}", touched[1])
    finally:
        exported.unlink(missing_ok=True)


def _parts(value: Any, depth: int) -> list[Any]:
    """Return a value and what it holds."""
    if depth > 6:
        return [value]
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = [*value.values()]
    elif isinstance(value, list | tuple):
        inner = [*value]
    elif hasattr(value, "_log_history"):
        inner = [*vars(value).values()]
    return [value, *(part for each in inner for part in _parts(each, depth + 1))]


TARGET = Target(
    name="pickles",
    about="checkpoints of known attacks and of random opcodes, for read_state_dict, mmengine's load and export-config",
    cases=1500,
    prepare=prepare,
    run=run,
    seconds=30.0,
)
