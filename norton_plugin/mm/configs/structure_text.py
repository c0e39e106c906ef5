"""A structure inside of a config: one line of JSON, which mmengine passes on as it passes on any text.

As nested dicts it would be thousands of lines of Python, which mmengine evaluates when it reads the config, and formats
anew wherever it logs or copies one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from norton_plugin.artifact.bounded_json import parse
from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.structure import Structure

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def structure_to_text(structure: Structure) -> str:
    r"""Return a structure as one line of JSON, in which mmengine finds nothing to replace.

    Braces inside of its strings are written as ``\u007b`` and ``\u007d``: mmengine replaces ``{{...}}`` in the text
    of a config, strings included, before it runs it. Braces of JSON itself never stand side by side like that.

    Args:
        structure: As ``surgery.structure.diff`` made it.
    """
    text = json.dumps(structure, separators=(",", ":"))
    return _STRING.sub(lambda found: found[0].replace("{", r"\u007b").replace("}", r"\u007d"), text)


def structure_from_config(value: Any) -> Structure:
    """Return the structure that a config holds.

    Args:
        value: Text of ``structure_to_text``, or nested dicts as in configs that older versions wrote.

    Raises:
        ArtifactError: It is no table, or text that is no JSON.
    """
    if isinstance(value, str):
        try:
            value = parse(value.encode())
        except ValueError as error:
            raise ArtifactError(f"the structure in the config is damaged: {error}; export the config again") from error
    if not isinstance(value, Mapping):
        raise ArtifactError(
            f"the structure in the config is {type(value).__name__}, not a table; export the config again"
        )
    plain: Structure = value.to_dict() if hasattr(value, "to_dict") else dict(value)
    return plain
