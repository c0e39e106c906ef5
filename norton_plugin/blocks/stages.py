"""The convolutions that a form runs, by their sizes alone: what its latency is estimated from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from norton_plugin.blocks.forms import FORMS, Form

Kind = Literal["full", "narrow", "line", "sum", "depthwise"]
Size = tuple[int, ...]
_NARROW_KINDS: tuple[Kind, ...] = ("sum", "line", "narrow")  # by the axes along which the kernel has a length
_NARROW = 8  # channels of a group below which a convolution in groups fills no vector register


class BlockShape(NamedTuple):
    """What decides how fast the forms of a block are.

    Attributes:
        channels: Channels of the input.
        filters: N.
        kernel_size: (Kh, Kw), or the lengths of another number of axes; the sizes of maps alike.
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
            a kernel of two axes or more (``"narrow"``), one (``"line"``) or none (``"sum"``).
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
    kernel_size, axes = shape.kernel_size, range(len(shape.kernel_size))
    # Pixels of the map after 0, 1, ... of the axes were convolved.
    sizes = [math.prod(shape.output_size[:done] + shape.input_size[done:]) for done in (*axes, len(axes))]
    before, after = sizes[0], sizes[-1]
    ones = (1,) * len(axes)
    lines = [tuple(kernel_size[axis] if place == axis else 1 for place in axes) for axis in axes]

    def stage(channels: int, filters: int, groups: int, kernel: Size, sizes: tuple[int, int]) -> Stage:
        per_group, own = channels // groups, filters // groups
        kind: Kind = "full"
        if groups > 1 and min(per_group, own) < _NARROW:
            kind = "depthwise" if per_group == own == 1 else _NARROW_KINDS[min(2, sum(length > 1 for length in kernel))]
        taps, numbers = math.prod(kernel), channels * sizes[0] + filters * sizes[1]
        macs = filters * per_group * taps * sizes[1]
        numbers *= taps if kind == "narrow" else 1
        return Stage(kind, shape.batch * macs, shape.batch * numbers, shape.batch * groups)

    c, n, g = shape.channels, shape.filters, shape.groups
    k = shape.filters if shape.clusters is None else shape.clusters
    m, places = k * shape.rank, k * shape.cluster_size
    mix = stage(m, places, k, ones, (after, after))
    if form == "dense":
        yield stage(c, n, g, kernel_size, (before, after))
    elif shape.spatial:
        yield from (stage(c, m, g, lines[0], (before, sizes[1])), stage(m, n, g, lines[1], (sizes[1], after)))
    elif shape.clusters is not None and kernel_size == ones:
        yield from (stage(c, m, g, ones, (before, after)), mix)
    elif form == "grouped":
        yield from (stage(c, m, g, ones, (before, before)), stage(m, places, k, kernel_size, (before, after)))
    elif form == "depthwise":
        yield from (stage(c, m, g, ones, (before, before)), stage(m, m, m, kernel_size, (before, after)), mix)
    else:
        yield stage(c, m, g, ones, (before, before))
        for axis in axes[:-1]:
            yield stage(m, m, m, lines[axis], (sizes[axis], sizes[axis + 1]))
        if shape.clusters is None:
            yield stage(m, n, k, lines[-1], (sizes[-2], after))
        else:
            yield from (stage(m, m, m, lines[-1], (sizes[-2], after)), mix)
