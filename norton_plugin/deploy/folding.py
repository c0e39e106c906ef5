"""Folding BatchNorms into the layers whose outputs they alone read, in any model that is done with training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from norton_plugin.deploy.fold_weights import LAYERS, folded, is_norm, rest_of, unfoldable
from norton_plugin.deploy.lowering import SelectChannels
from norton_plugin.deploy.readers import Readers
from norton_plugin.deploy.same_outputs import difference, layer_tolerance, outputs_of
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import ForwardFunction, relative_error, run_model, traceable
from norton_plugin.modules.swap import names_by_identity, swap_


@dataclass(frozen=True)
class Fold:
    """One norm that was folded.

    Attributes:
        norm: The norm, no longer part of the model.
        layer: The layer that now computes both.
        was: The layer before.
    """

    norm: nn.Module
    layer: nn.Module
    was: nn.Module


@dataclass(frozen=True)
class FoldReport:
    """What ``fold_`` did.

    Attributes:
        folded: Dotted names of the norms that are gone.
        left: Dotted names of the others, each with the reason.
        folds: The same as ``folded``, as modules.
    """

    folded: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    folds: tuple[Fold, ...] = ()


@dataclass(frozen=True)
class _Pair:
    norm: nn.Module
    layer: nn.Module
    selector: SelectChannels | None

    @property
    def index(self) -> Tensor | None:
        return None if self.selector is None else self.selector.index


def fold_(model: nn.Module, example_inputs: Any, *, forward_fn: ForwardFunction | None = None) -> FoldReport:
    """Fold every BatchNorm into the convolution or Linear layer whose output it alone reads, in place.

    What reads what is seen in a run of the model (``readers.Readers``), not taken from names or from the order of
    modules. Each folded layer is compared with its layer and norm on the inputs they really get, and then the model's
    outputs; what differs stays as it was, with the reason. The result is for evaluation only.

    Args:
        model: Left in evaluation mode. Norms become ``nn.Identity``, or what else they held, such as an activation.
        example_inputs: See ``modules.running.run_model``.
        forward_fn: Runs the model in place of the plain call.

    Returns:
        What was folded and what was left.

    Raises:
        SurgeryError: The model does not run on the example; it is as it was then, but in evaluation mode.
    """
    model.eval()
    names = {module: all_names[0] for module, all_names in names_by_identity(model).items()}
    norms = [module for module in names if is_norm(module)]
    try:
        outputs = outputs_of(model, example_inputs, forward_fn)
        with traceable(model):
            pairs, left = _pairs(model, example_inputs, forward_fn, norms, names)
            new = {pair: folded(pair.layer, pair.norm, pair.index) for pair in pairs}
            errors = _errors(model, example_inputs, forward_fn, new)
    except SurgeryError:
        raise
    except Exception as error:
        raise SurgeryError(
            f"the model does not run on the example inputs ({type(error).__name__}: {error}); give an example of the "
            "shape, dtype and device it expects"
        ) from error
    for pair in [pair for pair in pairs if errors[pair] > layer_tolerance(pair.layer)]:
        left[pair.norm] = f"folded, its outputs would differ by {errors[pair]:.0e}"
        del new[pair]
    problems = _exchange_(new, lambda done: _changed(model, example_inputs, forward_fn, outputs, done), model)
    left |= {pair.norm: problem for pair, problem in problems.items()}
    new = {pair: layer for pair, layer in new.items() if pair not in problems}
    return FoldReport(
        tuple(names[pair.norm] for pair in new),
        tuple((names[norm], left[norm]) for norm in norms if norm in left),
        tuple(Fold(pair.norm, layer, pair.layer) for pair, layer in new.items()),
    )


def _pairs(
    model: nn.Module, example_inputs: Any, forward_fn: Any, norms: Sequence[nn.Module], names: dict[nn.Module, str]
) -> tuple[list[_Pair], dict[nn.Module, str]]:
    """Find the norms that can be folded, and why the others cannot."""
    selectors = [module for module in names if isinstance(module, SelectChannels)]
    layers = [module for module in names if isinstance(module, LAYERS)]
    seen = Readers([*layers, *selectors], [*norms, *selectors])
    seen.watch(model, lambda: run_model(model, example_inputs, forward_fn))
    pairs: list[_Pair] = []
    left: dict[nn.Module, str] = {}
    for norm in norms:
        found = _pair_of(norm, seen, names)
        if isinstance(found, _Pair):
            pairs.append(found)
        else:
            left[norm] = found
    return pairs, left


def _pair_of(norm: nn.Module, seen: Readers, names: dict[nn.Module, str]) -> _Pair | str:
    if norm is next(iter(names)):
        return "it is the whole model"
    if norm not in seen.sources:
        return "the example does not reach it"
    selector: SelectChannels | None = None
    layer = _sole_source(norm, seen)
    if isinstance(layer, SelectChannels):
        selector, layer = layer, _sole_source(layer, seen)
        if seen.of[selector] != {norm}:
            return f"something else reads the output of {names[selector]}, too"
    if layer is None:
        return "its input is not the output of one convolution or Linear layer"
    if seen.of[layer] != {selector or norm}:
        return f"something else reads the output of {names[layer]}, too"
    if layer in seen.shared:
        return f"something else reads the weight of {names[layer]}, too"
    return unfoldable(layer, norm, reordered=selector is not None) or _Pair(norm, layer, selector)


def _sole_source(reader: nn.Module, seen: Readers) -> nn.Module | None:
    sources = seen.sources[reader]
    return next(iter(sources)) if len(sources) == 1 else None


def _errors(model: nn.Module, example_inputs: Any, forward_fn: Any, new: dict[_Pair, nn.Module]) -> dict[_Pair, float]:
    """Run the model as it is, every folded layer beside its layer and norm; return the largest relative errors."""
    errors = dict.fromkeys(new, 0.0)
    waiting: dict[_Pair, Tensor] = {}

    def compute(pair: _Pair, inputs: Any) -> None:
        y = new[pair].forward(*inputs)
        y = y if pair.selector is None else pair.selector.forward(y)
        waiting[pair] = rest_of(pair.norm)(y)

    def compare(pair: _Pair, output: Tensor) -> None:
        errors[pair] = max(errors[pair], relative_error([waiting.pop(pair).double()], [output.double()]))

    with ExitStack() as stack:
        for pair in new:
            before = pair.layer.register_forward_pre_hook(lambda _, inputs, p=pair: compute(p, inputs))
            after = pair.norm.register_forward_hook(lambda _, inputs, output, p=pair: compare(p, output))
            stack.callback(before.remove)
            stack.callback(after.remove)
        run_model(model, example_inputs, forward_fn)
    return errors


def _exchange_(
    new: dict[_Pair, nn.Module], changed: Callable[[Sequence[_Pair]], str | None], model: nn.Module
) -> dict[_Pair, str]:
    """Fold pairs in place and return those that the model does not bear, each with the reason.

    All at once; where the model's outputs change, one half after the other: one norm that the model reads in another
    way, too, does not cost the others.
    """
    pairs = list(new)
    replacements = {pair.layer: new[pair] for pair in pairs} | {pair.norm: rest_of(pair.norm) for pair in pairs}
    swap_(model, replacements)
    problem = changed(pairs)
    if problem is None:
        return {}
    swap_(model, {after: before for before, after in replacements.items()})
    if len(pairs) == 1:
        return {pairs[0]: problem}
    halves = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    found = [_exchange_({pair: new[pair] for pair in half}, changed, model) for half in halves]
    return found[0] | found[1]


def _changed(
    model: nn.Module, example_inputs: Any, forward_fn: Any, outputs: list[Tensor], pairs: Sequence[_Pair]
) -> str | None:
    """Say how the outputs of the folded model differ; None where they do not, or where rounding alone changes them."""
    if not pairs:
        return None
    tolerance = max(layer_tolerance(pair.layer) for pair in pairs)
    try:
        error = difference(model, example_inputs, forward_fn, outputs, tolerance=tolerance)
    except Exception as error_of_model:  # it reads something of its norms
        return f"without its norms the model does not run ({type(error_of_model).__name__}: {error_of_model})"
    return None if error is None else f"folded, the model's outputs would differ by {error:.0e}"
