"""docs/recipe.md says what the docstrings say, and docs/commands.md names every option."""

import html
import re
from pathlib import Path

import pytest
import typer

from norton_plugin.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_of_a_recipe():
    pytest.importorskip("griffe")
    from tools.reference_pages import recipe_page

    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == recipe_page()


def test_every_option_of_every_command():
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## `norton ([\w-]+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    commands = typer.main.get_command(app).commands
    assert set(sections) == set(commands)
    for name, command in commands.items():
        told = set(
            re.findall(r"(?<![\w-])--[\w-]+", " ".join(re.findall(r"^\* `([^`]*)`", sections[name], re.MULTILINE)))
        )
        own = {option for p in command.params for option in (*p.opts, *p.secondary_opts) if option.startswith("--")}
        assert told - {"--help"} == own - {"--help"}, name
        assert html.unescape(command.help.partition("\n")[0]) in sections[name], name
