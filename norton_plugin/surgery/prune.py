"""Phase two on a model: redundant filters go, with everything that is coupled to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import SurgeryError, TracingError
from norton_plugin.pabs import removal_order, removal_scores
from norton_plugin.patterns import lookup, require_matches
from norton_plugin.recipe import Pruning, Scope
from norton_plugin.surgery.counts import channels_to_keep
from norton_plugin.surgery.distances import fold, group_distance
from norton_plugin.surgery.groups import ChannelGroup
from norton_plugin.surgery.labels import LabelGraph
from norton_plugin.surgery.parts import Part, run_parts, traceable_parts
from norton_plugin.surgery.report import WHOLE, PrunedGroup, PruningReport, Skipped, summary
from norton_plugin.surgery.running import ForwardFunction, output_tensors, run_model, traceable, varied
from norton_plugin.surgery.snapshot import Snapshot
from norton_plugin.surgery.surgeon import Plan, Surgeon

logger = logging.getLogger(__name__)
_UNSEEN = "its channels are not followed: it computes from constants alone, or in code that cannot be seen"


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
    time_limit: float = 60.0,
) -> PruningReport:
    """Removes filters by their distances, in place.

    Every group is checked against the unpruned model with the same channels masked; a group that differs is rolled
    back exactly and listed, the others stand. Outputs of the model always keep their width. Where the model cannot be
    traced as a whole, its largest parts that can are pruned within fixed borders.

    Args:
        model: Changed in place, or not at all where an error is raised.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        pruning: Shares, rounding, criterion.
        scope: Layers whose outputs may lose channels; all by default.
        ignored: Modules whose outputs must keep their width, with all below them.
        verify: Compare with the masked model (two forward passes, more only where something fails).
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.
        require: Raise where nothing can be pruned; otherwise the report is merely empty.
        time_limit: Seconds that tracing may take, and that verification may take.

    Returns:
        What was removed, and every group left whole with its reason.

    Raises:
        RecipeError: A pattern matches nothing.
        TracingError: Nothing of the model can be traced, and ``require`` is set.
        SurgeryError: Nothing can be pruned, and ``require`` is set.
    """
    scope = scope or Scope()
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    scope.check(names)
    require_matches(pruning.keeps, names, what="pruning.keeps")
    example_inputs = varied(example_inputs)
    frozen = {module for top in ignored for module in top.modules()}
    deadline = time.monotonic() + time_limit
    original = Snapshot(model.modules(), [])
    traces: list[tuple[Any, ForwardFunction | None]] = [(example_inputs, forward_fn)]
    left: list[Skipped] = []
    try:
        graph: LabelGraph | None = LabelGraph(model, example_inputs, forward_fn=forward_fn, time_limit=time_limit)
    except TracingError as error:
        left.append(Skipped(WHOLE, str(error)))
        parts, failed = traceable_parts(model, example_inputs, forward_fn, time_limit=time_limit)
        left += failed
        if not parts and require:
            raise
        graph, traces = None, [(part.inputs, partial(_run_part, part)) for part in parts]
        deadline = time.monotonic() + time_limit
    records: dict[str, PrunedGroup] = {}
    skipped: list[Skipped] = []
    ran: set[nn.Module] = set()
    followed: set[str] = set()
    seconds = 0.0
    for inputs, function in traces:
        graph = graph or LabelGraph(model, inputs, forward_fn=function)
        ran |= graph.ran
        followed |= {member.name for group in graph.groups() for member in group.members}
        plans, reasons = _plan([g for g in graph.groups() if g.root not in records], pruning, scope, frozen)
        surgeon = Surgeon(model, graph, partial(_outputs, model, inputs, function))
        if verify:
            done, failures, spent = surgeon.prune_verified_(plans, time_limit=deadline - time.monotonic())
            reasons, seconds = reasons + failures, seconds + spent
        else:
            surgeon.prune_all_(plans)
            done = [plan.record for plan in plans]
        records |= {record.root: record for record in done}
        skipped += reasons
        graph = None
    if left and records:
        # The parts prove right by themselves; what stands around them has to run with them as well.
        problem = _problem(lambda: _outputs(model, example_inputs, forward_fn))
        if problem is not None:
            original.restore_()
            skipped += [Skipped(root, problem) for root in records]
            records = {}
    not_run = "the example does not run it" if forward_fn is None and not left else "it is outside of what is traced"
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear | CPDBlock) and name not in followed:
            skipped.append(Skipped(name, not_run if module not in ran else _UNSEEN))
    skipped = [*left, *skipped]
    if require and not records:
        raise SurgeryError(f"no channel of the model can be removed: {summary(skipped) or 'it has no prunable layer'}")
    logger.info("pruned %d groups, left %d", len(records), len(skipped))
    return PruningReport(tuple(records.values()), tuple(skipped), verify, seconds)


def _run_part(part: Part, model: nn.Module, inputs: Any) -> list[Any]:
    return run_parts(model, [part])


def _outputs(model: nn.Module, inputs: Any, forward_fn: ForwardFunction | None) -> list[Tensor]:
    with traceable(model), torch.no_grad():
        return [t.detach().double() for t in output_tensors(run_model(model, inputs, forward_fn))]


def _problem(call: Callable[[], Any]) -> str | None:
    """Why a call fails, or None."""
    try:
        call()
    except Exception as error:
        return f"with it the model does not run ({type(error).__name__}: {str(error)[:200]})"
    return None


def _plan(
    groups: Sequence[ChannelGroup], pruning: Pruning, scope: Scope, frozen: set[nn.Module]
) -> tuple[list[Plan], list[Skipped]]:
    """Decides for every group which channels go."""
    candidates: list[tuple[ChannelGroup, float, Tensor, tuple[str, ...]]] = []
    skipped: list[Skipped] = []
    for group in groups:
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
        plans.append(Plan(group, removed, record))
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
