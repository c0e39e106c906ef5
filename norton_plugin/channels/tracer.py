"""Run a model once and follow the channels of every tensor through every operation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from norton_plugin.channels.deadline import Deadline
from norton_plugin.channels.dispatch import operation_name, run_decomposed
from norton_plugin.channels.label_maps import ChannelLabels, core
from norton_plugin.channels.operations import operation
from norton_plugin.channels.records import Call
from norton_plugin.channels.trace import Trace
from norton_plugin.errors import SurgeryError
from norton_plugin.reasons import Cause, Reason

logger = logging.getLogger(__name__)


class Tracer(TorchDispatchMode):
    """While entered, every operation runs as usual, and its rule says which channels its outputs have.

    Args:
        trace: Takes what the rules say.
        deadline: Checked at each operation.
    """

    def __init__(self, trace: Trace, deadline: Deadline) -> None:
        super().__init__()
        self.trace = trace
        self._deadline = deadline
        self._counts: Counter[str] = Counter()
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While entered, operations are the tracer's own: neither counted nor followed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._deadline.check()
        kwargs = kwargs or {}
        if (out := run_decomposed(self, func, args, kwargs)) is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        if self._paused:
            return out
        name = operation_name(func)
        self.trace.position = name, self._counts[name]
        self._counts[name] += 1
        self.trace.operation = operation(func, name)
        self.trace.notes.selects |= self.trace.operation.selects
        self._label_outputs(Call(func, name, args, kwargs, out))
        return out

    def _label_outputs(self, call: Call) -> None:
        operands = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        sources = [self.trace.labels_of(tensor) for tensor in operands]
        self.trace.pin_numbered(operands)
        constant = all(labels.constant for labels in sources)
        outputs = call.out if isinstance(call.out, tuple | list) else [call.out]
        results: Sequence[Any] | None = [ChannelLabels((), constant)] * len(outputs)
        empty = bool(operands) and all(isinstance(out, Tensor) and out.numel() == 0 for out in outputs)
        if empty and not self.trace.operation.creates:
            emptied = self._handle_empty(call, sources)
            results = [ChannelLabels((), constant, emptied=emptied)] * len(outputs)
        elif any(labels.maps or labels.stays for labels in sources) or (
            (self.trace.operation.creates or not operands) and self.trace.function is not None
        ):
            results = self._follow(call, sources) or results
        else:
            self._pin_emptied(sources, outputs)
        passed_on = not self.trace.operation.makes_products and any(labels.scores for labels in sources)
        for tensor, labels in zip(outputs, results or [], strict=False):
            # A tensor lifted from plain data may hold what code outside of PyTorch computed: it does not count as
            # known.
            if isinstance(tensor, Tensor) and call.name != "lift_fresh":
                self.trace.set_labels(tensor, labels._replace(constant=constant, scores=labels.scores or passed_on))
        self.trace.pin_visible([*operands, *outputs])

    def _handle_empty(self, call: Call, sources: Sequence[ChannelLabels]) -> tuple[Tensor, ...]:
        """Handle empty outputs: they carry no labels, so that a mistake at this operation could not be seen.

        Weights therefore stay, and so does what they would read; activations are followed for what the operation
        couples and pins.

        Returns:
            Label vectors of the channels that the outputs are computed from.
        """
        weights = [label_map for labels in sources if labels.constant for label_map in labels.maps]
        active = [label_map for labels in sources if not labels.constant for label_map in labels.maps]
        if active:
            self._follow(call, sources)
        emptied = [vector for labels in sources for vector in labels.emptied]
        emptied += [torch.unique(core(label_map)) for label_map in active]
        for labels in [*weights, *emptied] if weights else ():
            self.trace.pin(labels, Reason.NOTHING_TO_COMPUTE.because())
        return () if weights else tuple(emptied)

    def _pin_emptied(self, sources: Sequence[ChannelLabels], outputs: Sequence[Any]) -> None:
        """Pin the channels that empty operands come from, where no other operand says which channels an output has."""
        if any(isinstance(out, Tensor) and out.is_floating_point() for out in outputs):
            for labels in sources:
                for vector in labels.emptied:
                    self.trace.pin(vector, Reason.NOTHING_TO_COMPUTE.because())

    def _follow(self, call: Call, sources: Sequence[ChannelLabels]) -> Sequence[ChannelLabels] | None:
        """Return the labels of the outputs by the operation's rule; without one, the channels of the operands stay."""
        results = self._apply_rule(call)
        if results is None:
            cause = self._why_not_followed(call)
            for labels in sources:
                for label_map in labels.maps:
                    self.trace.pin(label_map, cause)
        return results

    def _why_not_followed(self, call: Call) -> Cause:
        if call.name in self.trace.notes.rule_failures:
            return self.trace.notes.rule_failures[call.name]
        reason = Reason.NO_RULE if self.trace.operation.rule is None else Reason.RULE_DECLINED
        return reason.because(operation=call.name)

    def _apply_rule(self, call: Call) -> Sequence[ChannelLabels] | None:
        rule = self.trace.operation.rule
        if rule is None:
            return None
        try:
            result = rule(self.trace, call)
        except SurgeryError:
            raise
        except Exception as error:
            self.rule_failed(call, error)
            return None
        return [result] if isinstance(result, ChannelLabels) else result

    def rule_failed(self, call: Call, error: Exception) -> None:
        """Note that a rule raised: it gives the channels up, and never breaks the trace of a user's model.

        Of several failures at one operation the first is noted, so that they do not split channels into groups.
        """
        failures = self.trace.notes.rule_failures
        if call.name not in failures:
            failures[call.name] = Reason.RULE_FAILED.from_error(error, operation=call.name)
            logger.warning("%s: channels at this operation stay; please report it", failures[call.name])
            logger.debug("the traceback of that", exc_info=error)
