"""Runs a model once and follows the channels of every tensor through every operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import SurgeryError
from norton_plugin.surgery.labels.planes import Shadow, along, compact, core, varying
from norton_plugin.surgery.labels.registry import Registry
from norton_plugin.surgery.labels.table import Classes, LabelTable
from norton_plugin.surgery.labels.widths import Scale, Width

Rule = Callable[["Tracer", "Call"], Any]
RULES: dict[str, Rule] = {}
# Labels a plane may hold; larger ones are given up (their channels stay), which bounds memory.
MAX_CORE = 1 << 24


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of some aten operations, named without overload and in-place underscore."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


@dataclass(frozen=True)
class Call:
    """One operation as it ran."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """A positional or keyword argument."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Step:
    """What an operation must do in the masked model.

    Attributes:
        kind: ``"zero"``: removed elements of the first operand count as zero. ``"reduce"``, ``"layer_norm"``,
            ``"group_norm"``, ``"batch_norm"``: statistics are taken over the kept positions.
        planes: Planes of the first operand.
    """

    kind: str
    planes: tuple[Tensor, ...]


@dataclass(frozen=True)
class StaleSize:
    """A literal integer that sized a labelled dimension: the code must be told its new value.

    Attributes:
        stack: Modules that were running, the innermost last.
        size: The integer.
        labels: Channels it counts.
        whole: Channels of the whole of which it counts a part; the integer may have been computed from its size.
    """

    stack: tuple[nn.Module, ...]
    size: int
    labels: Tensor
    whole: Tensor | None = None


