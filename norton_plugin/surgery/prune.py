"""Phase two on a model: redundant filters go, with everything that is coupled to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.errors import SurgeryError
from norton_plugin.pabs import removal_order, removal_scores
from norton_plugin.patterns import lookup, require_matches
from norton_plugin.recipe import Pruning, Scope
from norton_plugin.surgery.counts import channels_to_keep
from norton_plugin.surgery.distances import fold, group_distance
from norton_plugin.surgery.graph import (
    ChannelGroup,
    DependencyGraph,
    ForwardFunction,
    output_tensors,
    run_model,
    traceable,
)
from norton_plugin.surgery.masking import masked, relative_error
from norton_plugin.surgery.report import PrunedGroup, PruningReport, Skipped, summary
from norton_plugin.surgery.snapshot import Snapshot

logger = logging.getLogger(__name__)

# Largest relative difference between a pruned and a masked model: one of single precision, and a few units in the
# last place where parameters are coarser.
TOLERANCE = 1e-4
_UNITS = 4


@dataclass(frozen=True)
class _Plan:
    """Channels of one group that are to go."""

    group: ChannelGroup
    removed: tuple[int, ...]
    record: PrunedGroup


def prune_(
    model: nn.Module,
    example_inputs: Any,
    pruning: Pruning,
    *,
    scope: Scope | None = None,
    ignored: Sequence[nn.Module] = (),
    verify: bool = True,
    forward_fn: ForwardFunction | None = None,
    require: bool = True,
) -> PruningReport:
    """Removes filters by their distances, in place.

    Every group is checked against the unpruned model with the same channels masked; a group that differs is rolled
    back exactly and listed, the others stand. Outputs of the model always keep their width.

    Args:
        model: Changed in place, or not at all where an error is raised.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        pruning: Shares, rounding, criterion.
        scope: Layers whose outputs may lose channels; all by default.
        ignored: Modules whose outputs must keep their width, with all below them.
        verify: Compare with the masked model (two forward passes, more only where something fails).
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.
        require: Raise where nothing can be pruned; otherwise the report is merely empty.

    Returns:
        What was removed, and every group left whole with its reason.

    Raises:
        RecipeError: A pattern matches nothing.
        SurgeryError: The model cannot be traced, or nothing can be pruned and ``require`` is set.
    """
    scope = scope or Scope()
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    scope.check(names)
    require_matches(pruning.keeps, names, what="pruning.keeps")
    graph = DependencyGraph(model, example_inputs, forward_fn=forward_fn)
    frozen = {module for top in ignored for module in top.modules()}
    plans, skipped = _plan(graph, pruning, scope, frozen)
    surgeon = _Surgeon(model, graph, example_inputs, forward_fn)
    if verify:
        records, failures, seconds = surgeon.prune_verified_(plans)
    else:
        surgeon.prune_all_(plans)
        records, failures, seconds = [plan.record for plan in plans], [], 0.0
    skipped += failures
    if require and not records:
        raise SurgeryError(f"no channel of the model can be removed: {summary(skipped) or 'it has no prunable layer'}")
    logger.info("pruned %d groups, left %d", len(records), len(skipped))
    return PruningReport(tuple(records), tuple(skipped), verify, seconds)


def _plan(
    graph: DependencyGraph, pruning: Pruning, scope: Scope, frozen: set[nn.Module]
) -> tuple[list[_Plan], list[Skipped]]:
    """Decides for every group which channels go."""
    candidates: list[tuple[ChannelGroup, float, Tensor, tuple[str, ...]]] = []
    skipped: list[Skipped] = []
    for group in graph.groups():
        reason = group.blocked or _outside(group, pruning, scope, frozen)
        keep = _keep_of(group, pruning)
        if reason is None and keep == 1:
            reason = "all its channels are asked to be kept"
        if reason is not None:
            skipped.append(Skipped(group.root, reason))
            continue
        producers = [(m.module, m.indices, m.roots) for m in group.producers]
        matrix, notes = group_distance(producers, size=group.size, criterion=pruning.criterion)  # type: ignore[arg-type]
        candidates.append((group, keep, fold(matrix, group.channel_groups), notes))
    thresholds = _global_shares(candidates, pruning) if pruning.global_ranking else {}
    plans = []
    for group, keep, matrix, notes in candidates:
        share = thresholds.get(group.root, keep)
        count = channels_to_keep(group.size, share, round_to=pruning.round_to, parts=group.channel_groups)
        if count == group.size:
            skipped.append(Skipped(group.root, f"{group.size} channels at keep {share:g} round to {count} (round_to)"))
            continue
        per_part = group.size // group.channel_groups
        gone = removal_order(matrix)[: (group.size - count) // group.channel_groups].tolist()
        removed = tuple(sorted(part * per_part + i for part in range(group.channel_groups) for i in gone))
        members = tuple(dict.fromkeys(m.name for m in group.producers))
        record = PrunedGroup(group.root, members, group.size, count, share, notes)
        plans.append(_Plan(group, removed, record))
    return plans, skipped


def _outside(group: ChannelGroup, pruning: Pruning, scope: Scope, frozen: set[nn.Module]) -> str | None:
    """Why the user does not want this group pruned, or None."""
    for member in group.members:
        if member.role == "in":
            continue
        if member.module in frozen:
            return f"{member.name} is ignored"
        if isinstance(member.module, nn.Module) and not scope.admits(member.name):
            return f"{member.name} is outside the scope"
    if not pruning.linear and all(isinstance(m.module, nn.Linear) for m in group.producers):
        return "outputs of Linear layers are not to be pruned (pruning.linear)"
    if not group.producers:
        return "no layer whose filters could be compared makes these channels"
    return None


def _keep_of(group: ChannelGroup, pruning: Pruning) -> float:
    """The largest share asked for any of the layers that make the channels."""
    return max((lookup(pruning.keeps, m.name, pruning.keep) for m in group.producers), default=1.0)


def _global_shares(
    candidates: Sequence[tuple[ChannelGroup, float, Tensor, tuple[str, ...]]], pruning: Pruning
) -> dict[str, float]:
    """Shares per group when all channels compete: one threshold on the normalised scores of the whole model."""
    free = [c for c in candidates if not any(lookup(pruning.keeps, m.name, -1.0) >= 0 for m in c[0].producers)]
    if not free:
        return {}
    scores = [removal_scores(matrix) for _, _, matrix, _ in free]
    weights = [torch.full_like(s, float(c[0].channel_groups)) for s, c in zip(scores, free, strict=True)]
    merged, order = torch.cat(scores).sort()
    removed = torch.cat(weights)[order].cumsum(0)
    total = float(removed[-1])
    position = int(torch.searchsorted(removed, total * (1 - pruning.keep)))
    threshold = merged[min(position, len(merged) - 1)]
    shares = {}
    for score, (group, *_) in zip(scores, free, strict=True):
        shares[group.root] = max(pruning.min_keep, float((score >= threshold).double().mean()))
    return shares


class _Surgeon:
    """Carries plans out, checks them, and undoes the ones that fail."""

    def __init__(
        self, model: nn.Module, graph: DependencyGraph, example_inputs: Any, forward_fn: ForwardFunction | None
    ) -> None:
        self.model = model
        self.graph = graph
        self.example_inputs = example_inputs
        self.forward_fn = forward_fn

    def _outputs(self) -> list[Tensor]:
        with traceable(self.model), torch.no_grad():
            return [t.detach().double() for t in output_tensors(self._run())]

    def _run(self) -> Any:
        return run_model(self.model, self.example_inputs, self.forward_fn)

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.model.modules(), self.graph.bookkeeping())

    def prune_all_(self, plans: Sequence[_Plan]) -> None:
        """Removes the channels of all plans, or none."""
        snapshot = self._snapshot()
        try:
            for plan in plans:
                self.graph.prune_(plan.group.root, plan.removed)
            self._outputs()
        except Exception as error:
            snapshot.restore_()
            raise SurgeryError(
                f"the pruned model does not run ({type(error).__name__}: {error}); it was restored. "
                "With verify=True the groups at fault are left out instead"
            ) from error

    def prune_verified_(self, plans: Sequence[_Plan]) -> tuple[list[PrunedGroup], list[Skipped], float]:
        """Removes what proves right: halves of the plans are tried until the faulty groups stand alone."""
        start = time.perf_counter()
        records: list[PrunedGroup] = []
        failures: list[Skipped] = []
        stack = [list(plans)] if plans else []
        while stack:
            batch = stack.pop()
            outcome = self._attempt_(batch)
            if isinstance(outcome, float):
                records += [replace(plan.record, error=outcome) for plan in batch]
            elif len(batch) == 1:
                failures.append(Skipped(batch[0].group.root, outcome))
            else:
                middle = len(batch) // 2
                stack += [batch[middle:], batch[:middle]]
        order = {plan.group.root: position for position, plan in enumerate(plans)}
        records.sort(key=lambda record: order[record.root])
        return records, failures, time.perf_counter() - start

    def _attempt_(self, plans: Sequence[_Plan]) -> float | str:
        """Prunes the plans and returns the error against the masked model, or restores and returns the reason."""
        snapshot = self._snapshot()
        try:
            members = [m for plan in plans for m in self.graph.members_of(plan.group.root, plan.removed)]
            with masked(members):
                expected = self._outputs()
            for plan in plans:
                self.graph.prune_(plan.group.root, plan.removed)
            error = relative_error(self._outputs(), expected)
            self._check_counts(plans)
        except Exception as problem:
            snapshot.restore_()
            return f"pruning it breaks the model ({type(problem).__name__}: {str(problem)[:200]})"
        if error > (tolerance := self._tolerance()):
            snapshot.restore_()
            return f"the pruned model differs from the masked one by {error:.1e} (at most {tolerance:.1g} is accepted)"
        return error

    def _tolerance(self) -> float:
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return max([TOLERANCE, *(_UNITS * torch.finfo(kind).eps for kind in kinds)])

    def _check_counts(self, plans: Sequence[_Plan]) -> None:
        """The channels asked for are really gone: Torch-Pruning skips types it does not know without a word."""
        for plan in plans:
            module = self.model.get_submodule(plan.group.root)
            size = getattr(module, "out_channels", getattr(module, "out_features", None))
            if size != plan.record.after:
                raise SurgeryError(f"{plan.group.root} has {size} channels instead of {plan.record.after}")
