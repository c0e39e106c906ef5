"""Write docs/recipe.md from the docstrings of the recipe, and docs/commands.md from the helps of the commands.

python tools/reference_pages.py
"""

from __future__ import annotations

import dataclasses
import html
import re
import subprocess
import sys
from pathlib import Path

import griffe

from norton_plugin.recipe import Recipe
from norton_plugin.recipe.section import Section

DOCS = Path(__file__).parents[1] / "docs"
_RECIPE = """\
# Recipes: every setting

Made by `python tools/reference_pages.py` from `norton_plugin/recipe`; edit it there.

A recipe says what to do with a model. It is a YAML or JSON file for `norton compress --recipe FILE`, an object in
Python (`Recipe(pruning=Pruning(keep=0.7))`, `Recipe.from_dict({...})`), and keys of `norton` in an mmengine config,
flat or in their sections ([more](openmmlab.md)). What is not named keeps its default. Every artefact holds the recipe
that made it.

```yaml
decomposition: {level: auto}
budget: {macs: 0.5}
calibration: {fit: true, images: 512, memory: 4GiB}
distillation: {passes: 2}
```

Patterns of layers are dotted names (with all below them), wildcards such as `*.conv2`, or `re:` and a regular
expression; one that matches no layer is an error.
"""
_COMMANDS = """\
# Commands: every option

Made by `python tools/reference_pages.py` from the helps of the commands; `norton COMMAND --help` shows the same.

"""


def recipe_page() -> str:
    """Return the page of all settings."""
    own = [field for field in dataclasses.fields(Recipe) if field.name not in Recipe.sections]
    parts = [_RECIPE, _section("At the top", Recipe, [field.name for field in own])]
    for name, section in Recipe.sections.items():
        parts.append(_section(f"`{name}`", section, [field.name for field in dataclasses.fields(section)]))
    return "\n".join(parts)


def _section(title: str, section: type[Section], names: list[str]) -> str:
    docstring = griffe.Docstring(section.__doc__ or "", lineno=1).parse("google")
    said = {
        entry.name: entry.description for part in docstring if part.kind.value == "attributes" for entry in part.value
    }
    defaults = section().to_dict()
    rows = [f"| `{name}` | {_default(defaults[name])} | {_cell(said[name])} |" for name in names]
    return "\n".join([f"## {title}\n", "| key | default | meaning |", "| --- | --- | --- |", *rows, ""])


def _default(value: object) -> str:
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).replace("|", "\\|").strip()


def commands_page() -> str:
    """Return the page of all commands, as typer writes it."""
    command = [sys.executable, "-m", "typer", "norton_plugin.cli.app", "utils", "docs", "--name", "norton"]
    text = html.unescape(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return _COMMANDS + text.partition("\n")[2].strip() + "\n"


if __name__ == "__main__":
    (DOCS / "recipe.md").write_text(recipe_page(), encoding="utf-8")
    (DOCS / "commands.md").write_text(commands_page(), encoding="utf-8")
