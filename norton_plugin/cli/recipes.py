"""Recipe files, and what options on the command line change in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from norton_plugin.errors import ArtifactError, RecipeError
from norton_plugin.recipe import Recipe

if TYPE_CHECKING:
    from norton_plugin.artifact import Manifest

RECIPE = "recipe.yaml"  # its name beside an artefact
_LARGEST = 2**20  # bytes
_DEEPEST = 20  # tables and lists in one another; a recipe has three
Changes = Mapping[str, Mapping[str, Any]]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from YAML or JSON.

    Raises:
        RecipeError: The file cannot be read, is neither, or holds settings that do not fit.
    """
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise RecipeError(f"recipe {str(path)!r} has the suffix {path.suffix!r}; expected .yaml, .yml or .json")
    try:
        if path.stat().st_size > _LARGEST:
            raise RecipeError(f"recipe {str(path)!r} is larger than {_LARGEST} bytes; a recipe has a few lines")
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else _read_yaml(text)
    except OSError as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise RecipeError(f"recipe {str(path)!r} is nested too deeply; a recipe is a table of tables") from error
    except (ValueError, yaml.YAMLError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"recipe {str(path)!r} is damaged: {error}") from error
    try:
        return Recipe.from_dict({} if data is None else data)
    except RecipeError as error:
        raise RecipeError(f"in {path}: {error}") from error


def _read_yaml(text: str) -> Any:
    """Read YAML without aliases, a few lines of which can stand for more than a memory holds."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise RecursionError
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"the alias *{event.anchor}; write the value out")
    return yaml.safe_load(text)


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe as YAML, every setting named.

    Raises:
        ArtifactError: The file cannot be written.
    """
    _write(path, recipe.to_dict())


def carry_recipe(directory: Path, stored: Manifest | None) -> Path | None:
    """Write the recipe of the artefact that a model came from beside the one that it became.

    Args:
        directory: Of the new artefact.
        stored: What the former one holds; None where the model came from elsewhere.

    Returns:
        The file; None where there is no such recipe: one of a model that was there before is removed then.

    Raises:
        ArtifactError: The file cannot be written.
    """
    path = directory / RECIPE
    recipe = None if stored is None else stored.recipe
    _write(path, recipe)
    return path if recipe else None


def _write(path: Path, recipe: Mapping[str, Any] | None) -> None:
    """Write a recipe, or remove the file where there is none."""
    try:
        if recipe:
            path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"the recipe cannot be written to {path}: {error.strerror}") from error


def merge(recipe: Recipe, changes: Changes, *, verify: bool | None = None) -> Recipe:
    """Put command line options over a recipe.

    Args:
        recipe: From a file, or the default one.
        changes: Section -> setting -> value, of the options that were given. A mapping adds its patterns after those
            of the recipe, so that they count; any other value replaces.
        verify: As of ``Recipe``; None leaves it.

    Raises:
        RecipeError: A value does not fit.
    """
    data = recipe.to_dict()
    for section, settings in changes.items():
        for name, value in settings.items():
            if isinstance(value, Mapping):
                old = {k: v for k, v in data[section][name].items() if k not in value}
                data[section][name] = {**old, **value}
            else:
                data[section][name] = value
    if verify is not None:
        data["verify"] = verify
    return Recipe.from_dict(data)
