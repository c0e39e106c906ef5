"""How detectors of mmdet are traced: every part that can be, cut where tracing would fail or explode.

In two-stage detectors the RoI heads run on fixed regions: a trace cannot follow proposals, which are chosen by values.
Where the RoI head runs whole and its pooling can be followed, channels of the pyramid go like any others. Elsewhere
its parts run on stand-ins of regions, and the pyramid's channels are outputs of the trace, hence keep their width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmdet.models.detectors import DetectionTransformer, TwoStageDetector
from mmdet.models.detectors.base import BaseDetector
from torch import Tensor, nn

from norton_plugin.errors import message_of
from norton_plugin.zoo.detector_cost import (
    image_samples,
    regions_in_words,
    run_for_cost,
    run_tensor_mode,
)
from norton_plugin.zoo.region_heads import (
    WHOLE_HEAD,
    idle_layers,
    pools_visibly,
    region_parts,
    regions_of,
    run_on_pyramid,
    run_on_regions,
)
from norton_plugin.zoo.visible_operators import visible_operators

logger = logging.getLogger(__name__)

Trace = Callable[[nn.Module, Any], Any]
# Fixed regions of each image that two models are compared by.
_COMPARED = 32


def is_detector(model: nn.Module) -> bool:
    """Tell whether a model is one of mmdet's detectors."""
    return isinstance(model, BaseDetector)


def trace_of(model: nn.Module, example: Tensor) -> tuple[Trace, str]:
    """Return the function that runs all traceable parts of a detector, and what it covers in words.

    Parts that cannot be run by themselves are left out: their inputs are outputs of the trace and keep their width,
    and their convolutions can still be decomposed.

    Args:
        model: A detector.
        example: Normalised image (1, 3, H, W), to find out what runs.
    """
    with _evaluating(model), visible_operators():
        single = not isinstance(model, TwoStageDetector)
        if single and _outcome(model, "the whole", run_tensor_mode, example) is not None:
            return run_tensor_mode, "the whole detector"
        pyramid = _outcome(model, "the neck", features, example)
        if pyramid is None:
            return features, "backbone and neck"  # whoever runs it is told why it cannot be run
        whole = [] if single else _all_that_reads(model, pyramid)
        parts = whole or _parts_that_run(model, pyramid)
        counted = _counted(model, example, pyramid)
        calibrated = None if single else _calibrated(model, example)
    covered = ", ".join(["backbone and neck", *parts])
    if whole:
        return _ThroughPooling(tuple(parts), *counted, calibrated), covered
    return _PartByPart(tuple(parts), *counted, calibrated), covered


def _all_that_reads(model: nn.Module, pyramid: Any) -> list[str]:
    """Return the parts that read the pyramid, the RoI head as one; none where a layer of them does not run so."""
    if not pools_visibly(model.roi_head):  # type: ignore[arg-type]
        return []
    parts = [part for part, _ in _parts(model) if not part.startswith(WHOLE_HEAD)] + [WHOLE_HEAD]
    runs = dict(_parts(model)) | {WHOLE_HEAD: partial(run_on_regions, _COMPARED)}
    with _called(model) as called:
        try:
            for part in parts:
                runs[part](model, pyramid)
        except Exception as error:
            told = f"{type(error).__name__}: {message_of(error)}"
            logger.info("%s does not run on regions of the pyramid (%s), which keeps its width", part, told)
            return []
    readers = (head for name, head in model.named_children() if name not in ("backbone", "neck"))
    return [] if any(idle_layers(head, called) for head in readers) else parts


def _parts_that_run(model: nn.Module, pyramid: Any) -> list[str]:
    """Return the names of the parts; a RoI head is run as a whole where its parts leave a layer of it idle."""
    parts: dict[str, set[nn.Module]] = {}
    for part, run in _parts(model):
        known = set().union(*parts.values()) if parts else set()
        if part == WHOLE_HEAD and not idle_layers(model.get_submodule(part), known):
            continue
        with _called(model) as called:
            outcome = _outcome(model, part, run, pyramid)
        if outcome is None:
            continue
        if part == WHOLE_HEAD:
            parts = {name: own for name, own in parts.items() if not name.startswith(f"{part}.") or own - called}
        parts[part] = called
    return list(parts)


@contextmanager
def _called(model: nn.Module) -> Iterator[set[nn.Module]]:
    """While entered, modules of the model that are called are added to the set that is given."""
    called: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda own, _: called.add(own)) for module in model.modules()]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def without_heads(trace: Trace) -> tuple[Trace, str]:
    """Return what is left where the dependencies of a head cannot be traced; MACs are still those of all.

    Args:
        trace: Of ``trace_of``.
    """
    facts = {name: getattr(trace, name, trace) for name in ("counted", "calibrated")}
    return _PartByPart((), regions=getattr(trace, "regions", ""), **facts), "backbone and neck"


def exported_part(model: nn.Module) -> tuple[Trace, str]:
    """Return what tools for deployment expect in a file: tensors up to the heads, without boxes and suppression.

    Args:
        model: A detector.

    Returns:
        A function of the model and normalised images (B, 3, H, W), and what it covers in words.
    """
    if not isinstance(model, TwoStageDetector):
        return _up_to_the_head, "backbone, neck and the tensors of the head (mode 'tensor')"
    if getattr(model, "with_rpn", False):
        return _pyramid_and_regions, "backbone, neck and the tensors of the RPN head, without the RoI heads"
    return features, "backbone and neck, without the RoI heads"


