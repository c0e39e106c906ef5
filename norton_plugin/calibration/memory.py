"""How much memory moments may take: the bound, and what each layer needs of it.

Three quarters are for sums and for what is computed of them, a quarter is for the patches that are being added. Where
paused passes hold tensors meanwhile (`held_tensors`), moments have half of the bound, or what they need. The images,
and what the models themselves need for a batch, come on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

from torch import Tensor

from norton_plugin.calibration.patches import PatchGeometry
from norton_plugin.errors import RecipeError
from norton_plugin.recipe.byte_size import in_words

# Bytes of patches that are held at once where no limit is given.
USUAL_PART = 200 * 2**20
# Bytes for each number of a patch or a target while it is added: the values in single precision, cut out, sorted, about
# their origin, and once in double precision; and for each number of the input they are cut out of, with its border.
_PATCH, _INPUT = 32, 8
# Copies of a layer's moments while it is fitted, and while a system of them is solved, by the most of any level.
_FITTED, _SOLVED = 6, 8
_SHARE = 0.75  # of the limit, for sums


@dataclass(frozen=True)
class MomentMemory:
    """A bound on what moments take.

    Attributes:
        limit: Bytes; None for none.
        given: What the user gave, of which the limit is half or more; None where that is the limit itself.
    """

    limit: int | None = None
    given: int | None = None

    @property
    def part(self) -> int:
        """Bytes for the patches of one part of a batch."""
        return USUAL_PART if self.limit is None else min(USUAL_PART, self.limit - self.for_sums)

    @property
    def for_sums(self) -> int:
        """Bytes for sums and what is computed of them; only where there is a limit."""
        return int((self.limit or 0) * _SHARE)

    @classmethod
    def beside_others(cls, limit: int | None, needs: Mapping[str, int]) -> tuple[MomentMemory, int | None]:
        """Return a bound on moments, and what is left of a limit for what is held meanwhile.

        Args:
            limit: Bytes for both; None for none.
            needs: Bytes of layers whose sums are held one at a time, by the name of the layer.

        Raises:
            RecipeError: One layer alone does not fit; the least limit that would do is said.
        """
        whole = cls(limit)
        whole.require(needs)
        if limit is None:
            return whole, None
        own = min(limit, max(limit // 2, math.ceil(max(needs.values(), default=0) / _SHARE)))
        return cls(own, limit), limit - own

    def halved(self) -> MomentMemory:
        """Return half of it, where two collections of moments are held at a time."""
        return MomentMemory(None if self.limit is None else self.limit // 2, self.limit)

    def images_at_once(self, x: Tensor, *, patches: int, targets: int, name: str = "a layer") -> int:
        """Return how many images of a batch are read at once.

        Args:
            x: The input, the batch first.
            patches: Numbers in the patches of one image.
            targets: Numbers in its targets.
            name: Of the layer, for the message.

        Raises:
            RecipeError: One image is too large for the limit.
        """
        one = _PATCH * (patches + targets) + _INPUT * x[0].numel()
        if self.limit is not None and one > self.part:
            raise self.too_small(name, one / (1 - _SHARE))
        return max(1, self.part // one)

    def require(self, needs: Mapping[str, int]) -> None:
        """Check that sums of layers that are held one at a time fit.

        Args:
            needs: Bytes by the name of the layer.

        Raises:
            RecipeError: One does not; the least limit that would do is said.
        """
        if self.limit is None or not needs:
            return
        name = max(needs, key=lambda name: needs[name])
        if needs[name] > self.for_sums:
            raise self.too_small(name, needs[name] / _SHARE)

    def positions_at_once(self, *, patch: int, target: int) -> int:
        """Return how many positions of one image fit, the image itself aside; at least one.

        Args:
            patch: Numbers that all outputs at one position read.
            target: Outputs.
        """
        return max(1, int(_SHARE * self.part) // (_PATCH * (patch + target)))

    def too_small(self, what: str, least: float) -> RecipeError:
        """Return what to say where the limit does not suffice."""
        least = least if self.given is None else 2 * least  # as half of it at least is for moments
        return RecipeError(
            f"calibration.memory is {in_words(self.given or self.limit or 0)}, but the moments of {what} need "
            f"{in_words(least)} at least; give that much (--memory), or leave layers out (scope)"
        )


def full_bytes(weight: Tensor, geometry: PatchGeometry, *, targets: int) -> int:
    """Return the bytes of a layer's sums, ``8 (G D^2 + T D)``.

    Args:
        weight: (N, C, Kh, Kw), or (N, D).
        geometry: How the layer reads its input.
        targets: T, outputs whose products with the inputs are summed.
    """
    length = weight[0].numel()
    return 8 * (geometry.groups * length * length + targets * length)


def mode_bytes(weight: Tensor, geometry: PatchGeometry) -> int:
    """Return the bytes of sums for each axis of a weight (N, C, Kh, Kw): ``8 G (C^2 + Kh^2 + Kw^2 + D)``."""
    return 8 * geometry.groups * (sum(length**2 for length in weight.shape[1:]) + weight[0].numel())


def fitting_bytes(weight: Tensor, geometry: PatchGeometry) -> int:
    """Return the bytes that fitting a layer of a weight (N, D) takes, its sums included."""
    return _FITTED * full_bytes(weight, geometry, targets=len(weight))


def sums_to_hold(full: Mapping[str, int], modes: Mapping[str, int], narrow: Set[str], memory: MomentMemory) -> set[str]:
    """Return the layers whose moments are held in full; of the others those of channels and kernel positions apart.

    Args:
        full: Bytes of each layer's sums.
        modes: Bytes of its sums for each axis.
        narrow: Layers that may be held in full.
        memory: The bound.

    Raises:
        RecipeError: Not even those apart fit; the least limit that would do is said.
    """
    chosen = set(narrow)
    if memory.limit is None:
        return chosen

    def needed(kept: set[str]) -> int:
        sizes = [full[name] if name in kept else modes[name] for name in full]
        return sum(sizes) + _SOLVED * max(sizes, default=0)

    # What is saved most by goes first.
    for name in sorted(chosen, key=lambda name: modes[name] - full[name]):
        if needed(chosen) <= memory.for_sums:
            break
        if modes[name] < full[name]:
            chosen = chosen - {name}
    if needed(chosen) > memory.for_sums:
        raise memory.too_small("all layers together", needed(chosen) / _SHARE)
    return chosen


def in_passes(needs: Mapping[str, int], memory: MomentMemory) -> list[list[str]]:
    """Return layers in groups whose moments fit side by side; each is collected in a pass of its own.

    Args:
        needs: Bytes by the name of the layer.
        memory: The bound.

    Raises:
        RecipeError: One layer alone does not fit; the least limit that would do is said.
    """
    memory.require(needs)
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in needs.items():
        if memory.limit is not None and groups[-1] and held + size > memory.for_sums:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups
