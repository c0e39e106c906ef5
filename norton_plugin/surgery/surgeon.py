"""Carry out a pruning plan, verify it, and undo what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.channels.consistency import disagreements, require_agreement
from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import TOLERANCE, in_double_precision, relative_error
from norton_plugin.modules.snapshot import Snapshot
from norton_plugin.reasons import Cause, Reason
from norton_plugin.surgery.report import PrunedGroup, Skipped

# In half precision a difference of this many units in the last place is accepted.
_UNITS = 4
_UNPROVED = Reason.UNPROVED.because()
# A larger difference is accepted only where it disappears in double precision.
_SUSPICIOUS = TOLERANCE / 10


@dataclass(frozen=True)
class Plan:
    """Channels of one group that are to be removed.

    Attributes:
        group: The group.
        removed: Its root channels that are removed, ascending.
        record: What the report says of it.
    """

    group: ChannelGroup
    removed: tuple[int, ...]
    record: PrunedGroup


class Surgeon:
    """Prunes one model by its graph.

    Args:
        model: The model that was traced, not changed since.
        graph: Its channel groups.
        outputs: Runs the model on its example, cast to the ``dtype`` it is given, and returns what is to be compared.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, outputs: Callable[..., list[Tensor]]) -> None:
        self.model = model
        self.graph = graph
        self.outputs = outputs
        self._original = Snapshot(model.modules(), graph.bookkeeping())
        self._disagreeing = disagreements(model)

    def prune_all_(self, plans: Sequence[Plan]) -> None:
        """Remove the channels of all plans without a comparison.

        Raises:
            SurgeryError: The pruned model does not run; it is as it was then.
        """
        try:
            self._cut_(plans)
            self.outputs()
        except Exception as error:
            self._original.restore_()
            raise SurgeryError(
                f"the pruned model does not run ({type(error).__name__}: {error}); it was restored. "
                "With verify=True the groups at fault are left out instead"
            ) from error

    def prune_verified_(
        self, plans: Sequence[Plan], *, time_limit: float
    ) -> tuple[list[PrunedGroup], list[Skipped], float]:
        """Remove what is verified; a batch of plans that fails is split in halves until the faulty groups are found.

        Large batches come first, so that most is done when time runs out. A set of plans that contains a batch that
        failed is not tried again: where the first half of a batch is right, the second is wrong.

        Args:
            plans: What is wanted.
            time_limit: Seconds after which no further group is tried.

        Returns:
            Records of the groups that were pruned, the others with their reasons, and the seconds it took.
        """
        start = time.perf_counter()
        accepted: list[Plan] = []
        errors: dict[str, float] = {}
        failures: list[Skipped] = []
        faulty: list[tuple[set[str], Cause]] = []
        waiting = [list(plans)] if plans else []
        while waiting:
            waiting.sort(key=len, reverse=True)
            batch = waiting.pop(0)
            roots = {plan.group.root for plan in [*accepted, *batch]}
            outcome: float | Cause | None = next((cause for known, cause in faulty if known <= roots), None)
            if outcome is None and time.perf_counter() - start > time_limit:
                failures += [Skipped(plan.group.root, Reason.PROOF_TIME.because()) for plan in batch]
                continue
            if outcome is None:
                outcome = self._attempt([*accepted, *batch])
            if isinstance(outcome, float):
                accepted += batch
                errors |= dict.fromkeys([plan.group.root for plan in batch], outcome)
            elif len(batch) == 1 or outcome == _UNPROVED:
                failures += [Skipped(plan.group.root, outcome) for plan in batch]
            else:
                faulty.append((roots, outcome))
                middle = len(batch) // 2
                waiting += [batch[:middle], batch[middle:]]
        self._cut_(accepted)
        kept = {plan.group.root for plan in accepted}
        records = [replace(p.record, error=errors[p.group.root]) for p in plans if p.group.root in kept]
        return records, failures, time.perf_counter() - start

    def _attempt(self, plans: Sequence[Plan]) -> float | Cause:
        """Return the error of the model pruned by these plans against the masked one, or why it fails.

        The model is restored.
        """
        error = self._compare(plans, None)
        tolerance = self._tolerance()
        if isinstance(error, float) and error > _SUSPICIOUS:
            # Where boxes are sorted or cut off at a threshold, rounding alone can change the outputs; and a small
            # difference may be a mistake that this example hardly shows: repeat in double precision.
            with in_double_precision(self.model):
                exact = self._compare(plans, torch.float64)
            if isinstance(exact, float):
                error = exact
                tolerance = _SUSPICIOUS if tolerance == TOLERANCE else tolerance
        if isinstance(error, float) and error > tolerance:
            return Reason.DIFFERS.because(error=error, limit=tolerance)
        return error

    def _compare(self, plans: Sequence[Plan], dtype: torch.dtype | None) -> float | Cause:
        """Return the error of the pruned model against the masked one in one precision, or why it fails."""
        found = Snapshot(self.model.modules(), self.graph.bookkeeping())
        try:
            self._cut_(plans)
            got = self.outputs(dtype=dtype)  # first, because most mistakes show here
            found.restore_()  # models may count their calls or keep what they computed
            with self.graph.masked([(plan.group.root, plan.removed) for plan in plans]):
                expected = self.outputs(dtype=dtype)
            return relative_error(got, expected) if expected else _UNPROVED
        except Exception as problem:
            return Reason.BREAKS.from_error(problem)
        finally:
            found.restore_()

    def _cut_(self, plans: Sequence[Plan]) -> None:
        for plan in plans:
            self.graph.prune(plan.group.root, plan.removed)
        for plan in plans:
            if (width := self.graph.width(plan.group.root)) != plan.record.after:
                raise SurgeryError(f"{plan.group.root} has {width} channels instead of {plan.record.after}")
        require_agreement(self.model, self._disagreeing)

    def _tolerance(self) -> float:
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        return max([TOLERANCE, *(_UNITS * torch.finfo(kind).eps for kind in kinds)])
