"""The layer that takes a convolution's place: it owns the factors of its filters."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks.arguments import check_clusters, check_size, whole_number
from norton_plugin.blocks.clusters import BlockLevel, even_clusters, slots_of, wrong_slots
from norton_plugin.blocks.conv_block import ConvBlock
from norton_plugin.blocks.forms import AUTO, FORM_FUNCTIONS, BlockFactors, ChosenForm, ConvGeometry, Form
from norton_plugin.blocks.padding import PaddingRule
from norton_plugin.blocks.selection import select_
from norton_plugin.cpd import CoupledFactors, CPDFactors
from norton_plugin.errors import SurgeryError


class CPDBlock(ConvBlock):
    """A 2-D convolution whose filters are sums of outer products (NORTON, section III-B).

    ``CPDBlock1d`` and ``CPDBlock3d`` are the same for kernels of one and of three axes.

    Without ``clusters`` every filter has R components of its own, as in the paper. With them, the filters of a cluster
    share R components, which each filter mixes in its own way; one cluster is the layer-wise CP decomposition
    (docs/method.md, section 6).

    The whole contract of ``nn.Conv2d`` is kept: geometry, padding mode, groups, bias, device, dtype. ``weight`` gives
    the rebuilt dense weight for code that reads it. Pruning is an index select on one axis of the factors.

    Args:
        in_channels: Channels of the input.
        out_channels: N, number of filters.
        kernel_size: (Kh, Kw) or one number for both.
        rank: R, components per filter, or per cluster; at least 1.
        clusters: K, clusters of filters that share components, a multiple of ``groups``; None for filters that share
            nothing (K = N).
        cluster_size: S, places in each cluster; N / K, rounded up, by default.
        stride: Pixels, one or (vertical, horizontal).
        padding: Pixels, ``"same"``, ``"valid"`` or ``"dynamic_same"`` (see ``blocks.padding``).
        dilation: Pixels, one or (vertical, horizontal).
        groups: Groups of channels; each filter sees C = ``in_channels / groups`` of them.
        bias: Whether a bias is added.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        form: Which of the equivalent forms runs in evaluation mode; ``"auto"`` is the one that should be fastest on the
            input of each call (``blocks.form_choice``).
        training_form: Which one runs in training mode; ``"dense"`` needs the least activation memory.
        device: Device of the factors.
        dtype: Data type of the factors.

    Raises:
        SurgeryError: An argument is of a wrong type or out of range, or the block would take gigabytes; nothing is
            allocated then.

    Shape:
        Input (B, in_channels, H, W), output (B, out_channels, Ho, Wo) as of ``nn.Conv2d``.
        Parameters ``head`` (K, R, C), ``vertical`` (K, R, Kh), ``horizontal`` (K, R, Kw), ``mix`` (N, R), ``bias``
        (N,) or None. ``mix`` is None without ``clusters``; with them, ``vertical`` and ``horizontal`` are None for a
        1x1 kernel. Buffer ``slot`` (N,), int64: the place of each filter among K * S (``blocks.clusters``); None
        without ``clusters`` and for one cluster.
    """

    head: nn.Parameter
    vertical: nn.Parameter | None
    horizontal: nn.Parameter | None
    mix: nn.Parameter | None
    slot: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        rank: int,
        *,
        clusters: int | None = None,
        cluster_size: int | None = None,
        stride: int | Sequence[int] = 1,
        padding: PaddingRule | int | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        form: ChosenForm = AUTO,
        training_form: Form = "dense",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            form=form,
            training_form=training_form,
            device=device,
            dtype=dtype,
        )
        self.rank = whole_number(rank, "rank")
        n, r, c = self.out_channels, self.rank, self.in_channels // self.groups
        self.clusters, self.cluster_size = check_clusters(clusters, cluster_size, filters=n, groups=self.groups)
        check_size(filters=n, channels=c, kernel_size=self.kernel_size, rank=r, clusters=self.clusters)
        self._register(shared=clusters is not None, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def _register(
        self, *, shared: bool, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        n, k, r = self.out_channels, self.clusters, self.rank
        shapes: dict[str, tuple[int, ...] | None] = {"head": (k, r, self.in_channels // self.groups)}
        pointwise = shared and max(self.kernel_size) == 1
        for name, length in zip(self.axes, self.kernel_size, strict=True):
            shapes[name] = None if pointwise else (k, r, length)
        shapes |= {"mix": (n, r) if shared else None, "bias": (n,) if bias else None}
        for name, shape in shapes.items():
            value = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, value)
        slot = slots_of(even_clusters(n, k), k, size=self.cluster_size)[0].to(device) if shared and k > 1 else None
        self.register_buffer("slot", slot)

    def reset_parameters(self) -> None:
        """Draw factors whose product has the variance of ``nn.Conv2d``'s default initialisation."""
        fan_in = self.head.shape[2] * math.prod(self.kernel_size)
        names = ("head", *self.axes, "mix")
        factors = [factor for factor in (getattr(self, name) for name in names) if factor is not None]
        # A product of f independent factors, summed over R: variance R * s^(2 f) = 1 / (3 fan_in).
        scale = (3.0 * fan_in * self.rank) ** (-0.5 / len(factors))
        for factor in factors:
            nn.init.normal_(factor, std=scale)
        if self.bias is not None:
            bound = fan_in**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def level(self) -> BlockLevel:
        """Which filters share components: ``"filter"`` none, ``"layer"`` all (of a group), ``"cluster"`` some."""
        if self.mix is None:
            return "filter"
        return "layer" if self.clusters == self.groups else "cluster"

    @property
    def filter_factor(self) -> str:
        """Name of the factor whose rows are of one filter each; the weight is linear in it."""
        return "head" if self.mix is None else "mix"

    @property
    def components(self) -> int:
        """M = K * R, components of all clusters (or of all filters) together."""
        return self.clusters * self.rank

    @property
    def cluster(self) -> Tensor:
        """The cluster of every filter, (N,) int64."""
        if self.mix is None:
            return torch.arange(self.out_channels, device=self.head.device)
        if self.slot is None:
            return torch.zeros(self.out_channels, dtype=torch.long, device=self.head.device)
        return self.slot // self.cluster_size

    @property
    def kernel(self) -> tuple[nn.Parameter, ...]:
        """Factors of the kernel's axes, (vertical, horizontal) for two; none for a 1x1 kernel that is shared."""
        found = (getattr(self, name) for name in self.axes)
        return tuple(factor for factor in found if factor is not None)

    @property
    def factors(self) -> CPDFactors | CoupledFactors:
        """The factors, attached to the graph; those of a 1x1 kernel that are None are ones."""
        kernel = self.kernel or (self.head.new_ones(self.clusters, self.rank, 1),) * len(self.axes)
        if self.mix is None:
            return CPDFactors(self.head, *kernel)
        return CoupledFactors(self.head, *kernel, self.mix, self.cluster)

    @property
    def weight(self) -> Tensor:
        """The dense weight (N, C, Kh, Kw) rebuilt from the factors; assign to the factors, not to it."""
        if self.mix is None:
            letters = "dhw"[-len(self.axes) :]
            each = ",".join(f"nr{letter}" for letter in letters)
            return torch.einsum(f"nrc,{each}->nc{letters}", self.head, *self.kernel)
        return self.block_factors().weight()

    def block_factors(self) -> BlockFactors:
        """Return parameters and places as the forms take them."""
        own = (self.bias, self.mix, self.slot, self.cluster_size)
        return BlockFactors(self.head, self.kernel, len(self.axes), *own)

    def set_factors(self, factors: CPDFactors | CoupledFactors, bias: Tensor | None = None) -> None:
        """Copy factors (and the bias, if given) into the parameters, cast to their dtype and device.

        Args:
            factors: ``CPDFactors`` for a block without clusters, ``CoupledFactors`` for one with them.
            bias: (N,) or None.

        Raises:
            SurgeryError: A shape differs from the block's, or a cluster has more filters than places.
        """
        values: dict[str, Tensor | None] = dict(factors._asdict())
        cluster = values.pop("cluster", None)
        if len(factors.kernel) != len(self.axes):
            raise SurgeryError(f"these are factors of {len(factors.kernel)} axes, the block's kernel has {self.axes}")
        if not self.kernel and all(factor.shape[-1] == 1 for factor in factors.kernel):
            for name in self.axes:
                del values[name]
            values["head"] = factors.head * functools.reduce(torch.mul, factors.kernel)
        if bias is not None:
            values["bias"] = bias
        for name in ("mix", *values):
            own, value = getattr(self, name), values.get(name)
            if (None if own is None else own.shape) != (None if value is None else value.shape):
                raise SurgeryError(
                    f"{name} has shape {None if value is None else tuple(value.shape)}, the block expects "
                    f"{None if own is None else tuple(own.shape)}"
                )
        if self.slot is not None and cluster is not None:
            slot, size = slots_of(cluster.to(self.slot.device), self.clusters, size=self.cluster_size)
            if size > self.cluster_size:
                raise SurgeryError(f"a cluster has {size} filters, the block has places for {self.cluster_size}")
            self.slot = slot
        with torch.no_grad():
            for name, value in values.items():
                getattr(self, name).copy_(value)

    def select_(self, keep: Tensor | Sequence[int], axis: str) -> None:
        """Keep some filters, input channels or components, in place; parameters become new objects.

        Components that no filter uses any more go with the filters.

        Args:
            keep: Indices to keep, ascending. For ``"channels"`` of a grouped block: indices within one group's C. For
                ``"components"``: component r of cluster (or filter) k is k * R + r, and as many stay in each.
            axis: ``"filters"``, ``"channels"`` or ``"components"``.

        Raises:
            SurgeryError: An unknown axis, no index, one out of range, or unequal numbers of components.
        """
        select_(self, keep, axis)

    def run_form(self, form: Form, x: Tensor, geometry: ConvGeometry) -> Tensor:
        """Compute the padded convolution in one of the equivalent forms."""
        return FORM_FUNCTIONS[form](x, self.block_factors(), geometry)

    def wrong_places(self, slot: Tensor) -> str:
        """Say what is wrong with places of filters that a file gives; an empty text where nothing is."""
        return wrong_slots(
            slot, filters=self.out_channels, clusters=self.clusters, size=self.cluster_size, groups=self.groups
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load as usual; refuse places of filters that no block can have, before anything is loaded."""
        given = state_dict.get(f"{prefix}slot")
        if self.slot is not None and isinstance(given, Tensor) and (problem := self.wrong_places(given)):
            args[-1].append(f"{prefix}slot {problem}")  # torch's list of error messages
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def size_arguments(self) -> dict[str, Any]:
        """Return the arguments that say how many components there are, as ``repr`` shows them."""
        return {"rank": self.rank} if self.mix is None else {"rank": self.rank, "clusters": self.clusters}
