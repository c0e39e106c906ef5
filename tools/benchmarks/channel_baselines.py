"""Two published ways to make up for removed channels, for the blocks of the CIFAR ResNets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

# Ridge of the least squares, as a share of the mean of the Gram matrix's diagonal.
_RIDGE = 1e-3


def _reader(name: str) -> str:
    """Return the convolution that reads what an inner one computes."""
    return name.removesuffix("conv1") + "conv2"


def _norm(name: str) -> str:
    return name.removesuffix("conv1") + "bn1"


@torch.no_grad()
def gram_ridge_(
    dense: nn.Module, model: nn.Module, kept: Mapping[str, Sequence[int]], sample: Sequence[Tensor]
) -> None:
    """Give each reader the weights W G[:, P] (G[P, P] + ridge)^-1 in place of W[:, P].

    Args:
        dense: The dense model, whose hidden channels make the Gram matrices G (C, C), summed over images and pixels.
        model: Changed in place: the same without the channels that are not in ``kept`` (P).
        kept: By the name of the convolution that computes them.
        sample: Batches of images.
    """
    grams: dict[str, Tensor] = {}

    def watch(name: str) -> None:
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].transpose(0, 1).flatten(1).double()
            grams[name] = grams.get(name, torch.zeros(())) + x @ x.T

        handles.append(dense.get_submodule(_reader(name)).register_forward_pre_hook(add))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in kept:
        watch(name)
    for batch in sample:
        dense(batch)
    for handle in handles:
        handle.remove()
    for name, stayed in kept.items():
        gram, own = grams[name], list(stayed)
        among = gram[own][:, own]
        among += _RIDGE * among.diagonal().mean() * torch.eye(len(own), dtype=among.dtype)
        merge = torch.linalg.solve(among, gram[own]).T  # (C, P)
        weight = dense.get_submodule(_reader(name)).weight.double()
        model.get_submodule(_reader(name)).weight.copy_(torch.einsum("ncij,cp->npij", weight, merge))


@torch.no_grad()
def fold_(dense: nn.Module, model: nn.Module, kept: Mapping[str, Sequence[int]], *, seed: int) -> None:
    """Merge channels into as many as stayed: filters and norms of a cluster become their mean, readers add them up.

    Statistics of the norms are to be re-estimated afterwards.

    Args:
        dense: The dense model.
        model: Changed in place: the same without the channels that are not in ``kept``.
        kept: By the name of the convolution that computes them.
        seed: Of k-means.
    """
    for name, stayed in kept.items():
        conv, norm, reader = (dense.get_submodule(each) for each in (name, _norm(name), _reader(name)))
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        rows = (conv.weight.flatten(1) * scale[:, None]).numpy()
        rows = np.concatenate([rows, (norm.bias - norm.running_mean * scale)[:, None].numpy()], axis=1)
        _, labels = kmeans2(rows.astype(np.float64), len(stayed), minit="++", rng=np.random.default_rng(seed))
        members = torch.zeros(len(stayed), len(rows), dtype=conv.weight.dtype)
        members[torch.as_tensor(labels, dtype=torch.long), torch.arange(len(rows))] = 1.0
        mean = members / members.sum(1, keepdim=True).clamp(min=1.0)
        folded, folded_norm = model.get_submodule(name), model.get_submodule(_norm(name))
        folded.weight.copy_(torch.einsum("pn,ncij->pcij", mean, conv.weight * scale[:, None, None, None]))
        folded_norm.weight.copy_(mean @ norm.weight)
        folded_norm.bias.copy_(mean @ norm.bias)
        model.get_submodule(_reader(name)).weight.copy_(torch.einsum("pc,ncij->npij", members, reader.weight))


__all__ = ["fold_", "gram_ridge_"]
