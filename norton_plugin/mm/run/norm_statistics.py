"""BatchNorms that keep their statistics while the compressed model trains."""

from __future__ import annotations

from torch import nn

# Of one process and of several (SyncBatchNorm), and all that are derived from them.
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def keep_statistics_(model: nn.Module) -> int:
    """Let all BatchNorms run with their running statistics until the model is next put into training mode, in place.

    Their weights and biases learn on. Modules inside of a norm, such as timm's activation and dropout, keep their mode.

    Args:
        model: In training mode, or not.

    Returns:
        How many there are.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, _NORMS) and norm.track_running_stats]
    for norm in norms:
        norm.training = False
    return len(norms)
