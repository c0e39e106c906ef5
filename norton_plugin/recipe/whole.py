"""The whole of a recipe: which layers, the two phases, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from norton_plugin.errors import RecipeError
from norton_plugin.patterns import matches_any, require_matches
from norton_plugin.recipe.budget import Budget
from norton_plugin.recipe.byte_size import bytes_of
from norton_plugin.recipe.decomposition import Decomposition
from norton_plugin.recipe.distillation import Distillation
from norton_plugin.recipe.pruning import Pruning
from norton_plugin.recipe.section import Section, check_bool, check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Scope(Section):
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
class Calibration(Section):
    """What is adjusted on unlabelled images after surgery.

    Attributes:
        batch_norm: Re-estimate BatchNorm statistics when calibration data is given; with ``fit``, correct them against
            the dense model's where that helps.
        images: Most images to use.
        fit: Fit the decomposed layers, and those that stayed dense, to what they see, one after the other
            (docs/method.md, section 3); it needs calibration data.
        positions: Output positions that ``fit`` reads of every image; ``"auto"`` reads more where there are few images,
            and more in layers that read few numbers, which helps detectors of small objects.
        seed: Of these positions.
        memory: Most memory to fit layers in, such as ``"4GiB"``, or a number of bytes: moments, and what both models
            hold meanwhile, of which the rest lies on disk. None for no limit of the former, and half of what is
            available for the latter. The images, and what the models need to run on a batch, come on top.
    """

    batch_norm: bool = True
    images: int = 1024
    fit: bool = False
    positions: int | str = 32
    seed: int = 0
    memory: str | int | None = None

    def __post_init__(self) -> None:
        check_bool("calibration.batch_norm", self.batch_norm)
        check_integer("calibration.images", self.images, low=1, high=10**9)
        check_bool("calibration.fit", self.fit)
        check_integer("calibration.positions", self.positions, low=1, high=10**6, words=("auto",))
        check_integer("calibration.seed", self.seed, low=0, high=2**63 - 1)
        if self.memory is not None:
            bytes_of("calibration.memory", self.memory)

    @property
    def memory_bytes(self) -> int | None:
        """The limit in bytes; None for none."""
        return None if self.memory is None else bytes_of("calibration.memory", self.memory)


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """The whole of what ``compress`` is asked to do.

    Attributes:
        scope: Which layers.
        decomposition: Phase one, filters to factors.
        pruning: Phase two, fewer filters.
        budget: What phase one may leave, in place of sizes in ``decomposition``; pruning then goes on from there.
        calibration: What follows on unlabelled images.
        distillation: What is learned from the dense model on them, last of all.
        verify: Check every block against the convolution it replaces, with the rebuilt weight, and every pruned group
            against the unpruned model with the same channels masked; what differs is left as it was, and listed.
        time_limit: Seconds that following the channels may take, and that checking the groups may take; a model that
            needs more is pruned by parts, and groups that are not checked by then are left out.
    """

    sections: ClassVar[dict[str, type[Section]]] = {
        "scope": Scope,
        "decomposition": Decomposition,
        "pruning": Pruning,
        "calibration": Calibration,
        "distillation": Distillation,
        "budget": Budget,
    }

    scope: Scope = field(default_factory=Scope)
    decomposition: Decomposition = field(default_factory=Decomposition)
    pruning: Pruning = field(default_factory=Pruning)
    calibration: Calibration = field(default_factory=Calibration)
    distillation: Distillation = field(default_factory=Distillation)
    budget: Budget = field(default_factory=Budget)
    verify: bool = True
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        for name, section in self.sections.items():
            if not isinstance(getattr(self, name), section):
                raise RecipeError(f"recipe.{name} is {getattr(self, name)!r}; expected a {section.__name__}")
        check_bool("verify", self.verify)
        check_number("time_limit", self.time_limit, low=0, high=86_400, open_low=True)
        self.budget.check_with(self.decomposition)
        self.budget.check_pruning(self.pruning, fit=self.calibration.fit)

    @property
    def decomposes(self) -> bool:
        """Whether any layer is asked to be decomposed: by a size, or by a budget."""
        return self.decomposition.active or self.budget.given
