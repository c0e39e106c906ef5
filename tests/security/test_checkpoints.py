"""Hostile checkpoints: each calls what mmengine's own checkpoints name in a way that numpy would take memory apart for.

All are loaded by mmengine with norton_plugin.mm imported, in a process of its own that forks for every file: a load
that crashes would end the tests as well.
"""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

# Loads every file in a child: prints what the load raised, or the signal that ended the child.
LOADER = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
import norton_plugin.mm
from mmengine.runner import CheckpointLoader

before = set(torch.serialization.get_safe_globals())

def outcome(path):
    try:
        content = CheckpointLoader.load_checkpoint(path, "cpu", logger="silent")
        repr(content)
        return ["loaded", ""]
    except BaseException as error:
        return [f"{type(error).__module__}.{type(error).__qualname__}", str(error)]

answers = {}
for path in sys.argv[1:]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        found = outcome(path)
        if set(torch.serialization.get_safe_globals()) != before:
            found = ["safe globals were left behind", ""]
        os.write(writer, json.dumps(found).encode()[:60000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    answers[path] = json.loads(answer) if status == 0 else [f"ended by signal {status & 127}", ""]
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names."""

    path: str


@dataclass(frozen=True)
class Call:
    """``function(*arguments)``."""

    function: Any
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class New:
    """``kind.__new__(kind, *arguments)``."""

    kind: Any
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Build:
    """``target.__setstate__(state)``."""

    target: Any
    state: Any


def encoded(value: Any) -> bytes:
    """The pickle, protocol 2, that makes a value; only codes that torch's restricted reader knows."""
    match value:
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            return b"J" + pack("<i", value) if abs(value) < 2**31 else b"\x8a\x09" + value.to_bytes(9, "little")
        case str():
            return b"X" + pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return encoded(Call(Name("_codecs.encode"), (value.decode("latin1"), "latin1")))
        case Name():
            module, _, name = value.path.rpartition(".")
            return f"c{module}\n{name}\n".encode()
        case tuple():
            return b"(" + b"".join(map(encoded, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encoded, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encoded(part) for item in value.items() for part in item) + b"u"
        case Call():
            return encoded(value.function) + encoded(value.arguments) + b"R"
        case New():
            return encoded(value.kind) + encoded(value.arguments) + b"\x81"
        case Build():
            return encoded(value.target) + encoded(value.state) + b"b"
    raise TypeError(type(value))


def write(path: Path, pickled: bytes) -> Path:
    """A file of ``torch.save``'s format around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("archive/version", "3\n")
    return path


ARRAY, DTYPE = Name("numpy.ndarray"), Name("numpy.dtype")
RECONSTRUCT, SCALAR = Name("numpy._core.multiarray._reconstruct"), Name("numpy._core.multiarray.scalar")
HISTORY, GETATTR = Name("mmengine.logging.history_buffer.HistoryBuffer"), Name("builtins.getattr")
POINTER = b"A" * 8
PLAIN = (None, None, None, -1, -1, 0)


def kind(code: Any, order: str = "<", rest: tuple[Any, ...] = PLAIN) -> Build:
    """A data type as numpy writes it."""
    return Build(Call(DTYPE, (code, False, True)), (3, order, *rest))


def array(shape: Any, dtype: Any, raw: Any, subtype: Any = ARRAY) -> Build:
    """An array as numpy writes it."""
    return Build(Call(RECONSTRUCT, (subtype, (0,), b"b")), (1, shape, dtype, False, raw))


def history(values: Any, counts: Any, limit: Any = 100, **more: Any) -> Build:
    """A log as mmengine writes it."""
    return Build(New(HISTORY), {"max_length": limit, "_log_history": values, "_count_history": counts, **more})


DOUBLE = kind("f8")
SOUND = array((1,), DOUBLE, POINTER)
OBJECTS = Call(ARRAY, ((1,), Call(DTYPE, ("O",)), POINTER))
ATTACKS: dict[str, Any] = {
    "array called with objects": OBJECTS,
    "array called with objects by class": Call(ARRAY, ((1,), DTYPE, POINTER)),
    "array called with numbers": Call(ARRAY, ((1,), Call(DTYPE, ("f8",)), POINTER)),
    "array that reads the addresses of another": Call(ARRAY, ((1,), Call(DTYPE, ("u8",)), OBJECTS)),
    "array made by new": New(ARRAY, ((1,), Call(DTYPE, ("O",)), POINTER)),
    "array built with objects in bytes": array((1,), Call(DTYPE, ("O", False, True)), POINTER),
    "array built with objects and their state": array((1,), kind("O", "|", (None, None, None, -1, -1, 63)), POINTER),
    "array built with a list of objects": array((1,), kind("O8", "|", (None, None, None, -1, -1, 63)), [ARRAY]),
    "array built with a record of objects": array((1,), Call(DTYPE, ([("a", "O")],)), POINTER),
    "array built with a class for its type": array((1,), DTYPE, POINTER),
    "array built twice": Build(SOUND, (1, (1,), Call(DTYPE, ("O",)), False, POINTER)),
    "array larger than its bytes": array((2,), DOUBLE, POINTER),
    "array with a huge empty shape": array((2**62, 2**62, 0), DOUBLE, b""),
    "array with a negative shape": array((-1, -1), DOUBLE, POINTER),
    "array with a list for its bytes": array((1,), DOUBLE, [1]),
    "array with a state of one": Build(Call(RECONSTRUCT, (ARRAY, (0,), b"b")), (1,)),
    "array of another class": array((1,), DOUBLE, POINTER, subtype=HISTORY),
    "array without content": [Call(RECONSTRUCT, (ARRAY, (0,), b"b"))],
    "reconstruct without arguments": Call(RECONSTRUCT),
    "dtype of objects": Call(DTYPE, ("O",)),
    "dtype of objects by length": Call(DTYPE, ("O8", False, True)),
    "dtype of objects by tensor class": Call(DTYPE, (Name("torch.Tensor"),)),
    "dtype of bytes": Call(DTYPE, ("V8", False, True)),
    "dtype of text": kind("U4"),
    "dtype of dates": kind("M8", "<", (None, None, None, -1, -1, 0, ({}, ("ns", 1, 1, 1)))),
    "dtype with fields in its call": Call(DTYPE, ([("a", "f8"), ("b", "O")],)),
    "dtype with fields in its state": kind("f8", "|", (None, ("a",), {"a": (DOUBLE, 0)}, 8, 1, 16)),
    "dtype with a sub-array": kind("f8", "<", ((DOUBLE, (1,)), None, None, -1, -1, 0)),
    "dtype with the flags of objects": kind("f8", "<", (None, None, None, -1, -1, 63)),
    "dtype with a size": kind("f8", "<", (None, None, None, 10**9, -1, 0)),
    "dtype with another state": Build(DOUBLE, (3, "<")),
    "dtype without arguments": Call(DTYPE),
    "dtype by new": New(DTYPE, ("O",)),
    "scalar of objects": Call(SCALAR, (Call(DTYPE, ("O",)), POINTER)),
    "scalar shorter than its type": Call(SCALAR, (DOUBLE, b"A")),
    "scalar of a class": Call(SCALAR, (DTYPE, POINTER)),
    "log of objects": history(OBJECTS, SOUND),
    "log built of objects": history(array((1,), Call(DTYPE, ("O",)), POINTER), SOUND),
    "log of lists": history([1], [1]),
    "log of unequal lengths": history(SOUND, array((2,), DOUBLE, POINTER * 2)),
    "log of empty arrays": history(Call(RECONSTRUCT, (ARRAY, (0,), b"b")), SOUND),
    "log of no dimension": history(array((), DOUBLE, POINTER), array((), DOUBLE, POINTER)),
    "log without a limit": history(SOUND, SOUND, limit=-1),
    "log with attributes of its own": history(SOUND, SOUND, __class__=DTYPE),
    "log called": Call(HISTORY, ([ARRAY], [DTYPE])),
    "log called without arguments": [Call(HISTORY)],
    "log built with text": Build(New(HISTORY), "state"),
    "getattr of the log's class": Call(GETATTR, (HISTORY, "__init__")),
    "getattr of a class's class": Call(GETATTR, (HISTORY, "__class__")),
    "getattr of an array": Call(GETATTR, (ARRAY, "__setstate__")),
    "getattr of a statistic of something else": Call(GETATTR, (DTYPE, "mean")),
    "getattr of a tensor": Call(GETATTR, (Name("torch.Tensor"), "__reduce_ex__")),
    "getattr by its own name": Call(GETATTR, (GETATTR, "__globals__")),
    "getattr with a default": Call(GETATTR, (HISTORY, "no", DTYPE)),
    "state set by torch's own helper": Call(
        Name("torch._tensor._rebuild_from_type_v2"), (DTYPE, DTYPE, ("f8",), (3, "|", None, ("a",), {}, 8, 1, 16))
    ),
    "attributes set by torch's own helper": Call(
        Name("torch._tensor._rebuild_from_type_v2"), (HISTORY, HISTORY, (), {"values": OBJECTS})
    ),
    "array class of old numpy": Build(
        Call(Name("numpy.core.multiarray._reconstruct"), (ARRAY, (0,), b"b")),
        (1, (1,), Call(DTYPE, ("O",)), False, POINTER),
    ),
    "bytes of a length": Call(Name("builtins.bytes"), (2**40,)),
    "the operating system": Call(Name("posix.system"), ("true",)),
    "an import by name": Call(Name("builtins.__import__"), ("os",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Name of the attack -> what the load came to, and the message."""
    folder = tmp_path_factory.mktemp("attacks")
    files = {str(write(folder / f"{n}.pth", encoded(ATTACKS[name]))): name for n, name in enumerate(ATTACKS)}
    sound = history(SOUND, SOUND, statistics_methods={"min": Call(GETATTR, (HISTORY, "min"))})
    files[str(write(folder / "sound.pth", encoded(sound)))] = "sound"
    files[str(write(folder / "deep.pth", b"]" * 100_000 + b"a" * 99_999))] = "deep"
    done = subprocess.run([sys.executable, "-c", LOADER, *files], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {files[path]: answer for path, answer in json.loads(done.stdout.splitlines()[-1]).items()}


def test_the_same_pieces_put_together_as_mmengine_does_are_read(outcomes: dict[str, list[str]]) -> None:
    """Otherwise the tests below might fail on a slip of the pickles."""
    assert outcomes["sound"] == ["loaded", ""]


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_is_refused_as_a_pickle(outcomes: dict[str, list[str]], name: str) -> None:
    kind, message = outcomes[name]
    assert kind == "_pickle.UnpicklingError", message


def test_a_pickle_nested_without_end_is_refused(outcomes: dict[str, list[str]]) -> None:
    kind, message = outcomes["deep"]
    assert kind == "_pickle.UnpicklingError" and "nested too deeply" in message


def test_importing_the_package_changes_no_load_of_others(tmp_path: Path) -> None:
    path = write(tmp_path / "c.pth", encoded(history(SOUND, SOUND)))
    code = f"""
import pickle, torch
import norton_plugin.mm
# torch lists tensor classes of its own as it imports them.
others = [e for e in torch.serialization.get_safe_globals() if not getattr(e, "__module__", "").startswith("torch.")]
assert not others, others
try:
    torch.load({str(path)!r}, weights_only=True)
except pickle.UnpicklingError as error:
    assert "Unsupported global" in str(error), error
else:
    raise SystemExit("loaded")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_torch_knows_the_codes_that_the_attacks_use(tmp_path: Path) -> None:
    value = {"a": [1, (2, None, True, False), "b", 2**40], "c": b"\x00\xff", "d": -3}
    assert torch.load(write(tmp_path / "c.pth", encoded(value)), weights_only=True) == value
