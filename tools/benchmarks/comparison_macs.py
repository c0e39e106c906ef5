"""MACs of the comparison methods as chains of convolutions, strides included.

At stride s the input map (Hi, Wi) is s times as large as the output map (Ho, Wo) in each direction; a step before the
stride is paid on the larger map. The chains, and where the stride is:

- ``tucker2``: 1x1 from C to A on the input map; Kh x Kw from A to B with the stride; 1x1 from B to N on the output
  map. ``C A Hi Wi + A B Kh Kw Ho Wo + B N Ho Wo`` MACs.
- ``svd_channels``: Kh x Kw from C to r with the stride; 1x1 from r to N. ``r (C Kh Kw + N) Ho Wo`` MACs.
- ``svd_spatial``: Kh x 1 from C to r with the vertical stride; 1 x Kw from r to N with the horizontal one.
  ``r (C Kh Ho Wi + N Kw Ho Wo)`` MACs.
"""

from __future__ import annotations

from comparison_methods import LAYER_METHODS, tucker_ranks

from norton_plugin.errors import DecompositionError

Shape = tuple[int, int, int, int]
Size = tuple[int, int]


def chain_macs(shape: Shape, rank: int, *, method: str, input_size: Size, output_size: Size) -> int:
    """Return the MACs of one layer.

    Args:
        shape: (N, C, Kh, Kw).
        rank: Of the method, as in `comparison_methods.approximate_layer`.
        method: ``"tucker2"``, ``"svd_channels"`` or ``"svd_spatial"``.
        input_size: (Hi, Wi).
        output_size: (Ho, Wo).

    Raises:
        DecompositionError: Unknown method.
    """
    (filters, channels, kh, kw), (hi, wi), (ho, wo) = shape, input_size, output_size
    if method == "tucker2":
        out, into = tucker_ranks(shape, rank)
        return channels * into * hi * wi + (into * out * kh * kw + out * filters) * ho * wo
    if method == "svd_channels":
        return rank * (channels * kh * kw + filters) * ho * wo
    if method == "svd_spatial":
        return rank * (channels * kh * ho * wi + filters * kw * ho * wo)
    raise DecompositionError(f"Unknown method {method!r}; choose tucker2, svd_channels or svd_spatial.")


def rank_for_macs(shape: Shape, budget: int, *, method: str, input_size: Size, output_size: Size) -> int:
    """Return the largest rank that needs no more than a number of MACs; 0 if not even rank 1 fits.

    Args:
        shape: (N, C, Kh, Kw).
        budget: Most MACs.
        method: As in `chain_macs`.
        input_size: (Hi, Wi).
        output_size: (Ho, Wo).

    Raises:
        DecompositionError: Unknown method.
    """
    sizes = {"input_size": input_size, "output_size": output_size}
    if chain_macs(shape, 1, method=method, **sizes) > budget:
        return 0
    ranks = range(1, LAYER_METHODS[method].largest_rank(shape) + 1)
    return max(rank for rank in ranks if chain_macs(shape, rank, method=method, **sizes) <= budget)
