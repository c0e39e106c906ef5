"""Weights for layers wider than the trained ones at hand: random, with the spectra of trained layers.

The second moments of a trained weight along its filters, its channels and its kernel positions are averaged over
layers, the first two stretched to the width wanted, and a Gaussian tensor is scaled along each axis in turn until it
has them. What is left out is any structure beyond these three moments; ``equal_latency.py`` writes how far the errors
are from those of trained layers at 64 channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

_ROUNDS = 8


def trained_layers(path: Path, width: int) -> list[Tensor]:
    """Return the 3x3 weights of so many filters and channels, in the order of the file."""
    from safetensors.torch import load_file

    shape = (width, width, 3, 3)
    return [w.double() for name, w in sorted(load_file(path).items()) if ".conv" in name and tuple(w.shape) == shape]


def trained_like(layers: list[Tensor], width: int, *, seed: int = 0) -> Tensor:
    """Return a weight (width, width, 3, 3), float64, with the spectra of trained layers.

    Args:
        layers: Weights (N, N, 3, 3).
        width: Filters and channels.
        seed: Of the Gaussian tensor.
    """
    unit = [(w / w.norm()).flatten(2) for w in layers]
    moments = [torch.stack([_moment(w, mode) for w in unit]) for mode in range(3)]
    spectra = [_stretched(torch.linalg.eigvalsh(each).mean(0), width) for each in moments[:2]]
    found = torch.randn(width, width, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for _ in range(_ROUNDS):
        for mode, spectrum in enumerate(spectra):
            values, vectors = torch.linalg.eigh(_moment(found, mode))
            found = _times(found, (vectors * (spectrum / values).sqrt()) @ vectors.mT, mode)
        values, vectors = torch.linalg.eigh(_moment(found, 2))
        found = _times(found, _root(moments[2].mean(0)) @ (vectors * values.rsqrt()) @ vectors.mT, 2)
    return found.reshape(width, width, 3, 3)


def _moment(weight: Tensor, mode: int) -> Tensor:
    rows = weight.movedim(mode, 0).flatten(1)
    return rows @ rows.mT


def _times(weight: Tensor, matrix: Tensor, mode: int) -> Tensor:
    return torch.tensordot(matrix, weight, dims=([1], [mode])).movedim(0, mode)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def _stretched(spectrum: Tensor, width: int) -> Tensor:
    """Resample ascending eigenvalues at evenly spaced places; their sum stays 1."""
    values = torch.nn.functional.interpolate(spectrum[None, None], size=width, mode="linear")[0, 0]
    return values / values.sum()
