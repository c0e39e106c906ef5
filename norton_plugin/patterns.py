r"""The one language in which layers are named: in recipes, on the command line, in configs.

A pattern is one of
    a dotted name      ``backbone.layer1``    the module of that name and everything below it
    a shell wildcard   ``*.conv2``, ``layer[34].*``    ``*`` also runs over dots
    a regular expression after ``re:``    ``re:layer[34]\.\d+\.conv2``, matched against the whole name
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from norton_plugin.errors import RecipeError

T = TypeVar("T")


def matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern names a module.

    Raises:
        RecipeError: The regular expression is not valid.
    """
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise RecipeError(f"pattern {pattern!r} is not a valid regular expression: {error}") from error
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return name == pattern or name.startswith(pattern + ".")


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Tell whether any of the patterns names the module."""
    return any(matches(pattern, name) for pattern in patterns)


def lookup(table: Mapping[str, T], name: str, default: T) -> T:
    """Return the value of the last pattern in the table that names the module: later entries refine earlier ones."""
    for pattern in reversed(list(table)):
        if matches(pattern, name):
            return table[pattern]
    return default


def require_matches(patterns: Iterable[str], names: Sequence[str], *, what: str) -> None:
    """Check that every pattern names at least one layer.

    Args:
        patterns: Patterns as the user wrote them.
        names: Dotted names that can be matched.
        what: What the patterns stand for in the message, such as ``"scope.include"``.

    Raises:
        RecipeError: A pattern names nothing; it is quoted, with the closest names.
    """
    for pattern in patterns:
        if any(matches(pattern, name) for name in names):
            continue
        close = difflib.get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.3)
        hint = f"closest names: {', '.join(close)}" if close else f"names look like: {', '.join(names[:3])}"
        raise RecipeError(
            f"{what} pattern {pattern!r} matches none of the model's {len(names)} layers; {hint}. "
            "A pattern is a dotted name (with all below it), a wildcard such as '*.conv2', or 're:' and an expression"
        )
