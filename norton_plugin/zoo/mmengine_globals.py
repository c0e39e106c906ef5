"""Let torch read what mmengine pickles beside the weights, with ``weights_only`` left on.

A checkpoint of mmengine 0.10 holds the history of its logs: ``HistoryBuffer`` objects made of numpy arrays, with
references to four of their methods, which pickle stores as calls of ``getattr`` (mmengine issue 1655). torch 2.6 and
later refuse these names, and numpy's own classes must not be listed as safe: called by a hostile pickle, they make an
array of object references out of bytes, and whoever reads it follows addresses that the file chose. So while
:func:`mmengine_globals` is entered, each of these names stands for a class or function of this file. They take in
what numpy writes for numbers, and refuse anything else with an ``UnpicklingError``.
"""

from __future__ import annotations

import functools
import math
import pickle
import reprlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from packaging.version import Version

F = TypeVar("F", bound=Callable[..., Any])

_CODES = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"})
_BYTE_ORDERS = ("<", ">", "=", "|")
_STATISTICS = ("min", "max", "current", "mean")
# What numpy writes for a data type without fields, sub-arrays, metadata and alignment, after version and byte order.
_PLAIN = (None, None, None, -1, -1, 0)


def _refusing(function: F) -> F:
    """Turn every error of a function that a pickle calls into an ``UnpicklingError``."""

    @functools.wraps(function)
    def guarded(*args: Any) -> Any:
        try:
            return function(*args)
        except pickle.UnpicklingError:
            raise
        except Exception as error:
            raise pickle.UnpicklingError(
                f"the file asks for numpy data or a log in a way that mmengine does not write: {error}"
            ) from error

    return guarded  # type: ignore[return-value]


def _demand(condition: bool, what: str) -> None:
    if not condition:
        raise pickle.UnpicklingError(f"{what}; mmengine does not write this: do not load the file")


class NumberKind:
    """Stands for ``numpy.dtype``: booleans, integers, floating-point and complex numbers."""

    __slots__ = ("dtype",)
    dtype: np.dtype[Any]

    @_refusing
    def __new__(cls, *args: Any) -> NumberKind:
        """Take a data type by its code, such as ``"f8"``."""
        code = args[0] if args else None
        shown = reprlib.repr(code) if isinstance(code, str) else type(code).__name__
        _demand(isinstance(code, str) and code in _CODES, f"the file asks for numpy's data type {shown}, not a number")
        self = super().__new__(cls)
        self.dtype = np.dtype(code)
        return self

    @_refusing
    def __setstate__(self, state: Any) -> None:
        version, order, *rest = state
        types = [type(value) for value in rest]
        plain = types == [type(value) for value in _PLAIN] and tuple(rest) == _PLAIN
        _demand(type(version) is int and version == 3 and plain, "a data type of numpy has fields or metadata")
        _demand(type(order) is str and order in _BYTE_ORDERS, "a data type of numpy has no byte order")
        self.dtype = self.dtype.newbyteorder(order)


class NumberArray:
    """Stands for ``numpy.ndarray`` until the load is over.

    Attributes:
        value: The array itself, once the file has filled it.
    """

    __slots__ = ("value",)
    value: np.ndarray[Any, Any] | None

    @_refusing
    def __new__(cls, *args: Any) -> NumberArray:
        """Make an empty one; a pickle fills it."""
        _demand(not args, "the file calls numpy.ndarray")
        self = super().__new__(cls)
        self.value = None
        return self

    @_refusing
    def __setstate__(self, state: Any) -> None:
        version, shape, kind, fortran, raw = state
        _demand(type(version) is int and version == 1, "an array of numpy has an unknown version")
        _demand(isinstance(kind, NumberKind) and type(raw) is bytes, "an array of numpy does not hold plain numbers")
        _demand(
            type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape),
            "an array of numpy has no shape",
        )
        _demand(math.prod(shape) * kind.dtype.itemsize == len(raw), "an array of numpy is larger than its bytes")
        array = np.ndarray(shape, kind.dtype, raw, order="F" if fortran is True else "C").copy(order="K")
        # A byte other than 0 and 1 is no boolean.
        self.value = array.view(np.uint8) != 0 if kind.dtype.kind == "b" else array


