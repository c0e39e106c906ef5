"""The convolutions that a form runs, by their sizes alone: what its latency is estimated from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from norton_plugin.blocks.forms import FORMS, Form

Kind = Literal["full", "narrow", "line", "sum", "depthwise"]
Size = tuple[int, int]
_NARROW_KINDS: tuple[Kind, ...] = ("sum", "line", "narrow")  # by the dimensions of the kernel
_NARROW = 8  # channels of a group below which a convolution in groups fills no vector register


class BlockShape(NamedTuple):
    """What decides how fast the forms of a block are.

    Attributes:
        channels: Channels of the input.
        filters: N.
        kernel_size: (Kh, Kw).
        groups: Channel groups.
        clusters: K where filters share components; None where they share nothing.
        rank: R.
        cluster_size: S, places in each cluster; 1 without clusters.
        input_size: (Hi, Wi).
        output_size: (Ho, Wo).
        batch: Images per call.
        spatial: Whether the factors are those of a spatial SVD, which has two forms only.
    """

    channels: int
    filters: int
    kernel_size: Size
    groups: int
    clusters: int | None
    rank: int
    cluster_size: int
    input_size: Size
    output_size: Size
    batch: int = 1
    spatial: bool = False

    @property
    def forms(self) -> tuple[Form, ...]:
        """The equivalent forms."""
        return ("separable", "dense") if self.spatial else FORMS


class Stage(NamedTuple):
    """One convolution.

    Attributes:
        kind: ``"full"`` has many channels in and out per group, or no groups; ``"depthwise"`` one; the others few, and
            a kernel of two dimensions (``"narrow"``), one (``"line"``) or none (``"sum"``).
        macs: Of the whole batch.
        numbers: Read and written, the weight left out; by the ``"narrow"`` kind once for every tap of the kernel.
        groups: Of channels, times the images of the batch.
    """

    kind: Kind
    macs: int
    numbers: int
    groups: int


def stages(shape: BlockShape, form: Form) -> Iterator[Stage]:
    """Yield the convolutions of a form, in their order.

    Args:
        shape: Of the block and of its input.
        form: Which one.
    """
    (hi, wi), (ho, wo), (kh, kw) = shape.input_size, shape.output_size, shape.kernel_size
    before, between, after = hi * wi, ho * wi, ho * wo

    def stage(channels: int, filters: int, groups: int, kernel: Size, sizes: Size) -> Stage:
        per_group, own = channels // groups, filters // groups
        kind: Kind = "full"
        if groups > 1 and min(per_group, own) < _NARROW:
            kind = "depthwise" if per_group == own == 1 else _NARROW_KINDS[(kernel[0] > 1) + (kernel[1] > 1)]
        taps, numbers = kernel[0] * kernel[1], channels * sizes[0] + filters * sizes[1]
        macs = filters * per_group * taps * sizes[1]
        numbers *= taps if kind == "narrow" else 1
        return Stage(kind, shape.batch * macs, shape.batch * numbers, shape.batch * groups)

    c, n, g = shape.channels, shape.filters, shape.groups
    k = shape.filters if shape.clusters is None else shape.clusters
    m, places = k * shape.rank, k * shape.cluster_size
    mix = stage(m, places, k, (1, 1), (after, after))
    if form == "dense":
        yield stage(c, n, g, (kh, kw), (before, after))
    elif shape.spatial:
        yield from (stage(c, m, g, (kh, 1), (before, between)), stage(m, n, g, (1, kw), (between, after)))
    elif shape.clusters is not None and (kh, kw) == (1, 1):
        yield from (stage(c, m, g, (1, 1), (before, after)), mix)
    elif form == "grouped":
        yield from (stage(c, m, g, (1, 1), (before, before)), stage(m, places, k, (kh, kw), (before, after)))
    elif form == "depthwise":
        yield from (stage(c, m, g, (1, 1), (before, before)), stage(m, m, m, (kh, kw), (before, after)), mix)
    else:
        yield from (stage(c, m, g, (1, 1), (before, before)), stage(m, m, m, (kh, 1), (before, between)))
        if shape.clusters is None:
            yield stage(m, n, k, (1, kw), (between, after))
        else:
            yield from (stage(m, m, m, (1, kw), (between, after)), mix)
