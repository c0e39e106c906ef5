"""Phase two: which filters are redundant, and how many go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from norton_plugin.recipe.section import Section, check_bool, check_choice, check_integer, check_number, check_table

Criterion = Literal["pabs", "output", "l2", "random", "vbd", "csa"]
DistanceCriterion = Literal["pabs", "vbd", "csa"]


@dataclass(frozen=True, kw_only=True)
class Pruning(Section):
    """How redundant filters are removed.

    Attributes:
        keep: Share of the channels of every group to keep, in (0, 1].
        keeps: Share per layer pattern, over ``keep``; the last matching pattern counts. Where coupled layers are
            given different shares, the largest one holds.
        global_ranking: Rank filters over all layers instead of within each one; ``keep`` is then the share of all.
        min_keep: With ``global_ranking``, the least share of any one layer, in (0, 1].
        round_to: Channel counts become multiples of this (never more than 10 points below the share asked for).
            ``"auto"`` becomes `channels_of_a_register` of this machine at once; a written recipe holds the number.
        criterion: What goes first. ``"pabs"``: filters at small principal angles to others; ``"vbd"``, ``"csa"``: at
            other small distances; ``"output"``: channels whose removal costs the outputs of the layers that read them
            least, if those take over what they carried (needs unlabelled images); ``"l2"``: filters of small norm;
            ``"random"``: any.
        seed: Of the criterion ``"random"``.
        linear: Also prune the outputs of Linear layers.
    """

    keep: float = 1.0
    keeps: Mapping[str, float] = field(default_factory=dict)
    global_ranking: bool = False
    min_keep: float = 0.1
    round_to: int = 8
    criterion: Criterion = "pabs"
    seed: int = 0
    linear: bool = True

    def __post_init__(self) -> None:
        if self.round_to == "auto":  # type: ignore[comparison-overlap]
            object.__setattr__(self, "round_to", channels_of_a_register())
        check_number("pruning.keep", self.keep, low=0, high=1, open_low=True)
        check_table("pruning.keeps", self.keeps)
        for pattern, keep in self.keeps.items():
            check_number(f"pruning.keeps[{pattern!r}]", keep, low=0, high=1, open_low=True)
        check_bool("pruning.global_ranking", self.global_ranking)
        check_number("pruning.min_keep", self.min_keep, low=0, high=1, open_low=True)
        check_integer("pruning.round_to", self.round_to, low=1, high=1024)
        check_choice("pruning.criterion", self.criterion, get_args(Criterion))
        check_integer("pruning.seed", self.seed, low=0, high=2**63 - 1)
        check_bool("pruning.linear", self.linear)

    @property
    def active(self) -> bool:
        """Whether any channel is asked to be removed."""
        return self.keep < 1 or any(keep < 1 for keep in self.keeps.values())


def channels_of_a_register() -> int:
    """Return how many channels fill the vector registers of this machine's processor, as PyTorch uses them.

    Returns:
        16 with AVX-512, otherwise 8: the widths that cost least per MAC in fp32 (docs/results, widths of layers).
    """
    import torch  # here, because reading a recipe or a help text must not wait for it

    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