class LogHistory:
    """Stands for mmengine's ``HistoryBuffer`` until the load is over; the fields are None until the file fills them.

    Attributes:
        values: What was logged, shape (n,).
        counts: How many samples each value stands for, shape (n,).
        max_length: Most values to keep.
    """

    __slots__ = ("values", "counts", "max_length")
    values: np.ndarray[Any, Any] | None
    counts: np.ndarray[Any, Any] | None
    max_length: int | None

    @_refusing
    def __new__(cls, *args: Any) -> LogHistory:
        """Make an empty one; a pickle fills it."""
        _demand(not args, "the file calls HistoryBuffer")
        self = super().__new__(cls)
        self.values = self.counts = self.max_length = None
        return self

    @_refusing
    def __setstate__(self, state: Any) -> None:
        fields = dict(state)
        fields.pop("statistics_methods", None)  # every HistoryBuffer has them anyway
        values, counts, limit = (fields.pop(name) for name in ("_log_history", "_count_history", "max_length"))
        _demand(not fields, "a log of mmengine has unknown fields")
        _demand(
            isinstance(values, NumberArray)
            and isinstance(counts, NumberArray)
            and values.value is not None
            and counts.value is not None
            and values.value.ndim == 1
            and values.value.shape == counts.value.shape,
            "a log of mmengine holds no numbers",
        )
        _demand(type(limit) is int and limit > 0, "a log of mmengine has no length")
        self.values, self.counts, self.max_length = values.value, counts.value, limit


@_refusing
def _reconstruct(*args: Any) -> NumberArray:
    kind, _, _ = args
    _demand(kind is NumberArray, "the file makes an array of another class than numpy's own")
    return NumberArray()


@_refusing
def _scalar(*args: Any) -> np.generic:
    kind, raw = args
    _demand(isinstance(kind, NumberKind) and type(raw) is bytes, "a scalar of numpy is not a plain number")
    _demand(kind.dtype.itemsize == len(raw), "a scalar of numpy is larger than its bytes")
    scalar: np.generic = np.frombuffer(raw, kind.dtype)[0]
    return scalar


@_refusing
def _getattr(*args: Any) -> str:
    owner, name = args
    known = owner is LogHistory and isinstance(name, str) and name in _STATISTICS
    shown = reprlib.repr(name) if isinstance(name, str) else type(name).__name__
    _demand(known, f"the file asks for the attribute {shown} of something, which mmengine does not store")
    return str(name)


@_refusing
def _no_bytes(*args: Any) -> bytes:
    _demand(not args, "the file calls bytes")
    return b""


_GLOBALS: tuple[tuple[Callable[..., Any], str], ...] = (
    (LogHistory, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_getattr, "builtins.getattr"),
    (_no_bytes, "builtins.bytes"),  # how the content of an empty array is stored
    (NumberKind, "numpy.dtype"),
    (NumberArray, "numpy.ndarray"),
    # numpy moved these two from numpy.core to numpy._core; checkpoints of either age are read.
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
)
# Loads in several threads take turns: torch keeps one list of safe globals for all of them.
_TURN = threading.RLock()


@contextmanager
def mmengine_globals() -> Iterator[None]:
    """Let ``torch.load`` with ``weights_only`` read mmengine's logs while entered, as the classes of this file.

    Afterwards ``torch.serialization.get_safe_globals()`` is as before. Entries under the same names that the caller
    registered are set aside for that time: a mixture of both would read neither. Before torch 2.6 nothing is done:
    mmengine's loads are not restricted there.
    """
    if Version(torch.__version__) < Version("2.6"):
        yield
        return
    with _TURN:
        before = torch.serialization.get_safe_globals()
        if set(_GLOBALS) <= set(before):  # a load within a load
            yield
            return
        names = {name for _, name in _GLOBALS}
        aside = [entry for entry in before if _name_of(entry) in names]
        if aside:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([entry for entry in before if entry not in aside])
        try:
            with torch.serialization.safe_globals(list(_GLOBALS)):
                yield
        finally:
            torch.serialization.add_safe_globals(aside)


def _name_of(entry: Any) -> str:
    """Return the name under which torch knows a safe global."""
    return str(entry[1]) if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}"
