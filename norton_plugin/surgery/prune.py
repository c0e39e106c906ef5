"""Phase two on a model: remove redundant filters, with everything that is coupled to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.channels.layers import is_producer
from norton_plugin.errors import SurgeryError, TracingError
from norton_plugin.modules.copies import refresh_copies_
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.modules.running import ForwardFunction, compared_outputs, run_model, varied
from norton_plugin.modules.snapshot import Snapshot
from norton_plugin.reasons import Cause, Reason
from norton_plugin.recipe import Pruning, Scope
from norton_plugin.surgery.computed_weight import why_computed
from norton_plugin.surgery.criteria import GroupCriterion, function_of
from norton_plugin.surgery.declared import DeclaredWidths
from norton_plugin.surgery.names import check_keeps, check_scope
from norton_plugin.surgery.parts import Part, run_parts, traceable_parts
from norton_plugin.surgery.planning import plan_groups
from norton_plugin.surgery.removed import RemovedChannels, removed_by
from norton_plugin.surgery.report import WHOLE, PrunedGroup, PruningReport, Skipped, summary
from norton_plugin.surgery.surgeon import Surgeon
from norton_plugin.surgery.training_run import TrainingRun

logger = logging.getLogger(__name__)


@preserved_random_state()
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
    criterion: GroupCriterion | None = None,
) -> PruningReport:
    """Remove filters by their distances, in place.

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
        criterion: Gives every group one score per channel, in place of ``pruning.criterion``; low ones go first. The
            criterion ``"output"`` is given here, as a ``calibration.OutputCriterion``.

    Returns:
        What was removed, and every group left whole with its reason.

    Raises:
        RecipeError: A pattern matches nothing, or the criterion needs images.
        TracingError: Nothing of the model can be traced, and ``require`` is set.
        SurgeryError: Nothing can be pruned, and ``require`` is set.
    """
    scope = scope or Scope()
    check_scope(model, scope)
    check_keeps(model, pruning)
    criterion = criterion or function_of(pruning)
    example_inputs = varied(example_inputs)
    frozen = {module for top in ignored for module in top.modules()}
    original = Snapshot(model.modules(), [])
    declared = DeclaredWidths(model, partial(run_model, model, example_inputs, forward_fn))
    run_on = partial(run_model, model, forward_fn=forward_fn)
    trained = TrainingRun(model, run_on, example_inputs, within=declared.watched)
    declared.note()
    traces, left = _traces(model, example_inputs, forward_fn, time_limit, require)
    work = _Work(model, pruning, scope, frozen, verify, time_limit, criterion)
    try:
        for trace in traces:
            work.prune_(trace)
    except BaseException:
        original.restore_()
        raise
    # Each part was verified on its own; the code around the parts has to run with them as well, and so has training.
    problem = _problem(model, example_inputs, forward_fn) if left and work.records else None
    if work.records and (problem := problem or trained.problem()):
        original.restore_()
        work.skipped += [Skipped(root, problem) for root in work.records]
        work.records.clear()
        work.removed.clear()
    refresh_copies_(model)
    if work.records:
        declared.renew_()
    not_run = Reason.NOT_RUN if forward_fn is None and not left else Reason.NOT_TRACED
    skipped = [*left, *work.skipped, *work.unseen(not_run.because())]
    if require and not work.records:
        raise SurgeryError(f"no channel of the model can be removed: {summary(skipped) or 'it has no prunable layer'}")
    logger.info("pruned %d groups, left %d", len(work.records), len(skipped))
    found = tuple(work.records.values()), tuple(skipped), verify, work.seconds, tuple(work.rule_failures)
    return PruningReport(*found, work.removed)


@dataclass(frozen=True)
class _Trace:
    """Something to be traced and pruned: the model, or a part of it.

    Attributes:
        name: Dotted name.
        inputs: What it is run on.
        forward_fn: How it is run.
        graph: Its channels; None where they are to be traced only when its turn comes.
    """

    name: str
    inputs: Any
    forward_fn: ForwardFunction | None
    graph: ChannelGraph | None = None


def _traces(
    model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None, time_limit: float, require: bool
) -> tuple[list[_Trace], list[Skipped]]:
    """Return the model as a whole, or else those of its parts that can be traced; and what cannot."""
    try:
        graph = ChannelGraph(model, example_inputs, forward_fn=forward_fn, time_limit=time_limit)
        return [_Trace(WHOLE, example_inputs, forward_fn, graph)], []
    except TracingError as error:
        parts, failed = traceable_parts(model, example_inputs, forward_fn, time_limit=time_limit)
        if not parts and require:
            raise
        left = [Skipped(WHOLE, error.cause), *failed]
    return [_Trace(part.name, part.inputs, partial(_run_part, part)) for part in parts], left


def _run_part(part: Part, model: nn.Module, inputs: Any) -> list[Any]:
    return run_parts(model, [replace(part, inputs=inputs)])


def _problem(model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None) -> Cause | None:
    """Return why the model no longer runs, or None."""
    try:
        compared_outputs(model, example_inputs, forward_fn)
    except Exception as error:
        return Reason.BREAKS_AROUND.from_error(error)
    return None


@dataclass
class _Work:
    """One call of ``prune_``: what is asked for, and what has come of it so far."""

    model: nn.Module
    pruning: Pruning
    scope: Scope
    frozen: set[nn.Module]
    verify: bool
    time_limit: float
    criterion: GroupCriterion | None = None
    records: dict[str, PrunedGroup] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    ran: set[nn.Module] = field(default_factory=set)
    produced_output: set[nn.Module] = field(default_factory=set)
    followed: set[str] = field(default_factory=set)
    seconds: float = 0.0
    rule_failures: dict[Cause, None] = field(default_factory=dict)
    removed: dict[str, RemovedChannels] = field(default_factory=dict)

    def prune_(self, trace: _Trace) -> None:
        """Prune the model, or one part of it."""
        try:
            graph = trace.graph or ChannelGraph(
                self.model, trace.inputs, forward_fn=trace.forward_fn, time_limit=self.time_limit
            )
        except TracingError as error:
            self.skipped.append(Skipped(trace.name, error.cause))
            return
        self.ran |= graph.ran
        self.produced_output |= graph.produced_output
        self.rule_failures |= dict.fromkeys(graph.rule_failures)
        self.followed |= {m.name for group in graph.groups() for m in group.members if m.role != "in"}
        new = [group for group in graph.groups() if group.root not in self.records]
        plans, left = plan_groups(new, self.pruning, self.scope, self.frozen, self.criterion)
        surgeon = Surgeon(self.model, graph, self._outputs(trace, graph, {plan.group.root for plan in plans}))
        self.skipped += left
        if self.verify:
            done, failures, spent = surgeon.prune_verified_(plans, time_limit=self.time_limit - self.seconds)
            self.skipped += failures
            self.seconds += spent
        else:
            surgeon.prune_all_(plans)
            done = [plan.record for plan in plans]
        new_records = {record.root: record for record in done}
        self.records |= new_records
        cuts = [(plan.group, plan.removed) for plan in plans if plan.group.root in new_records]
        self.removed = removed_by(cuts, self.removed, graph.rescaled())

    def _outputs(self, trace: _Trace, graph: ChannelGraph, planned: set[str]) -> Callable[..., list[Tensor]]:
        """Return what is compared: outputs of the model, or those of the layers that keep their width."""
        fixed = [member.module for group in graph.groups() if group.root not in planned for member in group.producers]
        return partial(
            compared_outputs,
            self.model,
            trace.inputs,
            trace.forward_fn,
            watched=[module for module in fixed if isinstance(module, nn.Module)],
            watched_only=graph.selects,
        )

    def unseen(self, not_run: Cause) -> list[Skipped]:
        """Return the layers whose channels no trace knows."""
        found = []
        modules = dict(self.model.named_modules())
        weights = {name: dict(module.named_parameters(recurse=False)).get("weight") for name, module in modules.items()}
        shared = {weights[name] for name in self.followed if name in weights} - {None}
        for name, module in modules.items():
            known = name in self.followed or weights[name] in shared
            if is_producer(module) and not known:
                found.append(Skipped(name, self._why_unseen(module) if module in self.ran else not_run))
        return found

    def _why_unseen(self, module: nn.Module) -> Cause:
        if module not in self.produced_output:
            return Reason.NOTHING_TO_COMPUTE.because()
        if (computed := why_computed(module)) is not None:
            return computed
        width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
        return (Reason.SINGLE_CHANNEL if width == 1 else Reason.NOT_FOLLOWED).because()
