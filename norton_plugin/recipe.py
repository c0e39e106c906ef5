"""What to do to a model, as frozen, validated dataclasses that survive JSON, YAML and mmengine configs."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

from norton_plugin.errors import RecipeError
from norton_plugin.patterns import matches_any, require_matches

Criterion = Literal["pabs", "vbd", "csa"]
Rank = int | Literal["auto"] | None
MAX_RANK = 4096

# Settings by the names they had before, which recipes and artefacts may still hold.
RENAMED = {"allow_dearer": "allow_more_macs"}

S = TypeVar("S", bound="_Section")


def current_names(data: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Replace former names of settings by those of today, with a warning.

    Args:
        data: Settings by name.
        known: Names of today.

    Raises:
        RecipeError: A setting is given under both of its names.
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = RENAMED.get(key, key)
        if name != key and name in known:
            if name in data:
                raise RecipeError(f"{key!r} is the former name of {name!r}, which is given too; leave {key!r} out")
            warnings.warn(f"the setting {key!r} is now called {name!r}; please rename it", FutureWarning, stacklevel=3)
            key = name
        found[key] = value
    return found


def _check_number(name: str, value: object, *, low: float, high: float, open_low: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value > high or value < low or (open_low and value == low):  # type: ignore[operator]
        bracket = "(" if open_low else "["
        raise RecipeError(f"{name} is {value!r}; expected a number in {bracket}{low:g}, {high:g}]")


def _check_integer(name: str, value: object, *, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RecipeError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


def _check_rank(name: str, value: object) -> None:
    if value is None or value == "auto":
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise RecipeError(f"{name} is {value!r}; expected a whole number from 1 to {MAX_RANK}, 'auto', or none (null)")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RecipeError(f"{name} is {value!r}; expected true or false")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise RecipeError(f"{name} is {value!r}; expected one of {', '.join(choices)}")


def _check_table(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RecipeError(f"{name} is {value!r}; expected a table from layer patterns to values")


class _Section:
    """A part of the recipe: builds itself from a plain dict and names the nearest key when one is unknown."""

    @classmethod
    def from_dict(cls: type[S], data: Mapping[str, Any], *, where: str = "") -> S:
        if not isinstance(data, Mapping):
            raise RecipeError(f"{where or 'recipe'} is {data!r}; expected a table of settings")
        known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        data = current_names(data, known)
        for key in data:
            if key in known:
                continue
            close = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise RecipeError(f"unknown setting {where}{key!r}; {hint}known here: {', '.join(sorted(known))}")
        values: dict[str, Any] = {}
        for key, value in data.items():
            section = _SECTIONS.get(key) if cls is Recipe else None
            if section is not None:
                values[key] = section.from_dict(value, where=f"{key}.")
            else:
                if isinstance(value, str) and known[key].type.startswith("tuple"):
                    value = (value,)
                values[key] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers: what JSON, YAML and mmengine configs can hold."""
        plain: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, _Section):
                plain[f.name] = value.to_dict()
            elif isinstance(value, Mapping):
                plain[f.name] = dict(value)
            else:
                plain[f.name] = list(value) if isinstance(value, tuple) else value
        return plain


