"""What NortonHook is told in a config: recipe keys, flat or in sections."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Recipe, current_names

# Fewer than of the recipe's default: detectors' images are large.
_NORM_IMAGES = 256


@dataclass(frozen=True)
class HookRecipe:
    """What NortonHook is asked to do.

    Attributes:
        recipe: The whole of it.
        named: Settings of its section ``calibration`` that the config names itself.
    """

    recipe: Recipe
    named: frozenset[str]

    @classmethod
    def from_options(cls, options: Mapping[str, Any], *, others: Iterable[str] = ()) -> HookRecipe:
        """Read the keys of a config: those of a recipe, and ``calibrate``, which stands for ``calibration.fit``.

        With a budget and no level, levels are ``"auto"``, as on the command line. Without ``calibrate`` the default of
        ``images`` is 256.

        Args:
            options: Keys and values.
            others: Further keys that the caller takes, to be named in messages.

        Raises:
            RecipeError: An unknown key, one given twice, a value out of its range, or nothing to do.
        """
        options = dict(options)
        if "calibrate" in options:
            if "fit" in options:
                raise RecipeError("'calibrate' and 'fit' are the same setting; leave one of them out")
            calibrate = options.pop("calibrate")
            if not isinstance(calibrate, bool):
                raise RecipeError(
                    f"calibrate is {calibrate!r}; expected true or false (settings go into calibration: "
                    "calibration=dict(fit=True, positions=64))"
                )
            options["fit"] = calibrate
        recipe = recipe_from_options(options, others=(*others, "calibrate"))
        inner = options.get("calibration")
        names = {*options, *(inner if isinstance(inner, Mapping) else ())}
        named = frozenset(f.name for f in fields(recipe.calibration) if f.name in names)
        plain = recipe.to_dict()
        if "images" not in named and not recipe.calibration.fit:
            plain["calibration"]["images"] = _NORM_IMAGES
        if recipe.budget.given and not _names_level(options):
            plain["decomposition"]["level"] = "auto"
        found = cls(Recipe.from_dict(plain), named)
        found.check()
        return found

    def check(self) -> None:
        """Refuse a recipe that asks for nothing.

        Raises:
            RecipeError: Say what to set.
        """
        if not (self.recipe.decomposes or self.recipe.pruning.active):
            raise RecipeError(
                "NortonHook is asked for nothing: set rank, components, share or a budget, or keep below 1, or both"
            )


def _names_level(options: Mapping[str, Any]) -> bool:
    section = options.get("decomposition")
    return "level" in options or (isinstance(section, Mapping) and "level" in section)


def recipe_from_options(options: Mapping[str, Any], *, others: Iterable[str] = ()) -> Recipe:
    """Build a recipe from the keys of a config.

    A key is a section of the recipe (``pruning=dict(keep=0.6)``), a single setting of one (``keep=0.6``), or
    ``scope`` with a list of patterns to include. A setting that several sections have (``linear``: Linear layers are
    decomposed, and pruned) counts for all of them.

    Args:
        options: Keys and values; mmengine's config types are fine.
        others: Further keys that the caller takes, to be named in the message.

    Raises:
        RecipeError: An unknown key (the nearest is named), one given twice, or a value out of its range.
    """
    sections = _sections()
    owners: dict[str, list[str]] = {}
    for section, keys in sections.items():
        for key in keys:
            owners.setdefault(key, []).append(section)
    top = {f.name for f in fields(Recipe)} - set(sections)
    plain: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for key, value in current_names(options, owners).items():
        if key == "scope" and isinstance(value, str | list | tuple):
            flat["include"] = _plain(value)
        elif key in sections or key in top:
            plain[key] = _plain(value)
        elif key in owners:
            flat[key] = _plain(value)
        else:
            raise RecipeError(_unknown(key, {*sections, *top, *owners, *others}))
    for name, value in flat.items():
        for owner in owners[name]:
            table = plain.setdefault(owner, {})
            if not isinstance(table, dict):
                raise RecipeError(f"{owner} is {table!r}; expected a table of settings")
            if name in table:
                raise RecipeError(f"{name!r} is given both alone and in {owner!r}; leave one of them out")
            table[name] = value
    return Recipe.from_dict(plain)


def _sections() -> dict[str, set[str]]:
    """Sections of the recipe and the names of their settings."""
    default = Recipe()
    found = {f.name: getattr(default, f.name) for f in fields(Recipe)}
    return {name: {f.name for f in fields(value)} for name, value in found.items() if is_dataclass(value)}


def _unknown(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown setting {key!r} of NortonHook; {hint}known here: {', '.join(names)}"


def _plain(value: Any) -> Any:
    """Config types as the plain containers they are made of; tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
