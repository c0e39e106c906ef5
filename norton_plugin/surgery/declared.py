"""Widths that a model declares for code around it, such as timm's ``num_features``: measured before and after a cut.

Nothing inside of the model need read them, so no trace meets them; heads that are put on later do. What each declares
is the width of a tensor that can be watched while the model runs, and it is renewed where it was that width before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.channels.layers import layer_type
from norton_plugin.modules.feature_info import entries_of, list_widths_, listed_widths
from norton_plugin.modules.running import output_tensors, traceable

_FEATURES = ("num_features", "embed_dim")
_HEAD = "head_hidden_size"
# What blocks keep of their widths, for a second form of theirs (reparameterize of timm's MobileOne and FastViT).
_INPUTS, _OUTPUTS = ("in_chs", "in_channels", "dim"), ("out_chs", "out_channels")
Place = tuple[nn.Module, str, int]  # of an attribute, or of an entry of feature_info
Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Declared:
    """A width, and where it can be seen.

    Attributes:
        place: Module, attribute, and the entry where it is a list.
        value: What is declared.
        target: The module that makes or takes the tensor.
        what: ``"output"`` or ``"input"`` of the target, or the output of its method ``"forward_features"``.
    """

    place: Place
    value: int
    target: nn.Module
    what: str


class DeclaredWidths:
    """The declared widths of a model, as they are borne out before surgery.

    Runs of the model that others make are watched; it is run on purpose only where those did not come by a tensor.

    Args:
        model: Any model.
        run: Runs it once.
    """

    def __init__(self, model: nn.Module, run: Callable[[], Any]) -> None:
        self._model, self._run = model, run
        self._declared = list(_declarations(model))
        self._found: list[tuple[_Declared, int]] = []
        self._seen: dict[Place, Shape] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While entered, note the shape of each tensor in the first run that comes by it."""
        self._seen = {}
        with ExitStack() as stack:
            for each in self._declared:
                stack.enter_context(_watching(each, self._seen))
            yield

    def note(self) -> None:
        """Note which widths are borne out, before surgery."""
        seen = self._measured()
        axes = ((each, _axis(seen.get(each.place, ()), each.value)) for each in self._declared)
        self._found = [(each, axis) for each, axis in axes if axis is not None]
        self._declared, self._seen = [each for each, _ in self._found], {}

    def renew_(self) -> int:
        """Set what changed to what is seen now, in place, and return how many attributes that were."""
        if not self._found:
            return 0
        seen = self._measured()
        new = {d.place: seen[d.place][axis] for d, axis in self._found if len(seen.get(d.place, ())) > axis}
        lists: dict[nn.Module, list[int]] = {}
        renewed = 0
        for (module, name, entry), width in new.items():
            if entry >= 0:
                widths = lists.setdefault(module, listed_widths(module))
                renewed += widths[entry] != width
                widths[entry] = width
            elif vars(module)[name] != width:
                vars(module)[name] = width
                renewed += 1
        for module, widths in lists.items():
            if widths != listed_widths(module):
                list_widths_(module, widths)
        return renewed

    def _measured(self) -> dict[Place, Shape]:
        """Return the shape of each tensor; those that no run comes by are absent."""
        seen = dict(self._seen)
        missing = [each for each in self._declared if each.place not in seen]
        if not missing:
            return seen
        with traceable(self._model), ExitStack() as stack:
            for each in missing:
                stack.enter_context(_watching(each, seen))
            try:
                self._run()
            except Exception:
                return dict(self._seen)  # whoever needs it to run says so
        return seen


def _axis(shape: Shape, width: int) -> int | None:
    """Return the axis of a tensor that has this width: of maps the first after the batch, of sequences the last."""
    order = (1, len(shape) - 1) if len(shape) == 4 else (len(shape) - 1, 1)
    return next((axis for axis in order if 0 < axis < len(shape) and shape[axis] == width), None)


def _declarations(model: nn.Module) -> Iterator[_Declared]:
    for module in model.modules():
        if layer_type(module) is not None or isinstance(module, torch.jit.ScriptModule):
            continue
        held = {name: value for name, value in vars(module).items() if type(value) is int}
        if callable(getattr(type(module), "forward_features", None)):
            for name in _FEATURES:
                if name in held:
                    yield _Declared((module, name, -1), held[name], module, "forward_features")
        elif isinstance(head := module._modules.get("fc"), nn.Module):
            sizes = (("in_features", module), ("num_features", head), ("hidden_size", head))
            yield from (_Declared((module, n, -1), held[n], target, "input") for n, target in sizes if n in held)
        if _HEAD in held and callable(find := getattr(module, "get_classifier", None)):
            classifier = find()
            if isinstance(classifier, nn.Module) and not isinstance(classifier, nn.Identity):
                yield _Declared((module, _HEAD, -1), held[_HEAD], classifier, "input")
        for names, what in ((_INPUTS, "input"), (_OUTPUTS, "output")):
            yield from (_Declared((module, name, -1), held[name], module, what) for name in names if name in held)
        if (groups := held.get("groups", 1)) > 1:
            every = any(held.get(name) == groups for name in _INPUTS)  # a group for every channel
            target = module if every else _depthwise(module, groups)
            if target is not None:
                yield _Declared((module, "groups", -1), groups, target, "input")
        yield from _listed(module)


def _depthwise(module: nn.Module, groups: int) -> nn.Module | None:
    """Return a depthwise convolution inside a module that has as many groups as the module says."""
    convs = (each for each in module.modules() if isinstance(each, nn.Conv1d | nn.Conv2d | nn.Conv3d))
    return next((conv for conv in convs if conv.groups == conv.in_channels == conv.out_channels == groups), None)


def _listed(module: nn.Module) -> Iterator[_Declared]:
    known = dict(module.named_modules())
    for number, entry in enumerate(entries_of(module)):
        name = str(entry.get("module", ""))
        # A network of features names its stages with underscores.
        target = known.get(name) or known.get(name.replace(".", "_"))
        if target is not None and target is not module:
            yield _Declared((module, "feature_info", number), entry["num_chs"], target, "output")


@contextmanager
def _watching(declared: _Declared, seen: dict[Place, Shape]) -> Iterator[None]:
    """While entered, note the shape of the tensor."""

    def note(found: Any) -> None:
        tensors = [t for t in output_tensors(found) if t.dim() > 1]
        if tensors:
            seen.setdefault(declared.place, tuple(tensors[0].shape))

    target = declared.target
    if declared.what == "forward_features":
        with _method_watched(target, note):
            yield
        return
    if declared.what == "input":
        handle = target.register_forward_pre_hook(lambda _, inputs: note(inputs))
    else:
        handle = target.register_forward_hook(lambda _, inputs, output: note(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _method_watched(target: nn.Module, note: Callable[[Any], None]) -> Iterator[None]:
    own = vars(target).get("forward_features")
    called = target.forward_features

    def watched(method: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        output = method(*args, **options)
        note(output)
        return output

    vars(target)["forward_features"] = partial(watched, called)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if own is None:
            del vars(target)["forward_features"]
        else:
            vars(target)["forward_features"] = own
