"""Knowledge distillation: learn from the uncompressed model's outputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.distillation import feature_loss
from norton_plugin.distillation.places import blocks_of, recorded
from norton_plugin.errors import RecipeError


class Teacher:
    """A frozen model that no one owns: it appears in no state dict and is not copied with its student.

    Args:
        model: The model to learn from; set to eval mode.
        blocks: Names of blocks of the student whose outputs are compared.

    Attributes:
        blocks: The same, none where the model has other blocks.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str] = ()) -> None:
        self.model = model.eval()
        self.blocks = tuple(blocks) if set(blocks) == set(blocks_of(model)) else ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        """Share the teacher between a model and its moving average."""
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return the teacher's logits (B, classes) for images (B, C, H, W), and the outputs of the blocks."""
        with recorded(self.model, self.blocks) as outputs:
            logits: Tensor = self.model(images)
        return logits, outputs


class FeatureDistillation:
    """Adds ``loss_distill`` to the losses of a model of mmengine: its features against those of a teacher.

    It listens by forward hooks, so that any training step, distributed wrapper or gradient accumulation around the
    model works as before. Only calls in mode ``loss`` while training count.

    Args:
        model: The model that learns, unwrapped.
        teacher: Frozen, in evaluation mode, with the same layers; not part of ``model``.
        layers: Dotted names of the layers whose outputs are compared.
        weight: Multiplier of :func:`feature_loss`, above 0.
    """

    NAME = "loss_distill"

    def __init__(self, model: nn.Module, teacher: nn.Module, layers: Sequence[str], *, weight: float) -> None:
        self.teacher, self.layers, self.weight = teacher, tuple(layers), weight
        self._active = False
        self._seen: list[Tensor] = []
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True),
            *(model.get_submodule(name).register_forward_hook(self._record) for name in self.layers),
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> "FeatureDistillation":
        """Share the teacher between a model and its moving average."""
        return self

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._active = module.training and (kwargs.get("mode") == "loss" or "loss" in args[2:3])
        self._seen = []

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._active:
            self._seen += _tensors(output)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not self._active:
            return None
        self._active = False
        student, self._seen = self._seen, []
        if not any(each.requires_grad for each in student):
            raise RecipeError(
                f"distillation compares the outputs of {', '.join(self.layers)}, which carry no gradient: they are "
                "frozen, lie within activation checkpointing, or did not run; name other layers"
            )
        inputs = kwargs["inputs"] if "inputs" in kwargs else args[0]
        samples = kwargs.get("data_samples", args[1] if len(args) > 1 else None)
        teacher = features(self.teacher, self.layers, inputs, samples)
        shapes = [[tuple(each.shape) for each in found] for found in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise RecipeError(
                f"distillation compares the outputs of {', '.join(self.layers)}, but they have shapes {shapes[0]}, and "
                f"{shapes[1]} in the dense model; keep their width (keeps={{pattern: 1.0}}), or name other layers"
            )
        return {**output, self.NAME: self.weight * feature_loss(student, teacher)}


@torch.no_grad()
def features(model: nn.Module, layers: Sequence[str], inputs: Any, data_samples: Any = None) -> list[Tensor]:
    """Return all floating-point tensors that the named layers return for a batch, in the order in which they run.

    Detectors run their backbone and neck alone where no other layer is named; anything else runs in mode ``tensor``.

    Args:
        model: A model of mmengine.
        layers: Dotted names.
        inputs: Preprocessed images.
        data_samples: What the model takes beside them; two-stage detectors need it beyond the neck.
    """
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(n).register_forward_hook(lambda _, a, out: seen.extend(_tensors(out))) for n in layers
    ]
    early = all(name.partition(".")[0] in ("backbone", "neck") for name in layers)
    try:
        if early and hasattr(model, "extract_feat"):
            model.extract_feat(inputs)  # type: ignore[operator]
        else:
            model(inputs, data_samples, mode="tensor")
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
