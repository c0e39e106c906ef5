"""Which channels of each layer pruning removed, in the numbering of the unpruned model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from norton_plugin.channels.groups import ChannelGroup


@dataclass(frozen=True)
class RemovedChannels:
    """Channels that one module lost.

    Attributes:
        outputs: Filters, or channels of a norm; ascending.
        inputs: Positions along the second axis of the weight: of a grouped convolution, within each group; ascending.
        factors: (filter, by what it was multiplied), where that keeps the effect of a scale of attention.
    """

    outputs: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    factors: tuple[tuple[int, float], ...] = ()

    def kept_outputs(self, size: int) -> list[int]:
        """Return the filters that stayed, of so many."""
        return _others(self.outputs, size)

    def kept_inputs(self, size: int) -> list[int]:
        """Return the inputs that stayed, of so many."""
        return _others(self.inputs, size)


def removed_by(
    cuts: Iterable[tuple[ChannelGroup, Collection[int]]],
    before: Mapping[str, RemovedChannels],
    rescaled: Mapping[str, Mapping[int, float]] | None = None,
) -> dict[str, RemovedChannels]:
    """Add what was removed from groups of one trace to what had been removed before that trace.

    Args:
        cuts: Groups, and the root channels that they lost.
        before: By the first dotted name of a module.
        rescaled: ``ChannelGraph.rescaled`` after the cuts.

    Returns:
        The same for all modules that lost channels.
    """
    outputs: dict[str, set[int]] = {}
    inputs: dict[str, set[int]] = {}
    for group, roots in cuts:
        gone = set(roots)
        for member in group.members:
            own = {i for i, root in zip(member.indices, member.roots, strict=True) if root in gone}
            (inputs if member.role == "in" else outputs).setdefault(member.name, set()).update(own)
    found = dict(before)
    factors = rescaled or {}
    for name in outputs.keys() | inputs.keys() | factors.keys():
        old = before.get(name, RemovedChannels())
        multiplied = factors.get(name, {})
        kept = _others(old.outputs, len(old.outputs) + max(multiplied, default=-1) + 1)
        found[name] = RemovedChannels(
            _renumbered(old.outputs, outputs.get(name, ())),
            _renumbered(old.inputs, inputs.get(name, ())),
            (*old.factors, *((kept[i], factor) for i, factor in sorted(multiplied.items()))),
        )
    return found


def _renumbered(old: tuple[int, ...], new: Collection[int]) -> tuple[int, ...]:
    """Return old and new together; the new ones are numbered as if the old ones had never been."""
    kept = _others(old, len(old) + max(new, default=-1) + 1)
    return tuple(sorted([*old, *(kept[i] for i in new)]))


def _others(some: Collection[int], size: int) -> list[int]:
    gone = set(some)
    return [i for i in range(size) if i not in gone]
