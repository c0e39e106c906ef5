"""How detectors of mmdet are traced: every part that can be, cut where tracing would fail or explode.

In two-stage detectors the RoI heads run on fixed regions: a trace cannot follow proposals, which are chosen by values.
Where the RoI head runs whole and its pooling can be followed, channels of the pyramid go like any others. Elsewhere
its parts run on stand-ins of regions, and the pyramid's channels are outputs of the trace, hence keep their width.
"""

from __future__ import annotations

import logging
from typing import Any

from mmdet.models.detectors import TwoStageDetector
from mmdet.models.detectors.base import BaseDetector
from torch import Tensor, nn

from norton_plugin.errors import message_of
from norton_plugin.zoo.detector_cost import regions_in_words, run_for_cost, run_tensor_mode
from norton_plugin.zoo.detector_runs import (
    PartByPart,
    ThroughPooling,
    features,
    parts_of,
    with_proposals,
)
from norton_plugin.zoo.fixed_regions import COMPARED_REGIONS
from norton_plugin.zoo.region_heads import (
    WHOLE_HEAD,
    Trace,
    parts_on_regions,
    pools_visibly,
    roi_layers_of,
)
from norton_plugin.zoo.visible_operators import visible_operators
from norton_plugin.zoo.what_runs import called, evaluating, idle_layers

logger = logging.getLogger(__name__)


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
    with evaluating(model), visible_operators():
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
        return ThroughPooling(tuple(parts), *counted, calibrated), covered
    return PartByPart(tuple(parts), *counted, calibrated), covered


def _all_that_reads(model: nn.Module, pyramid: Any) -> list[str]:
    """Return the parts that read the pyramid, the RoI head as one; none where they do not all run so, which is logged.

    A level from which no region is pooled, or a layer that does not run, would read channels that a trace does not see.
    """
    roi_head: Any = model.roi_head
    if not pools_visibly(roi_head):
        logger.info("the pyramid keeps its width: its regions are not pooled by RoIAlign of averages")
        return []
    parts = parts_on_regions(model, COMPARED_REGIONS)
    with called(model) as ran:
        try:
            for part in parts:
                parts[part](model, pyramid)
        except Exception as error:
            told = f"{type(error).__name__}: {message_of(error)}"
            logger.info("the pyramid keeps its width: %s does not run by itself (%s)", part, told)
            return []
    readers = {name: head for name, head in model.named_children() if name not in ("backbone", "neck")}
    idle = [f"{name}.{layer}" for name, head in readers.items() for layer in idle_layers(head, ran)]
    unread = set(roi_layers_of(roi_head)) - ran
    idle += [name for name, module in model.named_modules() if module in unread]
    if idle:
        logger.info("the pyramid keeps its width: %s does not run on fixed regions", idle[0])
    return [] if idle else list(parts)


def _parts_that_run(model: nn.Module, pyramid: Any) -> list[str]:
    """Return the names of the parts; a RoI head is run as a whole where its parts leave a layer of it idle."""
    parts: dict[str, set[nn.Module]] = {}
    for part, run in parts_of(model):
        known = set().union(*parts.values()) if parts else set()
        if part == WHOLE_HEAD and not idle_layers(model.get_submodule(part), known):
            continue
        with called(model) as ran:
            outcome = _outcome(model, part, run, pyramid)
        if outcome is None:
            continue
        if part == WHOLE_HEAD:
            parts = {name: own for name, own in parts.items() if not name.startswith(f"{part}.") or own - ran}
        parts[part] = ran
    return list(parts)


def without_heads(trace: Trace) -> tuple[Trace, str]:
    """Return what is left where the dependencies of a head cannot be traced; MACs are still those of all.

    Args:
        trace: Of ``trace_of``.
    """
    facts = {name: getattr(trace, name, trace) for name in ("counted", "calibrated")}
    return PartByPart((), regions=getattr(trace, "regions", ""), **facts), "backbone and neck"


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
