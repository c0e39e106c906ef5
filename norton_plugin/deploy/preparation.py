"""A compressed model made ready for inference: its blocks lowered in fast forms, its norms folded."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear, Form
from norton_plugin.deploy.choices import Forms, choose, given_forms, static_memory_format
from norton_plugin.deploy.compiling import NOT_CALLED, compiled
from norton_plugin.deploy.folding import FoldReport, fold_
from norton_plugin.deploy.inputs import largest_inputs
from norton_plugin.deploy.latency import compare_latency
from norton_plugin.deploy.lowering import lower_block
from norton_plugin.deploy.measured import FormTimer, clock, lowered_with
from norton_plugin.deploy.memory_format import FORMATS, lay_out_, runs_in_
from norton_plugin.deploy.region_pooling import pool_by_torchvision_
from norton_plugin.deploy.table import LINEAR, BlockChoice, DeploymentTable
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.duplication import duplicate
from norton_plugin.modules.run_state import preserved_state
from norton_plugin.modules.running import ForwardFunction, output_tensors, run_model
from norton_plugin.modules.swap import names_by_identity, swap_

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedModel:
    """A model for inference.

    Attributes:
        model: Lowered and folded, in evaluation mode; a copy.
        table: One entry per block, in the model's order; empty for a model that was only pruned.
        folded: Dotted names of the norms that were folded.
        left: Dotted names of the norms that were not, each with the reason.
        deployment: The table with memory format and machine, to be stored and taken over.
        milliseconds: Median time of the whole model on the example, by what was tried; empty where nothing was.
    """

    model: nn.Module
    table: tuple[BlockChoice, ...]
    folded: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    deployment: DeploymentTable
    milliseconds: Mapping[str, float]


def prepare(
    model: nn.Module,
    example_inputs: Any,
    *,
    forms: Forms = "static",
    fold: bool = True,
    compile: bool = False,
    rounds: int = 5,
    forward_fn: ForwardFunction | None = None,
) -> PreparedModel:
    """Make a copy of a model that computes the same, for inference alone, as fast as can be had.

    Args:
        model: Compressed, or not: it is left as it is. Forms that its blocks were given are not considered.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments, as the model will get them:
            batch, size, dtype and device are what is chosen for.
        forms: ``"static"`` chooses by the sizes of each block and its input, at once. ``"measured"`` times every form
            of each block, the dense one among them, and the whole model in both memory formats. A mapping of names of
            blocks to forms, or a table that was measured elsewhere, is taken as it is. A model that does not run in
            channels-last format, as one that takes views of maps, stays contiguous in any case.
        fold: Whether BatchNorms are folded into the layers before them (``fold_``).
        compile: Try ``torch.compile`` as well (``compiling.compiled``), and keep it where it is faster; with
            ``forms="measured"`` alone. It compiles what runs when the model is called, not what its methods run.
        rounds: Timed calls of everything that is measured.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call, as of ``compress``.

    Returns:
        The copy and what was done.

    Raises:
        SurgeryError: The model is itself a block, cannot be copied, or does not run on the example.
        RecipeError: Unknown forms, or a table that names a block which the model does not have.
    """
    taken_over = isinstance(forms, DeploymentTable) and forms.compiled
    if forward_fn is not None and (compile or taken_over):
        logger.warning("the model is not compiled: %s", NOT_CALLED)
        compile = taken_over = False
    copied = duplicate(model).eval()
    if isinstance(copied, ConvBlock | CPDLinear):
        raise SurgeryError(f"the model is itself a {type(copied).__name__}; use lower_block(model)")
    named = names_by_identity(copied)
    blocks = {module: names[0] for module, names in named.items() if isinstance(module, ConvBlock | CPDLinear)}
    given = given_forms(forms, list(blocks.values()))
    inputs = largest_inputs(copied, blocks, example_inputs, forward_fn)
    memory_format = forms.memory_format if isinstance(forms, DeploymentTable) else static_memory_format(copied, inputs)
    choices = {b: choose(name, b, inputs.get(b), given, memory_format) for b, name in blocks.items()}
    lowered: dict[nn.Module, nn.Module] = {b: lower_block(b, _form(choices[b])) for b in blocks}
    swap_(copied, lowered)
    pool_by_torchvision_(copied)
    report = fold_(copied, example_inputs, forward_fn=forward_fn) if fold else FoldReport((), ())
    sites = [_Site.of(block, lowered[block], inputs.get(block), report) for block in blocks]
    ready = _Ready(copied, tuple(choices.values()))
    example = _Example(example_inputs, forward_fn)
    if forms == "measured":
        ready = _measured(ready, sites, example, rounds=rounds, compile=compile)
    else:
        ready = replace(_static(ready, sites, example, given, memory_format), compiled=taken_over)
    deployment = DeploymentTable(ready.choices, ready.memory_format, ready.compiled, fold, _machine(example_inputs))
    final: Any = compiled(ready.model) if ready.compiled else ready.model
    return PreparedModel(
        final,
        ready.choices,
        report.folded,
        report.left,
        deployment,
        dict(ready.milliseconds),
    )


@dataclass(frozen=True)
class _Site:
    """The place of one block in the lowered model.

    Attributes:
        block: The block itself.
        module: What stands in its place.
        x: Its input, None where the example does not reach it.
        norm: The norm that was folded into it.
    """

    block: ConvBlock | CPDLinear
    module: nn.Module
    x: Tensor | None
    norm: nn.Module | None

    @classmethod
    def of(cls, block: ConvBlock | CPDLinear, lowered: nn.Module, x: Tensor | None, report: FoldReport) -> _Site:
        """Find where a lowered block is after folding."""
        for fold in report.folds:
            if fold.was is lowered:
                return cls(block, fold.layer, x, fold.norm)
            if isinstance(lowered, nn.Sequential) and any(module is fold.layer for module in lowered.modules()):
                return cls(block, lowered, x, fold.norm)
        return cls(block, lowered, x, None)


@dataclass(frozen=True)
class _Ready:
    model: nn.Module
    choices: tuple[BlockChoice, ...]
    memory_format: str = "contiguous"
    compiled: bool = False
    milliseconds: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Example:
    """What a model is run on, and how; see ``run_model``."""

    inputs: Any
    forward_fn: ForwardFunction | None

    def run(self, model: nn.Module) -> Any:
        return run_model(model, self.inputs, self.forward_fn)

    def same_in_(self, memory_format: str, model: nn.Module) -> bool:
        return runs_in_(model, memory_format, self.inputs, forward_fn=self.forward_fn)


def _static(
    ready: _Ready, sites: list[_Site], example: _Example, given: Mapping[str, str], memory_format: str
) -> _Ready:
    """Lay out the model; where it does not run so, choose forms again for the contiguous format."""
    if example.same_in_(memory_format, ready.model):
        return replace(ready, memory_format=memory_format)
    choices = tuple(
        choose(was.name, site.block, site.x, given, "contiguous")
        for site, was in zip(sites, ready.choices, strict=True)
    )
    _exchange_(ready.model, names_by_identity(ready.model), sites, ready.choices, choices)
    return _Ready(ready.model, choices)


def _exchange_(
    model: nn.Module,
    names: Mapping[nn.Module, Sequence[str]],
    sites: list[_Site],
    old: Sequence[BlockChoice],
    new: Sequence[BlockChoice],
) -> None:
    """Put the new forms of blocks in the places of the old ones, in the model or a copy of it."""
    for site, was, now in zip(sites, old, new, strict=True):
        if now.form != was.form:
            module = lowered_with(site.block, _form(now), site.norm)
            for name in names[site.module]:
                model.set_submodule(name, module)


def _measured(ready: _Ready, sites: list[_Site], example: _Example, *, rounds: int, compile: bool) -> _Ready:
    """Choose forms in both memory formats, then the faster of the two whole models, and torch.compile if asked for."""
    timer, names = FormTimer(rounds), names_by_identity(ready.model)
    variants: dict[str, _Ready] = {}
    for memory_format, memory in FORMATS.items():
        model = duplicate(ready.model)
        if not example.same_in_(memory_format, model):
            continue
        choices = tuple(
            _fastest(site, static, timer, memory_format) for site, static in zip(sites, ready.choices, strict=True)
        )
        _exchange_(model, names, sites, ready.choices, choices)
        variants[memory_format] = _Ready(lay_out_(model, memory), choices, memory_format)
    calls = {name: partial(example.run, variant.model) for name, variant in variants.items()}
    if compile:
        calls |= {f"{name}, compiled": partial(example.run, compiled(v.model)) for name, v in variants.items()}
    timed = list(calls.values()) if len(calls) > 1 else [*calls.values()] * 2  # a comparison takes two
    with torch.inference_mode(), ExitStack() as stack:
        for variant in variants.values():
            stack.enter_context(preserved_state(variant.model))
        timing = compare_latency(timed, rounds=rounds, warmup=2, clock=clock())
    milliseconds = {name: 1e3 * seconds for name, seconds in zip(calls, timing.seconds, strict=False)}
    best = min(milliseconds, key=lambda name: milliseconds[name])
    chosen = variants[best.removesuffix(", compiled")]
    return _Ready(chosen.model, chosen.choices, chosen.memory_format, best not in variants, tuple(milliseconds.items()))


def _fastest(site: _Site, static: BlockChoice, timer: FormTimer, memory_format: str) -> BlockChoice:
    if not isinstance(site.block, ConvBlock) or site.x is None:
        return static
    found = timer.milliseconds(site.block, site.norm, site.x, memory_format)
    form = min(found, key=lambda name: found[name])
    reason = f"{found['dense'] / found[form]:.2f}x as fast as the dense form, measured"
    if form == "dense":
        best = min((name for name in found if name != "dense"), key=lambda name: found[name])
        reason = f"all factored forms are slower, measured (best: {best}, {found['dense'] / found[best]:.2f}x)"
    return BlockChoice(static.name, form, found[form], reason, {str(name): ms for name, ms in found.items()})


def _form(choice: BlockChoice) -> Form | None:
    return None if choice.form == LINEAR else choice.form


def _machine(example_inputs: Any) -> dict[str, Any]:
    """Return what a choice depends on, for people who take the table over."""
    tensors = output_tensors(example_inputs)
    like = tensors[0] if tensors else torch.empty(0)
    return {
        "device": torch.cuda.get_device_name(like.device) if like.is_cuda else like.device.type,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(like.dtype).removeprefix("torch."),
        "inputs": [list(tensor.shape) for tensor in tensors],
        "torch": torch.__version__,
    }
