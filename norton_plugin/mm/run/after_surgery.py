"""What a freshly compressed model is given before it trains: BatchNorm statistics, and a score to start from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.runner import Runner
from torch import nn

from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.calibration.batch_norm import running_mode_
from norton_plugin.errors import SurgeryError
from norton_plugin.mm.run import training_images
from norton_plugin.mm.runner.migration import average_again_, plain_instances, unwrap
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.modules.run_state import preserved_state
from norton_plugin.surgery.structure import Structure

logger = logging.getLogger(__name__)
Tell = Callable[[str], None]
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def _silent(words: str) -> None:
    """Tell nobody."""


def reestimate_(runner: Runner, structure: Structure, *, images: int, tell: Tell = _silent) -> int:
    """Re-estimate BatchNorm statistics on training images, in place, alike on every rank.

    The model runs in its mode ``loss``, so that the heads of a detector see real regions. Norms that run before the
    first changed layer, such as those of frozen stages, keep their statistics: what reaches them is what it was.
    Statistics are those of the first rank's images. Random states are put back, and
    moving averages begin anew.

    Args:
        runner: Its model was just compressed.
        structure: Names the layers that changed.
        images: Most images to use, per rank.
        tell: Told how far it is.

    Returns:
        Images used per rank; 0 where there is nothing to re-estimate, or where it failed, which is logged.
    """
    model = unwrap(runner.model)
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    if not norms:
        return 0
    used, problem = 0, None
    with preserved_random_state(), plain_instances(model):
        for training in (False, True):  # some heads give their losses in training mode alone
            training_images.rewind(runner)
            batches = _told(training_images.batches(runner, model, training=True), tell)
            try:
                used, problem = _reestimated(model, structure, batches, images=images, training=training), None
                break
            except SurgeryError as error:
                problem = problem or error
    if problem is not None:
        runner.logger.warning("NORTON: BatchNorm statistics are left as they were: %s", problem)
    for norm in norms:
        for buffer in norm.buffers():
            broadcast(buffer)
    with plain_instances(model):
        average_again_(runner)
    return used


def _reestimated(model: nn.Module, structure: Structure, batches: Iterator[Any], *, images: int, training: bool) -> int:
    """Re-estimate in one mode; the number of images used."""
    first = list(islice(batches, 1))

    def run() -> None:
        for batch in first:
            _losses(model, batch)

    unchanged = before_surgery(model, structure, run, training=training)
    settings: dict[str, Any] = {"images": images, "keep": unchanged, "training": training}
    return reestimate_batch_norm_(model, chain(first, batches), call=_losses, **settings)


def before_surgery(
    model: nn.Module, structure: Structure, run: Callable[[], Any], *, training: bool = False
) -> set[nn.Module]:
    """Return the norms that run before every changed layer.

    Args:
        model: The compressed model.
        structure: Its structure.
        run: Runs the model; where that fails, what ran until then counts.
        training: As of ``calibration.batch_norm.running_mode_``.
    """
    kinds = ("block", "linear", "resize", "selected")
    changed = {entry["names"][0] for entry in structure["modules"] if any(entry.get(kind) for kind in kinds)}
    names = {module: name for name, module in model.named_modules()}
    order: list[nn.Module] = []
    watched = [module for module, name in names.items() if name in changed or isinstance(module, _NORMS)]
    handles = [module.register_forward_pre_hook(lambda own, _: order.append(own)) for module in watched]
    try:
        with preserved_state(model), torch.no_grad():
            running_mode_(model, training=training)
            run()
    except Exception:
        logger.debug("the model does not run on training images", exc_info=True)  # whoever needs it to run says so
    finally:
        for handle in handles:
            handle.remove()
    start = next((place for place, module in enumerate(order) if names[module] in changed), len(order))
    return set(order[:start]) - set(order[start:])


def evaluate(runner: Runner, *, tell: Tell = _silent) -> dict[str, float]:
    """Return the validation metrics of the model as it is, outside of the run's own validation: no hook hears of it.

    Args:
        runner: Has a validation loop with data and an evaluator.
        tell: Told how far it is.

    Returns:
        Metrics by their names; empty where the run does not validate.
    """
    loop = runner.val_loop
    if loop is None:
        return {}
    model = runner.model
    modes = [(module, module.training) for module in model.modules()]
    with preserved_random_state(), torch.no_grad():
        try:
            model.eval()
            for data in _told(loop.dataloader, tell):
                outputs = model.val_step(data)
                loop.evaluator.process(data_samples=outputs, data_batch=data)
            return dict(loop.evaluator.evaluate(len(loop.dataloader.dataset)))
        finally:
            for module, mode in modes:
                module.training = mode


def _told(batches: Iterable[Any], tell: Tell) -> Iterator[Any]:
    for number, batch in enumerate(batches, 1):
        tell(f"batch {number}")
        yield batch


def _losses(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, dict):
        model(**batch, mode="loss")
    else:
        model(*batch, mode="loss")
