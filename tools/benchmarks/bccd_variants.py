"""The variants of the blood cell detector: changes to its norton config, as a user types them on the command line."""

from __future__ import annotations

HOOK = "default_hooks.norton."
# Learning from the dense detector's scores and boxes, which keep their width in any case.
DISTILLED = [f"{HOOK}distill.weight=1.0", f"{HOOK}distill.layers=[bbox_head.retina_cls,bbox_head.retina_reg]"]
FILTER_LEVEL = [f"{HOOK}rank=3", f"{HOOK}ranks.bbox_head=4", f"{HOOK}keep=1.0"]
# Components shared by all filters of a layer, at no more MACs than the ranks of "decomposition".
LAYER_LEVEL = [f"{HOOK}level=layer", *FILTER_LEVEL]
# The package's own default for factors (docs/method.md): the config's AdamW has the usual 0.9.
BETA = ["optim_wrapper.optimizer.betas=(0.5,0.999)"]
RATE = ["optim_wrapper.optimizer.lr=2e-3"]
LOW_RATE = ["optim_wrapper.optimizer.lr=1e-4"]
# No sizes by hand: all layers within a budget of MACs, and every layer fitted to training images without their labels.
FREE = [f"{HOOK}rank=None", f"{HOOK}keep=1.0"]
HALF, THIRD = [*FREE, f"{HOOK}budget.macs=0.5"], [*FREE, f"{HOOK}budget.macs=0.3"]
# Within a share of the milliseconds that the dense detector takes here, one image at a time, one thread.
FAST_HALF, FAST_THIRD = [*FREE, f"{HOOK}budget.latency=0.5"], [*FREE, f"{HOOK}budget.latency=0.33"]
FITTED = [f"{HOOK}calibrate=True"]
BOTH = [f"{HOOK}budget.prune=True"]
# As many as the hook read of each image before it chose them by layer.
FEW_POSITIONS = [f"{HOOK}positions=50"]
STEM = [f"{HOOK}exclude=[backbone.conv1]"]
# Norms in training mode, as all variants had before the hook kept the statistics of norms where batches are small.
OF_BATCHES = [f"{HOOK}norm_eval=False"]
# Without a budget all come to 49-50 % of the MACs.
VARIANTS: dict[str, list[str]] = {
    "dense": [],
    "dense, rate 0.0001": [*LOW_RATE],
    "dense, rate 0.0001, statistics kept": [
        *LOW_RATE,
        "default_hooks.kept.type=kept_statistics.KeptStatistics",  # imported by its path
    ],
    "hybrid, rank 5": [],
    "hybrid, rank 4": [f"{HOOK}rank=4", f"{HOOK}keep=0.92", f"{HOOK}round_to=2"],
    "decomposition": [*FILTER_LEVEL],
    "pruning": [f"{HOOK}rank=None", f"{HOOK}keep=0.7"],
    "hybrid, rank 5, distilled": [*DISTILLED],
    "decomposition, distilled": [*FILTER_LEVEL, *DISTILLED],
    "decomposition, layer level": [*LAYER_LEVEL],
    "decomposition, layer level, distilled": [*LAYER_LEVEL, *DISTILLED],
    "decomposition, layer level, first beta 0.5": [*LAYER_LEVEL, *BETA],
    "decomposition, layer level, first beta 0.5, rate 0.002": [*LAYER_LEVEL, *BETA, *RATE],
    "decomposition, first beta 0.5, rate 0.002": [*FILTER_LEVEL, *BETA, *RATE],
    "decomposition, layer level, fitted": [*LAYER_LEVEL, *FITTED, *BETA, *RATE],
    "decomposition, layer level, fitted, distilled": [*LAYER_LEVEL, *FITTED, *DISTILLED, *BETA, *RATE],
    "budget 50 %, no images": [*HALF, *BETA, *RATE],
    "budget 50 %, no images, distilled, the config's own rate": [*HALF, *DISTILLED],
    "budget 30 %, no images, distilled, the config's own rate": [*THIRD, *DISTILLED],
    "budget 50 %, fitted": [*HALF, *FITTED, *BETA, *RATE],
    "budget 50 %, fitted, distilled": [*HALF, *FITTED, *DISTILLED, *BETA, *RATE],
    "budget 50 %, fitted, distilled, the config's own rate": [*HALF, *FITTED, *DISTILLED],
    "budget 50 %, fitted, distilled, rate 0.0001": [*HALF, *FITTED, *DISTILLED, *LOW_RATE],
    "budget 50 %, fitted, distilled, rate 0.0001, statistics of batches": [
        *HALF,
        *FITTED,
        *DISTILLED,
        *LOW_RATE,
        *OF_BATCHES,
    ],
    "decomposition, distilled, statistics of batches": [*FILTER_LEVEL, *DISTILLED, *OF_BATCHES],
    "hybrid, rank 5, distilled, statistics of batches": [*DISTILLED, *OF_BATCHES],
    "latency 50 %, fitted, distilled, rate 0.0001": [*FAST_HALF, *FITTED, *DISTILLED, *LOW_RATE],
    "latency 50 %, both phases, fitted, distilled, rate 0.0001": [
        *FAST_HALF,
        *BOTH,
        *FITTED,
        *DISTILLED,
        *LOW_RATE,
    ],
    "latency 50 %, both phases, fitted, distilled": [*FAST_HALF, *BOTH, *FITTED, *DISTILLED],
    "latency 33 %, both phases, fitted, distilled, rate 0.0001": [
        *FAST_THIRD,
        *BOTH,
        *FITTED,
        *DISTILLED,
        *LOW_RATE,
    ],
    "budget 50 %, both phases, fitted, distilled, rate 0.0001": [*HALF, *BOTH, *FITTED, *DISTILLED, *LOW_RATE],
    "pruning, keep 0.7, fitted, distilled": [f"{HOOK}rank=None", f"{HOOK}keep=0.7", *FITTED, *DISTILLED],
    "pruning, keep 0.5, fitted, distilled": [f"{HOOK}rank=None", f"{HOOK}keep=0.5", *FITTED, *DISTILLED],
    "budget 50 %, fitted, first layer dense": [*HALF, *FITTED, *STEM, *BETA, *RATE],
    "budget 50 %, fitted at 50 positions": [*HALF, *FITTED, *FEW_POSITIONS, *BETA, *RATE],
    "budget 30 %, no images": [*THIRD, *BETA, *RATE],
    "budget 30 %, fitted": [*THIRD, *FITTED, *BETA, *RATE],
    "budget 30 %, fitted, distilled": [*THIRD, *FITTED, *DISTILLED, *BETA, *RATE],
    "budget 30 %, fitted, distilled, rate 0.0001": [*THIRD, *FITTED, *DISTILLED, *LOW_RATE],
}


_TRAINING = ("optim_wrapper.", f"{HOOK}distill.", f"{HOOK}norm_eval=")


def surgery_of(name: str) -> str:
    """Return the first variant that is compressed as this one is: the two differ in their training at most."""
    compressed = (other for other in VARIANTS if not other.startswith("dense"))
    return next(other for other in compressed if _compression(other) == _compression(name))


def _compression(name: str) -> list[str]:
    return [option for option in VARIANTS[name] if not option.startswith(_TRAINING)]