@dataclass(frozen=True)
class Rescale:
    """Rows of layers whose outputs are multiplied by a power of a width that may change.

    Attributes:
        rows: Labels of the rows.
        width: Channels of the width.
        exponent: The power.
    """

    rows: Tensor
    width: Tensor
    exponent: float


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
        self.index = 0
        self.steps: dict[int, Step] = {}
        self.stale: list[StaleSize] = []
        self.stack: list[nn.Module] = []
        self.group_inputs: dict[nn.Module, Tensor] = {}
        self.norm_inputs: dict[nn.Module, Tensor] = {}
        self.whole_groups: dict[nn.Module, bool] = {}
        self.rescales: list[Rescale] = []
        self.ties: list[tuple[Tensor, Tensor]] = []
        self.problems: list[str] = []
        self._paused = False
        self.call: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
        self._shadows = WeakTensorKeyDictionary()

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
                    self.table.pin(core(plane), "one of its channels is taken out by position")
            elif core(plane).numel() > MAX_CORE:
                self.table.pin(core(plane), "its labels need too much memory")
            else:
                planes.append(plane)
        self._shadows[tensor] = shadow._replace(planes=tuple(planes))

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Unites labels of planes or vectors element by element."""
        self.table.unite(core(a), core(b))

    def pin(self, labels: Tensor, reason: str) -> None:
        """Pins the labels of a plane or vector."""
        self.table.pin(core(labels), reason)

    def step(self, kind: str, planes: Sequence[Tensor]) -> None:
        """Notes what the current operation does in the masked model."""
        if planes:
            self.steps[self.index] = Step(kind, tuple(planes))

    def set_role(self, planes: Sequence[Tensor], role: str) -> None:
        """Says what a parameter's dimension is to the operation that uses it."""
        for plane in planes:
            labels = core(plane).reshape(-1)
            labels = labels[labels != 0]
            if labels.numel():
                for position in torch.unique(self.registry.family_of(labels)).tolist():
                    self.registry.families[position].role = role

    def check_size(self, labels: Tensor, given: Any, whole: Tensor | None = None) -> None:
        """Relates the channels along a dimension to the integer that the code gave for its size."""
        if isinstance(given, Width):
            if given.offset:
                self.pin(labels, "its width is computed from that of other channels")
                self.pin(given.labels, "its width is computed from that of other channels")
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
            classes = self.table.resolve()
            violated = [tie for tie in pending if not _in_proportion(classes.roots, *tie)]
            if not violated:
                return classes
            for other, labels in violated:
                self._unite_widths(other, labels)
            pending = [tie for tie in pending if all(tie is not other for other in violated)]

    def _unite_widths(self, other: Tensor, labels: Tensor) -> None:
        n, m = len(labels), len(other)
        if m % n == 0:
            self.unite(other.view(m // n, n), labels[None])
        elif n % m == 0:
            self.unite(labels.view(n // m, m), other[None])
        else:
            self.pin(labels, "its width is computed from that of other channels")
            self.pin(other, "its width is computed from that of other channels")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While entered, operations are the tracer's own: neither counted nor followed."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    # -- dispatch ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if time.monotonic() > self.deadline:
            raise SurgeryError("the model's channels could not be followed within the time allowed for it")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._paused:
            return out
        self._shade(Call(func, func._overloadpacket.__name__.rstrip("_"), args, kwargs, out))
        self.index += 1
        return out

    def _shade(self, call: Call) -> None:
        operands = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        shadows = [self.shadow(tensor) for tensor in operands]
        constant = all(shadow.constant for shadow in shadows)
        outputs = call.out if isinstance(call.out, tuple | list) else [call.out]
        results: Sequence[Any] | None = [Shadow((), constant)] * len(outputs)
        if any(shadow.planes for shadow in shadows) or (not operands and self.call is not None):
            results = self._apply(call)
            if results is None:
                for shadow in shadows:
                    for plane in shadow.planes:
                        self.pin(plane, f"no rule follows channels through {call.name}")
                results = [Shadow((), constant)] * len(outputs)
        for tensor, shadow in zip(outputs, results or [], strict=False):
            if isinstance(tensor, Tensor):
                self.assign(tensor, shadow._replace(constant=constant))

    def _apply(self, call: Call) -> Sequence[Shadow] | None:
        function = RULES.get(call.name)
        if function is None and torch.Tag.pointwise in call.func.tags:
            function = RULES["pointwise"]
        if function is None:
            return None
        try:
            result = function(self, call)
        except SurgeryError:
            raise
        except Exception as error:
            self.problems.append(f"{call.name}: {type(error).__name__}: {error}")
            # A rule that meets arguments it does not foresee gives the channels up; it never breaks the trace.
            return None
        return [result] if isinstance(result, Shadow) else result


def _in_proportion(roots: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether each class makes up the same share of both lists of labels."""
    classes_a, count_a = torch.unique(roots[a], return_counts=True)
    classes_b, count_b = torch.unique(roots[b], return_counts=True)
    return torch.equal(classes_a, classes_b) and bool((count_a * len(b) == count_b * len(a)).all())


class SizeProvenance(TorchFunctionMode):
    """Makes ``x.shape`` and ``x.size()`` return integers that remember their channels, and notes each call.

    Args:
        tracer: Knows the shadows.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.shape.__get__ or name == "size":
            return self._size(func, args, kwargs)
        before, self.tracer.call = self.tracer.call, (name, args, kwargs)
        try:
            with self.tracer.paused():
                self._scales(name, args, kwargs)
            return func(*args, **kwargs)
        finally:
            self.tracer.call = before

    def _size(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        tensor = args[0]
        planes = self.tracer.shadow(tensor).planes
        if not planes:
            return out
        widths = {}
        with self.tracer.paused():
            for plane in planes:
                for d in varying(plane):
                    widths[d] = along(plane, d)

        def wrap(d: int, value: int) -> int:
            return Width.of(value, widths[d], self._used_as_value) if d in widths else value

        if isinstance(out, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return wrap(dim % tensor.dim(), out)
        return torch.Size([wrap(d, value) for d, value in enumerate(out)])

    def _used_as_value(self, labels: Tensor) -> None:
        with self.tracer.paused():
            self.tracer.pin(labels, "its width enters a computed value")

    def _scales(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes tensors that a power of a width multiplies; it is made good for in the rows that made them."""
        if name == "scaled_dot_product_attention":
            if kwargs.get("scale", args[6] if len(args) > 6 else None) is None:
                query = args[0] if args else kwargs["query"]
                for plane in self.tracer.shadow(query).planes:
                    if query.dim() - 1 in varying(plane):
                        self._rescale(query, along(plane, query.dim() - 1), -0.5)
            return
        for entry in args:
            if isinstance(entry, Scale):
                tensor = next((a for a in args if isinstance(a, Tensor)), None)
                if tensor is not None and name in ("mul", "__mul__", "__rmul__", "mul_", "__imul__"):
                    self._rescale(tensor, entry.labels, entry.exponent)
                else:
                    self.tracer.pin(entry.labels, "its width enters a computed value")

    def _rescale(self, tensor: Tensor, width: Tensor, exponent: float) -> None:
        rows = self.tracer.shadow(tensor).rows
        if rows is None:
            self.tracer.pin(width, "its width sets the scale of the attention")
        else:
            self.tracer.rescales.append(Rescale(torch.unique(core(rows)), width, exponent))


def given_sizes(tracer: Tracer, ndim: int) -> list[Any] | None:
    """The integers that the running code gave for the sizes of a reshape, or None where it gave none."""
    if tracer.call is None:
        return None
    name, args, kwargs = tracer.call
    if name == "unflatten":
        tensor, dim, sizes = args[0], args[1] if len(args) > 1 else kwargs["dim"], args[-1]
        dim %= tensor.dim()
        return [None] * dim + list(kwargs.get("sizes", sizes)) + [None] * (tensor.dim() - 1 - dim)
    if name not in ("view", "reshape", "expand", "zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones"):
        return None
    flat: list[Any] = []
    positional = args if name in ("zeros", "ones", "empty", "rand", "randn") else args[1:]
    for entry in (*positional, *(kwargs[k] for k in ("shape", "size") if k in kwargs)):
        flat += list(entry) if isinstance(entry, tuple | list) else [entry]
    return flat if len(flat) == ndim and all(isinstance(v, int) for v in flat) else None


@contextmanager
def plain_kernels() -> Iterator[None]:
    """While entered, attention runs as the elementary operations it is made of, so that they can be followed."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def dense_blocks(registry: Registry) -> Iterator[None]:
    """While entered, every CPDBlock runs as the dense convolution it equals, with a weight known to the registry."""
    with ExitStack() as stack:
        for block, weight in registry.block_weights.items():
            stack.callback(block.__dict__.pop, "forward", None)
            block.forward = _dense_forward(block, weight)  # type: ignore[method-assign,arg-type]
        yield


def _dense_forward(block: CPDBlock, weight: Tensor) -> Callable[[Tensor], Tensor]:
    from norton_plugin.blocks.padding import pad, sides

    def forward(x: Tensor) -> Tensor:
        margins = sides(
            block.padding,
            size=(int(x.shape[-2]), int(x.shape[-1])),
            kernel_size=block.kernel_size,
            stride=block.stride,
            dilation=block.dilation,
        )
        x = pad(x, margins, block.padding_mode)
        return nn.functional.conv2d(x, weight, block.bias, block.stride, 0, block.dilation, block.groups)

    return forward


@contextmanager
def module_stack(tracer: Tracer) -> Iterator[None]:
    """While entered, the tracer knows which modules run, and pins what enters code it cannot see."""
    tie = tracer.registry.shadows

    def enter(module: nn.Module, args: Any) -> None:
        tracer.stack.append(module)
        if isinstance(module, nn.MultiheadAttention):
            with tracer.paused():
                _tie_attention(tracer, module, tie)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while tracer.stack and tracer.stack.pop() is not module:
            pass
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if any(not tracer.seen(tensor) for tensor in made):
            with tracer.paused():
                for leaf in tree_leaves(args):
                    if isinstance(leaf, Tensor):
                        for plane in tracer.shadow(leaf).planes:
                            tracer.pin(plane, f"{type(module).__name__} computes in code that cannot be followed")

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tie_attention(tracer: Tracer, module: nn.MultiheadAttention, shadows: Any) -> None:
    """nn.MultiheadAttention takes its inner width from that of its input: embedding and projections go together."""
    if module.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        rows = [along(shadows[w].planes[0], 0) for w in weights]
        columns = along(shadows[weights[0]].planes[1], 1)
        for row in rows:
            tracer.unite(row, columns)
        tracer.rescales.append(Rescale(rows[0], columns.view(module.num_heads, -1)[0], -0.5))
    else:
        planes = shadows[module.in_proj_weight].planes
        columns = along(planes[1], 1)
        rows = along(planes[0], 0).view(3, -1)
        tracer.unite(rows, columns[None])
        tracer.rescales.append(Rescale(rows[0], columns.view(module.num_heads, -1)[0], -0.5))
    heads = columns.view(module.num_heads, -1)
    tracer.unite(heads, heads[:1])
