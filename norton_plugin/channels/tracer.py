"""Runs a model once and follows the channels of every tensor through every operation."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from norton_plugin.channels.axes import Registry
from norton_plugin.channels.label_maps import Shadow, compact, core, varying
from norton_plugin.channels.label_table import Classes, LabelTable
from norton_plugin.channels.records import RULES, Call, Rescale, Rule, StaleSize, Step, operation_name, taken_apart
from norton_plugin.channels.widths import Width
from norton_plugin.errors import SurgeryError, TracingError
from norton_plugin.reasons import Cause, Reason

logger = logging.getLogger(__name__)

# Labels a plane may hold; larger ones are given up (their channels stay), which bounds memory.
MAX_CORE = 1 << 24
# Operations whose outcome jumps when two values change places.
_SELECTING = {"sort", "argsort", "topk", "nms", "nonzero", "argmax", "argmin", "unique", "_unique2"}
# Operations that make new numbers of what they are given; what is said of scores ends there.
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"}


class Tracer(TorchDispatchMode):
    """The shadow execution.

    Args:
        registry: Parameters and their labels.
        table: Takes unions and pins.
        deadline: ``time.monotonic()`` at which to give up.
    """

    def __init__(self, registry: Registry, table: LabelTable, *, deadline: float = float("inf")) -> None:
        super().__init__()
        self.registry = registry
        self.table = table
        self.deadline = deadline
        self._counts: Counter[str] = Counter()
        self._current = ("", 0)
        self.steps: dict[tuple[str, int], Step] = {}
        self.stale: list[StaleSize] = []
        self.stack: list[nn.Module] = []
        self.ran: set[nn.Module] = set()
        self.busy: set[nn.Module] = set()
        self.group_inputs: dict[nn.Module, Tensor] = {}
        self.norm_inputs: dict[nn.Module, Tensor] = {}
        self.whole_groups: dict[nn.Module, bool] = {}
        self.rescales: list[Rescale] = []
        self.ties: list[tuple[Tensor, Tensor]] = []
        self.failures: dict[str, Cause] = {}
        self.selects = False
        self._paused = False
        self.call: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
        self._shadows = WeakTensorKeyDictionary()
        self.numbered = WeakTensorKeyDictionary()

    # -- shadows ----------------------------------------------------------------------------------------------------

    def shadow(self, tensor: Tensor) -> Shadow:
        """The shadow of a tensor; one never seen is a constant without channels."""
        found = self._shadows.get(tensor)
        if found is None:
            found = self.registry.shadows.get(tensor)
        return Shadow() if found is None else found

    def seen(self, tensor: Tensor) -> bool:
        """Whether an operation of the trace made this tensor."""
        return tensor in self._shadows or tensor in self.registry.shadows

    def assign(self, tensor: Tensor, shadow: Shadow) -> None:
        """Gives a tensor its shadow; planes that hold a single label pin it and go."""
        planes = []
        for plane in shadow.planes:
            plane = compact(plane)
            if not varying(plane):
                if plane.numel():
                    self.table.pin(core(plane), Reason.BY_POSITION.because(which="one"))
            elif core(plane).numel() > MAX_CORE:
                self.table.pin(core(plane), Reason.TOO_LARGE.because())
            else:
                planes.append(plane)
        self._shadows[tensor] = shadow._replace(planes=tuple(planes))

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Unites labels of planes or vectors element by element."""
        self.table.unite(core(a), core(b))

    def pin(self, labels: Tensor, reason: Cause) -> None:
        """Pins the labels of a plane or vector."""
        self.table.pin(core(labels), reason)

    def pin_numbered(self, tensors: Sequence[Tensor]) -> None:
        """Pins the channels of which some of these tensors hold numbers: they are used."""
        for tensor in tensors if len(self.numbered) else ():
            for plane in self.numbered.get(tensor, ()):
                self.pin(plane, Reason.BY_NUMBER.because())

    def step(self, kind: str, planes: Sequence[Tensor]) -> None:
        """Notes what the current operation does in the masked model."""
        if planes:
            self.steps[self._current] = Step(kind, tuple(planes))

    def set_role(self, planes: Sequence[Tensor], role: str) -> None:
        """Says what a parameter's dimension is to the operation that uses it."""
        for plane in planes:
            labels = core(plane).reshape(-1)
            labels = labels[labels != 0]
            if labels.numel():
                for position in torch.unique(self.registry.family_of(labels)).tolist():
                    family = self.registry.families[position]
                    if {family.role, role} == {"in", "out"}:
                        # Two layers share the weight, one of them the other way round.
                        family.role = "out" if family.numbers_filters else "in"
                    else:
                        family.role = role

    def check_size(self, labels: Tensor, given: Any, whole: Tensor | None = None) -> None:
        """Relates the channels along a dimension to the integer that the code gave for its size."""
        if isinstance(given, Width):
            if given.offset:
                self.pin(labels, Reason.COMPUTED_WIDTH.because())
                self.pin(given.labels, Reason.COMPUTED_WIDTH.because())
            else:
                self.ties.append((given.labels, labels.clone()))
        elif type(given) is int and given > 0:
            self.stale.append(StaleSize(tuple(self.stack), given, labels.clone(), whole))

    def settle_ties(self) -> Classes:
        """Enforces that widths which the code computes from one another stay in proportion; the classes that result.

        Most ties hold by themselves (the same channels, in another order); where one does not, channels at the same
        places are united.
        """
        pending = self.ties
        while True:
            self._check_time()
            classes = self.table.resolve()
            violated = [tie for tie in pending if not _in_proportion(classes.roots, *tie)]
            if not violated:
                return classes
            # Parts of a width first (the width of a head): they often bring the whole into proportion.
            batch = [tie for tie in violated if len(tie[0]) != len(tie[1])] or violated
            for other, labels in batch:
                self._unite_widths(other, labels)
            pending = [tie for tie in pending if all(tie is not other for other in batch)]

    def _unite_widths(self, other: Tensor, labels: Tensor) -> None:
        n, m = len(labels), len(other)
        if m % n == 0:
            self.unite(other.view(m // n, n), labels[None])
        elif n % m == 0:
            self.unite(labels.view(n // m, m), other[None])
        else:
            self.pin(labels, Reason.COMPUTED_WIDTH.because())
            self.pin(other, Reason.COMPUTED_WIDTH.because())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While entered, operations are the tracer's own: neither counted nor followed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TracingError(Reason.TRACE_TIME.because())

    # -- dispatch ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._check_time()
        kwargs = kwargs or {}
        if (out := taken_apart(self, func, args, kwargs)) is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        if self._paused:
            return out
        name = operation_name(func)
        self._current = name, self._counts[name]
        self._counts[name] += 1
        self.selects |= name in _SELECTING
        self._shade(Call(func, name, args, kwargs, out))
        return out

    def _shade(self, call: Call) -> None:
        operands = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        shadows = [self.shadow(tensor) for tensor in operands]
        self.pin_numbered(operands)
        constant = all(shadow.constant for shadow in shadows)
        outputs = call.out if isinstance(call.out, tuple | list) else [call.out]
        results: Sequence[Any] | None = [Shadow((), constant)] * len(outputs)
        if operands and all(isinstance(out, Tensor) and out.numel() == 0 for out in outputs):
            # Nothing holds no labels, and any width would seem right: weights stay, and what is chosen from is chosen
            # from by position.
            for shadow in shadows:
                for plane in shadow.planes if shadow.constant else ():
                    self.pin(plane, Reason.NOTHING_TO_COMPUTE.because())
            if any(shadow.planes and not shadow.constant for shadow in shadows):
                self._follow(call, shadows)
        elif any(shadow.planes for shadow in shadows) or (not operands and self.call is not None):
            results = self._follow(call, shadows) or results
        passed_on = call.name not in _PRODUCTS and any(shadow.scores for shadow in shadows)
        for tensor, shadow in zip(outputs, results or [], strict=False):
            # A tensor lifted from plain data may carry what unseen code computed: it does not count as seen.
            if isinstance(tensor, Tensor) and call.name != "lift_fresh":
                self.assign(tensor, shadow._replace(constant=constant, scores=shadow.scores or passed_on))

    def _follow(self, call: Call, shadows: Sequence[Shadow]) -> Sequence[Shadow] | None:
        """Shadows of the outputs by the operation's rule; without one, the channels of its operands stay."""
        results = self._apply(call)
        if results is None:
            cause = self._why_unfollowed(call)
            for shadow in shadows:
                for plane in shadow.planes:
                    self.pin(plane, cause)
        return results

    def _why_unfollowed(self, call: Call) -> Cause:
        if call.name in self.failures:
            return self.failures[call.name]
        reason = Reason.NO_RULE if _rule_of(call) is None else Reason.RULE_DECLINED
        return reason.because(operation=call.name)

    def _apply(self, call: Call) -> Sequence[Shadow] | None:
        function = _rule_of(call)
        if function is None:
            return None
        try:
            result = function(self, call)
        except SurgeryError:
            raise
        except Exception as error:
            self.rule_failed(call, error)
            return None
        return [result] if isinstance(result, Shadow) else result

    def rule_failed(self, call: Call, error: Exception) -> None:
        """Note that a rule raised: it gives the channels up, and never breaks the trace of a user's model.

        Of several failures at one operation the first is told, so that they part no channels into groups.
        """
        if call.name not in self.failures:
            self.failures[call.name] = Reason.RULE_FAILED.from_error(error, operation=call.name)
            logger.warning("%s: channels at this operation stay; please report it", self.failures[call.name])
            logger.debug("the traceback of that", exc_info=error)


def _rule_of(call: Call) -> Rule | None:
    """The rule of an operation; pointwise ones have one in common."""
    found = RULES.get(call.name)
    return RULES["pointwise"] if found is None and torch.Tag.pointwise in call.func.tags else found


def _in_proportion(roots: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether each class makes up the same share of both lists of labels."""
    classes_a, count_a = torch.unique(roots[a], return_counts=True)
    classes_b, count_b = torch.unique(roots[b], return_counts=True)
    return torch.equal(classes_a, classes_b) and bool((count_a * len(b) == count_b * len(a)).all())