def _up_to_the_head(model: nn.Module, example: Tensor) -> Any:
    if isinstance(model, DetectionTransformer):  # its masks are made for images of one size, from their descriptions
        return run_tensor_mode(model, example)
    return model(example, mode="tensor")  # without descriptions of the images, so that the batch can stay open


def _pyramid_and_regions(model: nn.Module, example: Tensor) -> Any:
    pyramid = features(model, example)
    return [pyramid, run_on_pyramid("rpn_head", model, pyramid)]


def features(model: nn.Module, example: Tensor) -> Any:
    """Run backbone and neck alone."""
    with visible_operators():
        return model.extract_feat(example)  # type: ignore[operator]


def with_proposals(model: nn.Module, images: Tensor) -> list[Any]:
    """Run a two-stage detector on images, its heads on the regions that it proposes itself.

    Args:
        model: A two-stage detector with a region proposal network.
        images: Normalised images (B, 3, H, W).

    Returns:
        Its pyramid, what the RPN says of it, and what the heads say of the proposals.
    """
    own: Any = model
    samples = image_samples(tuple(images.shape[-2:]), images)
    with visible_operators():
        pyramid = features(model, images)
        proposals = own.rpn_head.predict(pyramid, samples, rescale=False)
        return [pyramid, own.rpn_head(pyramid), own.roi_head.forward(pyramid, proposals, samples)]


class _PartByPart:
    """Runs the pyramid, then the given parts on it or on stand-ins of regions.

    Args:
        parts: Names of what follows the pyramid.
        counted: What MACs are counted on by ``compress``; None for the parts themselves.
        regions: On how many regions, in words.
        calibrated: What runs on images that ``compress`` calibrates on; None for the parts themselves.
    """

    def __init__(
        self,
        parts: tuple[str, ...],
        counted: Trace | None = None,
        regions: str = "",
        calibrated: Trace | None = None,
    ) -> None:
        self.parts = parts
        self.counted = counted or self
        self.regions = regions
        self.calibrated = calibrated or self
        # What heads say of proposals is not comparable: each model makes its own.
        self.distilled = _pyramid_and_regions if calibrated is with_proposals else self.calibrated

    def __call__(self, model: nn.Module, example: Tensor) -> Any:
        with visible_operators():
            pyramid = features(model, example)
            runs = dict(_parts(model))
            return [pyramid, *(runs[part](model, pyramid) for part in self.parts)]


class _ThroughPooling(_PartByPart):
    """Runs the pyramid, then all that reads it, the RoI head on fixed regions: channels of the pyramid can go.

    Two models are compared by what they say of a few such regions.
    """

    def __init__(self, *facts: Any) -> None:
        super().__init__(*facts)
        self.distilled = partial(self._on_regions, lambda _: _COMPARED)

    def __call__(self, model: nn.Module, example: Tensor) -> Any:
        return self._on_regions(regions_of, model, example)

    def _on_regions(self, count: Callable[[nn.Module], int], model: nn.Module, images: Tensor) -> list[Any]:
        with visible_operators():
            pyramid = features(model, images)
            runs = dict(_parts(model)) | {WHOLE_HEAD: partial(run_on_regions, count(model))}
            return [runs[part](model, pyramid) for part in self.parts]


def _counted(model: nn.Module, example: Tensor, pyramid: Any) -> tuple[Trace | None, str]:
    """Return what the MACs of a detector are counted on, heads that are not traced included, and on how many regions.

    Where the whole cannot be run, the parts that can are counted.
    """
    try:
        run_for_cost(model, example)
    except Exception as error:
        told = f"{type(error).__name__}: {message_of(error)}"
        logger.info("the whole detector does not run in mode tensor (%s): MACs are those of the parts traced", told)
        return None, ""
    return run_for_cost, regions_in_words(model, pyramid)


def _calibrated(model: nn.Module, example: Tensor) -> Trace:
    """Return what a two-stage detector is run by on images; without its heads where it cannot be run on proposals."""
    try:
        with_proposals(model, example)
    except Exception as error:
        told = f"{type(error).__name__}: {message_of(error)}"
        logger.info("the detector does not run on its own proposals (%s): its heads see no images", told)
        return features
    return with_proposals


def _parts(model: nn.Module) -> Iterator[tuple[str, Trace]]:
    """Parts that follow the neck, each a function of the model and its features."""
    if isinstance(model, TwoStageDetector):
        yield from region_parts(model)
        return
    for name, _ in model.named_children():
        if name.endswith("_head"):
            yield name, partial(run_on_pyramid, name)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients; flags come back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _outcome(model: nn.Module, part: str, run: Trace, inputs: Any) -> Any:
    """Return what a part returns; None where it cannot be run by itself, and the reason is logged."""
    try:
        return run(model, inputs)
    except Exception as error:
        logger.info(
            "%s is not traced (%s: %s): its layers are decomposed, not pruned",
            part,
            type(error).__name__,
            message_of(error),
        )
        return None
