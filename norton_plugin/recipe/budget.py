"""What the compressed model may cost; the sizes of the layers are found from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from norton_plugin.errors import RecipeError
from norton_plugin.recipe.decomposition import Decomposition
from norton_plugin.recipe.pruning import Pruning
from norton_plugin.recipe.section import Section, check_bool, check_number

BUDGETS = ("macs", "params", "latency")
_SIZES = ("rank", "components", "share")


@dataclass(frozen=True, kw_only=True)
class Budget(Section):
    """Most that the compressed model may cost, as shares of the dense one; where there are several, all of them hold.

    Attributes:
        macs: MACs of one pass, in (0, 1].
        params: Numbers in the parameters, in (0, 1].
        latency: Milliseconds of one pass on this device, with the batch of the example and the threads that are set,
            in (0, 1]; both models as they are delivered (``deploy.prepare``).
        table: The ``latency.json`` of an artefact, or its directory: milliseconds of layers that were measured before,
            maybe on another device. Nothing is measured then.
        reuse: The ``sensitivities.json`` of an artefact, or its directory: what errors of layers cost, measured before.
            It is taken where model, images and options are the same.
        prune: Also find which channels go: plans of decomposition, of pruning and of both, and with ``latency`` one of
            the same share of all channels, are carried out, and the one whose outputs are nearest to the dense model's
            on held-back images is kept. It needs ``calibration.fit``.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    table: str | None = None
    reuse: str | None = None
    prune: bool = False

    def __post_init__(self) -> None:
        for name in BUDGETS:
            value = getattr(self, name)
            if value is not None:
                check_number(f"budget.{name}", value, low=0, high=1, open_low=True)
        for name in ("table", "reuse"):
            path = getattr(self, name)
            if path is not None and (not isinstance(path, str) or not path):
                raise RecipeError(f"budget.{name} is {path!r}; expected the path of a file or artefact, or none (null)")
        if self.table is not None and self.latency is None:
            raise RecipeError(
                "budget.table tells milliseconds, but budget.latency is not set; name it, or leave it out"
            )
        check_bool("budget.prune", self.prune)

    @property
    def limits(self) -> dict[str, float]:
        """The shares that are named, by name."""
        shares = {name: getattr(self, name) for name in BUDGETS}
        return {name: share for name, share in shares.items() if share is not None}

    @property
    def given(self) -> bool:
        """Whether a budget is named at all."""
        return bool(self.limits)

    def check_with(self, decomposition: Decomposition) -> None:
        """Refuse sizes beside a budget, which finds them, and a budget that asks for nothing.

        Levels of patterns may stand beside it, and patterns that leave a layer dense.

        Raises:
            RecipeError: Say which two contradict each other, and what to do.
        """
        if not self.given:
            return
        if all(share == 1 for share in self.limits.values()):
            raise RecipeError("the budget is all of the dense model, which changes nothing; name a share below 1")
        for name, level in _settings(decomposition, ("level",)).items():
            if level == "cluster":
                raise RecipeError(
                    f"{name} is 'cluster', but a budget is given, which chooses among 'filter', 'layer' and 'spatial'; "
                    "name one of them, or 'auto' for all"
                )
        for name, clusters in _settings(decomposition, ("clusters",)).items():
            if clusters is not None:
                raise RecipeError(
                    f"{name} is {clusters!r}, but a budget is given, which chooses among 'filter', 'layer' and "
                    "'spatial', and makes no clusters; leave one of them out"
                )
        for name, size in _settings(decomposition, _SIZES).items():
            if size is not None:
                raise RecipeError(
                    f"{name} is {size!r}, but a budget is given, which finds the sizes itself; leave one of them out "
                    "(none beside a budget keeps a layer dense)"
                )

    def check_pruning(self, pruning: Pruning, *, fit: bool) -> None:
        """Refuse what cannot stand beside a budget that also prunes.

        Args:
            pruning: Its shares must be 1, which keeps all channels; its criterion, rounding and least share hold.
            fit: Whether layers are fitted to images.

        Raises:
            RecipeError: Say which two contradict each other, and what to do.
        """
        if not self.prune:
            return
        if not self.given:
            raise RecipeError(
                "budget.prune is set, but there is no budget; name budget.macs, budget.params or budget.latency"
            )
        if pruning.active:
            raise RecipeError(
                "pruning.keep is below 1, but budget.prune is set, which finds the shares itself; leave one of them "
                "out (a share of 1 in pruning.keeps keeps all channels of a layer)"
            )
        if not fit:
            raise RecipeError(
                "budget.prune is set, which measures what pruning costs once it is compensated: set calibration.fit "
                "too (on the command line --calibrate), and give unlabelled images"
            )


def _settings(decomposition: Decomposition, names: tuple[str, ...]) -> dict[str, Any]:
    """Return settings of these names for all layers and for patterns, by what a message calls them."""
    found = {f"decomposition.{name}": getattr(decomposition, name) for name in names}
    for pattern, settings in decomposition.layers.items():
        found |= {f"decomposition.layers[{pattern!r}].{name}": settings.get(name) for name in names}
    if "rank" in names:
        found |= {f"decomposition.ranks[{pattern!r}]": rank for pattern, rank in decomposition.ranks.items()}
    return found
