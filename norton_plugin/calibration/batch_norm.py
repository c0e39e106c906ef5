"""BatchNorm statistics of a changed model (docs/method.md, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.batches import batch_size
from norton_plugin.errors import SurgeryError, first_line_of

# SyncBatchNorm runs only where processes are joined; its statistics are re-estimated alike.
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def reestimate_batch_norm_(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    call: Callable[[nn.Module, Any], Any],
    images: int = 1024,
    keep: Collection[nn.Module] = (),
    training: bool = False,
) -> int:
    """Replace the running statistics of every BatchNorm by those of the given images, in place.

    Mean and unbiased variance are plain averages over the batches. Layers that are kept in evaluation mode by the
    training configuration (``norm_eval``) are re-estimated too; layers that the images do not reach keep what they
    have. All other modules run in evaluation mode, or as ``running_mode_`` says.

    Args:
        model: Changed in place: buffers only.
        batches: Batches as ``call`` takes them; tensors of shape (B, ...) are counted by B, lists of single images
            by their length.
        call: ``(model, batch)``, one forward pass.
        images: Most images to use.
        keep: BatchNorms that are left alone.
        training: As of ``running_mode_``.

    Returns:
        The number of images used; 0 where the model has no BatchNorm with running statistics.

    Raises:
        SurgeryError: No batch came, the model does not run on one, or statistics are not finite; the old ones are
            kept then.
    """
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats and m not in keep]
    if not norms:
        return 0
    modes = [(module, module.training) for module in model.modules()]
    old = [(m, m.momentum, {k: v.clone() for k, v in m.named_buffers(recurse=False)}) for m in norms]
    seen = 0
    try:
        running_mode_(model, training=training)
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True  # of the norm alone: timm's hold an activation and a dropout too
        with torch.no_grad():
            for batch in batches:
                _run(model, batch, call)
                seen += batch_size(batch)
                if seen >= images:
                    break
        if seen == 0:
            raise SurgeryError(
                "BatchNorm statistics cannot be re-estimated: the calibration data holds no batch; give some images, "
                "or no calibration data"
            )
        used = [m for m in norms if int(m.num_batches_tracked) > 0]  # type: ignore[arg-type]
        if any(not torch.isfinite(b).all() for m in used for b in (m.running_mean, m.running_var)):  # type: ignore[arg-type]
            raise SurgeryError("re-estimated BatchNorm statistics are not finite; check the calibration images")
        # Layers the images did not reach (auxiliary heads) keep what they had.
        _restore([entry for entry in old if entry[0] not in used])
    except BaseException:
        _restore(old)
        raise
    finally:
        for norm, momentum, buffers in old:
            norm.momentum = momentum
            norm.num_batches_tracked = buffers["num_batches_tracked"]
        for module, mode in modes:
            module.training = mode
    return seen


def running_mode_(model: nn.Module, *, training: bool) -> None:
    """Put a model into the mode in which statistics are estimated, in place.

    Args:
        model: Ends in evaluation mode.
        training: All but norms and what drops at random in training mode: some heads give their losses in no other.
    """
    model.eval()
    for module in model.modules() if training else ():
        module.training = not (isinstance(module, _BATCH_NORMS) or "Drop" in type(module).__name__)


def _run(model: nn.Module, batch: Any, call: Callable[[nn.Module, Any], Any]) -> None:
    try:
        call(model, batch)
    except Exception as error:
        raise SurgeryError(
            f"the model does not run on a calibration batch ({type(error).__name__}: {first_line_of(error)}); give "
            "batches like the example inputs, of two images or more where a BatchNorm sees maps of one pixel"
        ) from error


def _restore(entries: list[tuple[Any, Any, dict[str, Tensor]]]) -> None:
    for norm, _, buffers in entries:
        for name, value in buffers.items():
            getattr(norm, name).copy_(value)
