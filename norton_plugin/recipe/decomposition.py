"""Phase one: how much of each layer is left, and which filters share components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from norton_plugin.errors import RecipeError
from norton_plugin.patterns import matches_any
from norton_plugin.recipe.section import Section, check_bool, check_choice, check_integer, check_number, check_table

Rank = int | Literal["auto"] | None
Level = Literal["filter", "cluster", "layer", "spatial", "auto"]
_WITHOUT_CLUSTERS = ("filter", "layer", "spatial")
MAX_RANK = 4096
MAX_COMPONENTS = 2**20
_SIZES = ("rank", "components", "share")


@dataclass(frozen=True, kw_only=True)
class LayerRequest(Section):
    """What is asked of one layer; at most one of ``rank``, ``components`` and ``share`` is set (see ``check``).

    Attributes:
        level: Which filters share components, and of what kind these are.
        rank: R per filter; at the other levels, as many components as cost no more MACs than R per filter, rounded
            down to a multiple of 16, which runs faster, where that leaves out at most 7 % of them.
        components: M of the whole layer.
        share: MACs of the layer as a share of the dense layer's, in (0, 1].
        clusters: Clusters of filters, in each group of a grouped convolution.
    """

    level: Level = "filter"
    rank: Rank = None
    components: int | None = None
    share: float | None = None
    clusters: int | None = None

    @property
    def active(self) -> bool:
        """Whether the layer is to be decomposed."""
        return any(getattr(self, name) is not None for name in _SIZES)

    def check(self, where: str) -> None:
        """Refuse values out of range, and settings that contradict each other.

        Args:
            where: Put before the names of settings in messages.

        Raises:
            RecipeError: Say what came, what was expected, and what to do.
        """
        check_choice(f"{where}level", self.level, get_args(Level))
        check_rank(f"{where}rank", self.rank)
        if self.components is not None:
            check_integer(f"{where}components", self.components, low=1, high=MAX_COMPONENTS)
        if self.share is not None:
            check_number(f"{where}share", self.share, low=0, high=1, open_low=True)
        if self.clusters is not None:
            check_integer(f"{where}clusters", self.clusters, low=1, high=MAX_COMPONENTS)
        given = [name for name in _SIZES if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"{where}{given[0]} and {where}{given[1]} contradict each other; give one of them")
        if self.components is not None and self.level in ("filter", "auto"):
            raise RecipeError(
                f"{where}components is {self.components}, the number that filters share, but {where}level is "
                f"{self.level!r}; set level to 'layer', 'cluster' or 'spatial', or give a rank or a share"
            )
        if self.level == "cluster" and self.clusters is None and self.active:
            raise RecipeError(f"{where}level is 'cluster', but {where}clusters is not given; say how many clusters")
        if self.clusters is not None and self.level in _WITHOUT_CLUSTERS:
            raise RecipeError(
                f"{where}clusters is {self.clusters}, but {where}level is {self.level!r}; set level to 'cluster' or "
                "'auto', or leave clusters out"
            )


@dataclass(frozen=True, kw_only=True)
class Decomposition(Section):
    """How layers become CPDBlocks.

    Attributes:
        level: Which filters share components: ``"filter"`` none (NORTON), ``"cluster"`` those of a cluster,
            ``"layer"`` all of a layer; ``"spatial"`` all of a layer, but components are kernel columns of their own
            for each channel, and are mixed by kernel rows (spatial SVD, a vertical and a horizontal convolution; 1x1
            kernels, 1-D and 3-D ones and Linear layers as at ``"layer"``). ``"auto"`` takes in each layer, at equal
            MACs, the level of the lowest NMSE; at a stride, where a spatial SVD is the fastest, that one up to 1.05
            times the lowest.
        rank: R per filter; at the other levels, as many components as need no more MACs. ``"auto"`` takes the lowest
            rank that reaches ``target_nmse``; None leaves layers dense.
        components: M of every layer, for the levels ``"cluster"``, ``"layer"`` and ``"spatial"``, in place of ``rank``.
        share: MACs of every layer as a share of the dense layer's, in (0, 1], in place of ``rank``.
        clusters: Clusters of filters at the level ``"cluster"``, in each group of a grouped convolution; with
            ``"auto"``, this number is tried as well.
        ranks: Rank per layer pattern, over ``rank``; the last matching pattern counts; None leaves a layer dense.
        layers: Table of level, rank, components, share and clusters per layer pattern, over all of the above. The last
            matching pattern counts; what it does not name stays.
        linear: Also decompose Linear layers, where ``components``, ``share`` or a budget is given (1x1 convolutions are
            then).
        target_nmse: Mean NMSE over a layer's filters that rank ``"auto"`` aims at, in (0, 1].
        allow_more_macs: Also decompose where the block needs more MACs than the convolution.
        restarts: Starts per filter or cluster; the best is kept.
        sweeps: Most ALS sweeps per start; 60 % of them for more than 64 shared components, of large layers down to a
            tenth.
        tolerance: A filter is done when its error fell by less than this share of itself over ten sweeps.
        seed: Of the random starts.
    """

    level: Level = "filter"
    rank: Rank = None
    components: int | None = None
    share: float | None = None
    clusters: int | None = None
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    linear: bool = False
    target_nmse: float = 0.1
    allow_more_macs: bool = False
    restarts: int = 3
    sweeps: int = 300
    tolerance: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        self._whole().check("decomposition.")
        check_table("decomposition.ranks", self.ranks)
        for pattern, rank in self.ranks.items():
            where = f"decomposition.ranks[{pattern!r}]"
            check_rank(where, rank)
            _over(self._whole(), {"rank": rank}).check(f"with {where}: decomposition.")
        check_table("decomposition.layers", self.layers)
        for pattern, settings in self.layers.items():
            where = f"decomposition.layers[{pattern!r}]"
            check_table(where, settings)
            LayerRequest.from_dict(settings, where=f"{where}.")
            _over(self._whole(), settings).check(f"{where}.")
        check_bool("decomposition.linear", self.linear)
        check_number("decomposition.target_nmse", self.target_nmse, low=0, high=1, open_low=True)
        check_bool("decomposition.allow_more_macs", self.allow_more_macs)
        check_integer("decomposition.restarts", self.restarts, low=1, high=1000)
        check_integer("decomposition.sweeps", self.sweeps, low=1, high=100_000)
        check_number("decomposition.tolerance", self.tolerance, low=0, high=1)
        check_integer("decomposition.seed", self.seed, low=0, high=2**63 - 1)

    @property
    def active(self) -> bool:
        """Whether any layer is asked to be decomposed."""
        sizes = [settings.get(name) for settings in self.layers.values() for name in _SIZES]
        return self._whole().active or any(size is not None for size in [*self.ranks.values(), *sizes])

    def request(self, name: str) -> LayerRequest:
        """Return what is asked of a layer.

        Args:
            name: Its dotted name.

        Raises:
            RecipeError: The patterns that match it contradict each other.
        """
        found = self._whole()
        for pattern, rank in self.ranks.items():
            if matches_any([pattern], name):
                found = _over(found, {"rank": rank})
        for pattern, settings in self.layers.items():
            if matches_any([pattern], name):
                found = _over(found, settings)
        found.check(f"in the settings for {name}: ")
        return found

    def _whole(self) -> LayerRequest:
        """Return what is asked of layers that no pattern matches; not checked."""
        return LayerRequest(**{f.name: getattr(self, f.name) for f in fields(LayerRequest)})


def _over(request: LayerRequest, settings: Mapping[str, Any]) -> LayerRequest:
    """Put settings over those of a request; a new size replaces the old one, and a new level its clusters."""
    cleared: dict[str, Any] = dict.fromkeys(_SIZES) if any(name in settings for name in _SIZES) else {}
    if settings.get("level") in _WITHOUT_CLUSTERS:
        cleared["clusters"] = None
    return replace(request, **{**cleared, **settings})


def check_rank(name: str, value: object) -> None:
    """Raise RecipeError for what is no rank."""
    if value is None or value == "auto":
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise RecipeError(f"{name} is {value!r}; expected a whole number from 1 to {MAX_RANK}, 'auto', or none (null)")