@dataclass(frozen=True, kw_only=True)
class Scope(_Section):
    """Which layers may be changed; patterns as in ``norton_plugin.patterns``.

    Attributes:
        include: Only layers named here (empty: all).
        exclude: Never layers named here.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(p, str) and p for p in value):
                raise RecipeError(f"scope.{name} is {value!r}; expected a list of layer patterns")

    def admits(self, *names: str) -> bool:
        """Tell whether a module may be changed: any of its names included, none excluded."""
        included = not self.include or any(matches_any(self.include, name) for name in names)
        return included and not any(matches_any(self.exclude, name) for name in names)

    def check(self, names: Sequence[str]) -> None:
        """Raise RecipeError where a pattern matches none of the names."""
        require_matches(self.include, names, what="scope.include")
        require_matches(self.exclude, names, what="scope.exclude")


@dataclass(frozen=True, kw_only=True)
class Decomposition(_Section):
    """How convolutions become CPDBlocks.

    Attributes:
        rank: R for every layer; ``"auto"`` takes the lowest rank that reaches ``target_nmse``; None leaves all dense.
        ranks: Rank per layer pattern, over ``rank``; the last matching pattern counts; None leaves a layer dense.
        target_nmse: Mean NMSE over a layer's filters that ``"auto"`` aims at, in (0, 1).
        allow_more_macs: Also decompose where the block needs more MACs than the convolution.
        restarts: Starts per filter; the best is kept.
        sweeps: Most ALS sweeps per start.
        tolerance: A filter is done when its error fell by less than this share of itself over ten sweeps.
        seed: Of the random starts.
    """

    rank: Rank = None
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    target_nmse: float = 0.1
    allow_more_macs: bool = False
    restarts: int = 3
    sweeps: int = 300
    tolerance: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rank("decomposition.rank", self.rank)
        _check_table("decomposition.ranks", self.ranks)
        for pattern, rank in self.ranks.items():
            _check_rank(f"decomposition.ranks[{pattern!r}]", rank)
        _check_number("decomposition.target_nmse", self.target_nmse, low=0, high=1, open_low=True)
        _check_bool("decomposition.allow_more_macs", self.allow_more_macs)
        _check_integer("decomposition.restarts", self.restarts, low=1, high=1000)
        _check_integer("decomposition.sweeps", self.sweeps, low=1, high=100_000)
        _check_number("decomposition.tolerance", self.tolerance, low=0, high=1)
        _check_integer("decomposition.seed", self.seed, low=0, high=2**63 - 1)

    @property
    def active(self) -> bool:
        """Whether any layer is asked to be decomposed."""
        return self.rank is not None or any(rank is not None for rank in self.ranks.values())


@dataclass(frozen=True, kw_only=True)
class Pruning(_Section):
    """How redundant filters are removed.

    Attributes:
        keep: Share of the channels of every group to keep, in (0, 1].
        keeps: Share per layer pattern, over ``keep``; the last matching pattern counts. Where coupled layers are
            given different shares, the largest one holds.
        global_ranking: Rank filters over all layers instead of within each one; ``keep`` is then the share of all.
        min_keep: With ``global_ranking``, the least share of any one layer, in (0, 1].
        round_to: Channel counts become multiples of this (never more than 10 points below the share asked for).
        criterion: ``"pabs"`` (principal angles between subspaces), ``"vbd"`` or ``"csa"``.
        linear: Also prune the outputs of Linear layers.
    """

    keep: float = 1.0
    keeps: Mapping[str, float] = field(default_factory=dict)
    global_ranking: bool = False
    min_keep: float = 0.1
    round_to: int = 8
    criterion: Criterion = "pabs"
    linear: bool = True

    def __post_init__(self) -> None:
        _check_number("pruning.keep", self.keep, low=0, high=1, open_low=True)
        _check_table("pruning.keeps", self.keeps)
        for pattern, keep in self.keeps.items():
            _check_number(f"pruning.keeps[{pattern!r}]", keep, low=0, high=1, open_low=True)
        _check_bool("pruning.global_ranking", self.global_ranking)
        _check_number("pruning.min_keep", self.min_keep, low=0, high=1, open_low=True)
        _check_integer("pruning.round_to", self.round_to, low=1, high=1024)
        _check_choice("pruning.criterion", self.criterion, get_args(Criterion))
        _check_bool("pruning.linear", self.linear)

    @property
    def active(self) -> bool:
        """Whether any channel is asked to be removed."""
        return self.keep < 1 or any(keep < 1 for keep in self.keeps.values())


@dataclass(frozen=True, kw_only=True)
class Calibration(_Section):
    """What is adjusted on unlabelled images after surgery.

    Attributes:
        batch_norm: Re-estimate BatchNorm statistics when calibration data is given.
        images: Most images to use.
    """

    batch_norm: bool = True
    images: int = 1024

    def __post_init__(self) -> None:
        _check_bool("calibration.batch_norm", self.batch_norm)
        _check_integer("calibration.images", self.images, low=1, high=10**9)


@dataclass(frozen=True, kw_only=True)
class Recipe(_Section):
    """The whole of what ``compress`` is asked to do.

    Attributes:
        scope: Which layers.
        decomposition: Phase one, filters to factors.
        pruning: Phase two, fewer filters.
        calibration: What follows on unlabelled images.
        verify: Check every block against the convolution it replaces, with the rebuilt weight, and every pruned group
            against the unpruned model with the same channels masked; what differs is left as it was, and listed.
        time_limit: Seconds that following the channels may take, and that checking the groups may take; a model that
            needs more is pruned by parts, and groups that are not checked by then are left out.
    """

    scope: Scope = field(default_factory=Scope)
    decomposition: Decomposition = field(default_factory=Decomposition)
    pruning: Pruning = field(default_factory=Pruning)
    calibration: Calibration = field(default_factory=Calibration)
    verify: bool = True
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        for name, section in _SECTIONS.items():
            if not isinstance(getattr(self, name), section):
                raise RecipeError(f"recipe.{name} is {getattr(self, name)!r}; expected a {section.__name__}")
        _check_bool("verify", self.verify)
        _check_number("time_limit", self.time_limit, low=0, high=86_400, open_low=True)


_SECTIONS: dict[str, type[_Section]] = {
    "scope": Scope,
    "decomposition": Decomposition,
    "pruning": Pruning,
    "calibration": Calibration,
}
