"""What a model's source may hold when it comes with an artefact, before anything is built from it.

An artefact may come from anyone, and its source says what builds the model: a kind, a name and arguments. The arguments
of constructors are too many to list, so it is their values that are limited: JSON of bounded size, numbers that a model
needs, and strings that are words, such as ``mean`` or ``regnetx_1.6gf``. A word is no path, no address and no program,
whatever argument it is given for. The few arguments that name weights are refused by the file of each ecosystem.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from norton_plugin.errors import SourceError

# How every refusal ends of what may be meant as it is.
TRUST = "look at the source, then trust it (--trust-code, or trust_code=True)"
_KEYS = ("kind", "name", "kwargs")
_LONGEST_NAME = 4096  # a path of a config can be one
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_KEY = re.compile(r"[A-Za-z]\w*", re.ASCII)
# The point of regnetx_1.6gf; a point before a letter would make a file name or a dotted name of Python.
_WORD = re.compile(r"[\w+-]*(\.\d\w*)?", re.ASCII)
_LONGEST_WORD = 200
# The deepest and largest config of mmdet has 8 levels and 690 values, and no number above 30,000.
_DEEPEST = 32
_MOST_VALUES = 20_000
_LARGEST_INTEGER = 1_000_000
_LARGEST_FLOAT = 1e8  # stands for infinity in ranges of mmdet


def parts(spec: Any) -> tuple[str, str, dict[str, Any]]:
    """Take a source apart and check the types.

    Args:
        spec: ``{"kind", "name", "kwargs"}``, read from anywhere.

    Returns:
        Kind, name and arguments.

    Raises:
        SourceError: It is not such a mapping.
    """
    if not isinstance(spec, Mapping):
        raise SourceError(f"the model's source is {shown(spec)}; expected kind, name and kwargs")
    absent = [key for key in ("kind", "name") if not isinstance(spec.get(key), str)]
    if absent:
        raise SourceError(f"the model's source lacks {' and '.join(absent)}; expected kind, name and kwargs")
    unknown = [key for key in spec if key not in _KEYS]
    if unknown:
        raise SourceError(f"the model's source holds {shown(unknown)}; expected kind, name and kwargs alone")
    name, kwargs = spec["name"], spec.get("kwargs")
    if len(name) > _LONGEST_NAME or _CONTROL.search(name):
        raise SourceError(
            f"the model's source has the name {shown(name)}; expected at most {_LONGEST_NAME} printable characters"
        )
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise SourceError(f"the model's source has kwargs {shown(kwargs)}; expected a mapping of arguments")
    return spec["kind"], name, dict(kwargs or {})


def check_values(source: str, kwargs: Mapping[str, Any], *, special: Collection[str] = ()) -> None:
    """Refuse arguments that are more than plain, bounded JSON.

    Args:
        source: For messages, such as ``timm:resnet18``.
        kwargs: Arguments of a constructor.
        special: Keys whose strings the caller checks itself, and that may begin with an underscore.

    Raises:
        SourceError: A value of another type, too large, too deep, too many, or a string that is no word.
    """
    left = _MOST_VALUES
    pending: list[tuple[str, Any, int]] = [("kwargs", kwargs, 0)]
    while pending:
        place, value, depth = pending.pop()
        if not isinstance(value, Mapping | list | tuple):
            if (wanted := _wanted(value, free=place.rpartition(".")[2] in special)) is not None:
                raise SourceError(
                    f"{source} is stored with {shown(value)} for {shown(place)}; expected {wanted}; {TRUST}"
                )
            continue
        left -= len(value)
        if left < 0 or depth == _DEEPEST:
            raise SourceError(
                f"{source} is stored with over {_MOST_VALUES} values or {_DEEPEST} levels, at {shown(place)}; no model "
                "has as many"
            )
        if not isinstance(value, Mapping):
            pending += [(place, inner, depth + 1) for inner in value]
            continue
        for key, inner in value.items():
            if key not in special and not (isinstance(key, str) and _is(_KEY, key)):
                raise SourceError(f"{source} is stored with the key {shown(key)} in {shown(place)}; expected a name")
            pending.append((f"{place}.{key}", inner, depth + 1))


def _wanted(value: Any, *, free: bool) -> str | None:
    """Return what is wanted in place of a number, a string or something else; None where it is as wanted."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return None if abs(value) <= _LARGEST_INTEGER else f"an integer up to {_LARGEST_INTEGER}"
    if isinstance(value, float):
        return None if abs(value) <= _LARGEST_FLOAT else f"a number up to {_LARGEST_FLOAT:g}"  # NaN compares false
    if isinstance(value, str):
        fits = len(value) <= _LONGEST_WORD and not _CONTROL.search(value) if free else _is(_WORD, value)
        return None if fits else f"a word of at most {_LONGEST_WORD} letters, digits and underscores"
    return "numbers, words, true, false, null, lists and mappings"


def _is(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= _LONGEST_WORD and pattern.fullmatch(text) is not None


def check_no_weights(source: str, kwargs: Mapping[str, Any], keys: Collection[str]) -> None:
    """Refuse arguments that name weights or files: an artefact brings its own weights.

    Raises:
        SourceError: One of ``keys`` is an argument.
    """
    found = sorted(key for key in kwargs if key in keys)
    if found:
        raise SourceError(
            f"{source} is stored with {', '.join(found)}; an artefact brings its own weights and names no other files"
        )


def not_trusted(source: str, kwargs: Mapping[str, Any]) -> SourceError:
    """Describe a model that only code can build."""
    return SourceError(
        f"the model is built by code, {source} with arguments {shown(dict(kwargs))}, which is not run unasked; {TRUST}"
    )


def label(kind: str, name: str) -> str:
    """Name a source in messages: ``timm:resnet18``, shortened where it is long."""
    text = f"{kind}:{name}"
    return text if len(text) <= _LONGEST_WORD else f"{text[:_LONGEST_WORD]}..."


def shown(value: Any) -> str:
    """Shorten a value for a message: one line without control characters, whatever its size."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        text = short.repr(value)
    except ValueError:  # Python does not write integers of over 4,300 digits
        return f"an unprintable {type(value).__name__}"
    return text if len(text) <= _LONGEST_WORD else f"{text[:_LONGEST_WORD]}..."
