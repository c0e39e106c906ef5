"""Pickles: random programs of opcodes, and attacks that are known.

A program is written opcode by opcode, as nothing that pickles objects would write it. What stands on the unpickler's
stack is followed only as far as is needed to keep most programs running to their end.
"""

from __future__ import annotations

import pickle
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from fuzzing.sealing import digest
from fuzzing.watch import MODULE, Bait

_HARMLESS = (
    ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"),
    ("torch", "device"), ("torch", "float32"), ("torch._utils", "_rebuild_parameter"), ("torch", "Tensor"),
    ("torch", "Size"),
    ("_codecs", "encode"), ("builtins", "set"), ("builtins", "complex"), ("builtins", "bytearray"),
)  # fmt: skip
# What mmengine writes beside the weights.
_MMENGINE = (
    ("mmengine.logging.history_buffer", "HistoryBuffer"), ("numpy", "ndarray"), ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("builtins", "getattr"),
    ("numpy.dtypes", "Float64DType"), ("numpy.dtypes", "Int64DType"),
)  # fmt: skip
_HOSTILE = (
    ("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "open"),
    ("builtins", "__import__"), ("subprocess", "Popen"), ("torch", "load"), ("torch.hub", "load"), ("numpy", "load"),
    ("numpy", "fromfile"), ("numpy", "memmap"), ("ctypes", "CDLL"), ("builtins", "print"), (MODULE, "build"),
    ("mmengine.logging.history_buffer", "np.load"), ("mmengine.logging.history_buffer", "HistoryBuffer.__init__"),
    ("torch.storage", "UntypedStorage.from_file"), ("numpy", "object_"), ("numpy.dtypes", "ObjectDType"),
)  # fmt: skip
_NAMES = (*_HARMLESS * 3, *_MMENGINE * 9, *_HOSTILE)
_DTYPES = ("O", "O8", "|O", "f8", "i8", "V8", "M8[s]", "U2", "S4", "f8,O", ">f4", "b", "?", "x", "", "f2")
_ATTRIBUTES = ("min", "max", "current", "mean", "__init__", "__class__", "__globals__", "register_statistics", "data")


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return pickle.LONG1 + bytes([len(data)]) + data


def _bytes(value: bytes) -> bytes:
    return pickle.SHORT_BINSTRING + bytes([len(value)]) + value


def name_of(module: str, name: str) -> bytes:
    """Return the opcode that puts a global on the stack."""
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def constant(value: Any) -> bytes:
    """Opcodes of plain data."""
    if isinstance(value, bytes) and value.startswith(pickle.GLOBAL):
        return value  # a global, written already
    if value is None or isinstance(value, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes):
        return _bytes(value)
    if isinstance(value, Program):
        return value.code
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(constant, value)) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(constant, value)) + pickle.APPENDS
    pairs = b"".join(constant(key) + constant(inner) for key, inner in value.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


class Program:
    """Opcodes that leave one object on the stack."""

    def __init__(self, code: bytes) -> None:
        self.code = code


def called(module: str, name: str, *arguments: Any) -> Program:
    """Return a call of a global."""
    return Program(name_of(module, name) + constant(arguments) + pickle.REDUCE)


def built(program: Program, state: Any) -> Program:
    """Return an object given a state."""
    return Program(program.code + constant(state) + pickle.BUILD)


def made(module: str, name: str, *arguments: Any) -> Program:
    """Return a new object of a class, without its constructor."""
    return Program(name_of(module, name) + constant(arguments) + pickle.NEWOBJ)


def whole(program: Program) -> bytes:
    """Return a pickle of protocol 2, which is what torch writes and reads."""
    return pickle.PROTO + b"\x02" + program.code + pickle.STOP


def storage(count: int, *, key: str = "0", kind: str = "FloatStorage") -> Program:
    """Return a tensor's memory, of ``count`` numbers."""
    return Program(constant(("storage", name_of("torch", kind), key, "cpu", count)) + pickle.BINPERSID)


def tensor(count: int, offset: Any = 0, shape: Any = (2,), strides: Any = (1,)) -> Program:
    """Return a tensor over a storage."""
    return called("torch._utils", "_rebuild_tensor_v2", storage(count), offset, shape, strides, False, Program(b"}"))


def history(**state: Any) -> Program:
    """Return a ``HistoryBuffer`` of mmengine with a state of choice."""
    return built(made(*_MMENGINE[0]), state)


def array(data: Any, *, dtype: str = "f8", shape: Any = (1,), package: str = "numpy.core") -> Program:
    """Return an array as numpy pickles it."""
    kind = built(called("numpy", "dtype", dtype, False, True), (3, "<", None, None, None, -1, -1, 0))
    empty = called(f"{package}.multiarray", "_reconstruct", name_of("numpy", "ndarray"), (0,), b"b")
    return built(empty, (1, shape, kind, False, data))


def attacks(bait: Bait) -> list[tuple[str, Program]]:
    """Return what is known to have worked somewhere."""
    pointer = struct.pack("<Q", 0x4141414141414141)
    objects = called("numpy", "ndarray", (1,), called("numpy", "dtype", "O"), _latin(pointer))
    command = f"touch {bait.ran}"
    reach = called("builtins", "getattr", name_of(*_MMENGINE[0]), "__init__")
    found = [
        ("os.system", called("os", "system", command)),
        ("eval", called("builtins", "eval", bait.code)),
        ("open", called("builtins", "open", str(bait.weights))),
        ("from_file", called("torch.storage", "UntypedStorage.from_file", str(bait.weights), True, 8)),
        ("getattr of __init__", reach),
        ("getattr to globals", called("builtins", "getattr", reach, "__globals__")),
        ("an array of objects", objects),
        ("an array of objects in a history", _message_hub(history(_log_history=objects, _count_history=objects))),
        ("objects given to HistoryBuffer", _message_hub(called(*_MMENGINE[0], objects, objects))),
        ("objects read by numpy.dtype", called("numpy", "ndarray", (4,), "O", _latin(pointer * 4))),
        ("a scalar of objects", called("numpy.core.multiarray", "scalar", called("numpy", "dtype", "O"), pointer)),
        ("an array whose state is objects", array(pointer, dtype="O")),
        ("an array whose state is a list of objects", array([reach], dtype="O")),
        ("an array beyond its data", array(b"12345678", shape=(10**9,))),
        ("an array with a negative axis", array(b"12345678", shape=(-1,))),
        ("an array of strings that are bytes of others", array(b"\xff" * 8, dtype="U2")),
        ("ndarray with strides out of its buffer", called("numpy", "ndarray", (9,), "f8", _latin(pointer), 0, (4096,))),
        ("ndarray without memory of its own", called("numpy", "ndarray", (10**9,), "i8")),
        ("a tensor out of its storage", tensor(2, 0, (10**6,), (1,))),
        ("a tensor before its storage", tensor(2, -5, (2,), (1,))),
        ("a tensor with negative strides", tensor(2, 1, (2,), (-1,))),
        ("a storage larger than its file", tensor(10**9, 0, (10**9,), (1,))),
        ("a tensor of no shape", tensor(2, 0, None, None)),
        ("a missing storage", Program(constant({"a": storage(2, key="../0")}))),
        ("a dtype built anew", built(called("numpy", "dtype", "f8"), (3, "|", None, None, None, 8, 1, 63))),
        ("methods in place of a buffer's", _message_hub(history(_statistics_methods={"min": 5}, max_length="x"))),
    ]
    as_weights = [(f"{name} as weights", _as_weights(program)) for name, program in found]
    return found + as_weights + [(f"the structure {each!r:.60}", _as_structure(each)) for each in _structures(bait)]


def _structures(bait: Bait) -> Iterator[Any]:
    """Return what a checkpoint says of its model; ``norton export-config`` writes it into a config: Python."""
    path = str(bait.ran).replace("-", "'+chr(45)+'")  # its name is to show when the code runs, not when it is written
    code = f"__import__('pathlib').Path('{path}').touch()"
    yield from ({}, [], "text", 5, {"modules": 5}, {"modules": [5]}, {"version": 1, "source": {}, "modules": []})
    for text in (f"a': {code}, 'b", f"a={code}, b", f"'+{code}+'", f"\n{code}\n", f"{{{{$NONE:'+{code}+'}}}}", "\\"):
        yield {"version": 1, "source": {text: [1]}, "modules": []}
        yield {"version": 1, "source": {"a b": text}, "modules": []}
        yield {"version": 1, "source": {}, "modules": [{"names": [text], "resize": {}, "attributes": {text: text}}]}


def _latin(data: bytes) -> Program:
    """Bytes, as pickles of protocol 2 hold them."""
    return called("_codecs", "encode", data.decode("latin1"), "latin1")


def _message_hub(value: Program) -> Program:
    hub = {"log_scalars": {"train/loss": value}, "runtime_info": {"value": value}, "resumed_keys": {"train/loss": True}}
    return Program(constant({"message_hub": hub, "state_dict": {"weight": tensor(2)}, "meta": {"epoch": 1}}))


def _as_structure(structure: Any) -> Program:
    """Return a compressed checkpoint of mmengine with this structure and its hash."""
    norton = {"structure": structure, "structure_hash": digest(structure), "recipe": {}}
    return Program(constant({"state_dict": {"weight": tensor(2)}, "meta": {"norton": norton}}))


def _as_weights(value: Program) -> Program:
    return Program(constant({"state_dict": {"weight": value}, "meta": {"norton": {"structure": value}}}))


def random_program(rng: random.Random) -> Program:
    """Return a program that is likely to run for a while."""
    value = _value(rng, 0)
    wrap: Callable[[Program], Program] = rng.choice((_message_hub, _message_hub, _as_weights, lambda program: program))
    return wrap(value)


_KINDS = ("plain", "plain", "call", "call", "build", "new", "array", "history", "tensor", "getattr", "raw")


def _value(rng: random.Random, depth: int) -> Program:
    kind = rng.choice(_KINDS)
    if depth > 3 or kind == "plain":
        return Program(constant(rng.choice(tuple(_plain(rng)))))
    if kind == "call":
        return called(*rng.choice(_NAMES), *_arguments(rng, depth))
    if kind == "new":
        return made(*rng.choice(_NAMES), *_arguments(rng, depth))
    if kind == "build":
        state = rng.choice((tuple(_arguments(rng, depth)), {"x": _value(rng, depth + 1)}, _value(rng, depth + 1)))
        return built(_value(rng, depth + 1), state)
    if kind == "array":
        data = rng.choice((b"12345678", b"", [_value(rng, depth + 1)], _latin(bytes(8)), None))
        shape = rng.choice(((1,), (0,), (-1,), (2, 2), (10**12,), (), 5))
        return array(data, dtype=rng.choice(_DTYPES), shape=shape, package=rng.choice(("numpy.core", "numpy._core")))
    if kind == "history":
        return history(_log_history=_value(rng, depth + 1), _count_history=_value(rng, depth + 1), max_length=5)
    if kind == "tensor":
        shape = rng.choice(((2,), (10**6,), (-1,), (2, 2), ()))
        return tensor(rng.choice((2, 0, 10**6)), rng.choice((0, 1, -1, 2**40)), shape, tuple(1 for _ in shape))
    if kind == "getattr":
        return called("builtins", "getattr", _value(rng, depth + 1), rng.choice(_ATTRIBUTES))
    return Program(bytes(rng.randrange(256) for _ in range(rng.randint(1, 6))))


def _arguments(rng: random.Random, depth: int) -> Iterator[Any]:
    for _ in range(rng.randint(0, 4)):
        yield rng.choice((_value(rng, depth + 1), rng.choice(_DTYPES), rng.choice(tuple(_plain(rng)))))


def _plain(rng: random.Random) -> Iterator[Any]:
    yield from (None, True, 0, 1, -1, 2**31 - 1, 2**62, 1.5, float("nan"), "", "x", b"", b"A" * 8, (), (1,))
    yield from ([], [1], {}, {"a": 1}, (3, "<", None, None, None, -1, -1, 0), (2, 3), name_of(*rng.choice(_NAMES)))
