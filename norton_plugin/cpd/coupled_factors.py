"""Factors of a weight whose filters share components within clusters (docs/method.md, section 1)."""

import functools

import torch
from torch import Tensor

from norton_plugin.cpd.factor_tuple import FactorTuple
from norton_plugin.cpd.factors import outer_products
from norton_plugin.cpd.filter_error import filter_nmse
from norton_plugin.cpd.scaling import root_of_power, times_power_of_two, unit_scale


class CoupledFactors(FactorTuple):
    """Canonical polyadic factors of N filters (C, Kh, Kw) in K clusters, R components per cluster.

    Kernels may have another number of axes.

    Filter ``n`` of cluster ``k`` is ``sum_r mix[n, r] * head[k, r] o vertical[k, r] o horizontal[k, r]`` with ``o``
    the outer product. One filter per cluster (K = N) is the filter-wise CPD, one cluster (K = 1) the layer-wise CPD.

    Attributes:
        head: Input-channel factor, shape (K, R, C).
        depth: Factor of the first axis, shape (K, R, Kt); of 3-D kernels only.
        vertical: Kernel-row factor, shape (K, R, Kh); not of 1-D kernels.
        horizontal: Kernel-column factor, shape (K, R, Kw).
        mix: How much of each component of its cluster a filter takes, shape (N, R).
        cluster: The cluster of every filter, int64, shape (N,), values from 0 to K - 1.
    """

    __slots__ = ()
    last = ("mix", "cluster")

    @property
    def mix(self) -> Tensor:
        """How filters are made of the components of their cluster."""
        return self[-2]

    @property
    def cluster(self) -> Tensor:
        """The cluster of every filter."""
        return self[-1]

    @property
    def clusters(self) -> int:
        """Number of clusters K."""
        return int(self.head.shape[0])

    @property
    def rank(self) -> int:
        """Number of components R per cluster."""
        return int(self.head.shape[1])

    @property
    def components(self) -> int:
        """Number of components M = K * R in all."""
        return self.clusters * self.rank

    @property
    def num_filters(self) -> int:
        """Number of filters N."""
        return int(self.mix.shape[0])

    def reconstruct(self) -> Tensor:
        """Sum the components of every filter.

        Returns:
            The weight the factors stand for, (N, C, Kh, Kw), in the dtype of the factors; differentiable.
        """
        terms = outer_products(self[:-2])
        shape, terms = terms.shape[2:], terms.flatten(2)
        order, rows = [], []
        for clusters, filters in clusters_by_size(self.cluster, self.clusters):
            order.append(filters.flatten())
            rows.append((self.mix[filters] @ terms[clusters]).flatten(0, 1))
        return torch.cat(rows)[torch.cat(order).argsort()].unflatten(1, shape)

    def balanced(self) -> "CoupledFactors":
        """Give the vectors of every component the same Euclidean norm.

        The weight is unchanged up to rounding. The vectors of a component are its head, one for each axis of the
        kernel and its column of the mix over the filters of its cluster. Some of these stay one where nothing is lost
        by it: the factors of the axes of a 1x1 kernel, and the mix where every cluster holds one filter (K = N), so
        that the factors are those of the filter-wise CPD. A component with a zero vector becomes zero.

        Returns:
            New factors, same shapes and dtype.
        """
        parts, exponents, norms = self._scaled()
        active = self._active()
        target = torch.ones_like(norms[0])
        power = sum(exponents[1:], exponents[0])
        for norm in norms:  # roots are multiplied, not norms: the product of extreme norms may overflow
            target = target * norm.pow(1 / len(active))
        target = target * root_of_power(power, degree=len(active))
        units = [part / torch.where(norm > 0, norm, 1.0) for part, norm in zip(parts[:-1], norms[:-1], strict=True)]
        column = norms[-1].squeeze(2)
        units.append(parts[-1] / torch.where(column > 0, column, 1.0)[self.cluster])
        if 1 not in active:
            units[0] = functools.reduce(torch.mul, units[:-1])
        if len(units) - 1 not in active:
            units[0] = units[0] * torch.zeros_like(column).index_copy(0, self.cluster, units[-1]).unsqueeze(2)
        scales = [*[target] * (len(units) - 1), target.squeeze(2)[self.cluster]]
        found = [
            (unit * scale if index in active else torch.ones_like(unit)).to(factor.dtype)
            for index, (unit, scale, factor) in enumerate(zip(units, scales, self[:-1], strict=True))
        ]
        return CoupledFactors(*found, self.cluster)

    def times_power_of_two(self, exponent: Tensor) -> "CoupledFactors":
        """Multiply the filters of every cluster by a power of two, shared evenly among the balanced factors.

        Args:
            exponent: Int64, one per cluster, K in all.

        Returns:
            New factors, same shapes and dtype; balanced if these are.
        """
        active = self._active()
        power = root_of_power(exponent.reshape(-1, 1, 1), degree=len(active))
        powers = [*[power] * (len(self) - 2), power.squeeze(2)[self.cluster]]
        found = [
            (factor.double() * scale).to(factor.dtype) if index in active else factor
            for index, (factor, scale) in enumerate(zip(self[:-1], powers, strict=True))
        ]
        return CoupledFactors(*found, self.cluster)

    def nmse(self, weight: Tensor) -> Tensor:
        """Normalised squared error ``||W[n] - W^[n]||^2 / ||W[n]||^2`` of every filter.

        Args:
            weight: The weight approximated, shape (N, C, Kh, Kw).

        Returns:
            Shape (N,), float64, >= 0. A zero filter rebuilt as zero has error 0; otherwise infinity.

        Raises:
            DecompositionError: The weight has another shape than the factors stand for.
        """
        expected = (self.num_filters, *(factor.shape[2] for factor in self[:-2]))
        factors = self.to(dtype=torch.float64)

        def rebuilt(exponent: Tensor) -> Tensor:
            return factors._replace(mix=times_power_of_two(factors.mix, -exponent)).reconstruct()

        return filter_nmse(weight, expected, rebuilt)

    def component_norms(self) -> tuple[Tensor, Tensor]:
        """Frobenius norms of the components, each over the filters of its cluster.

        Returns:
            Float64 (K, R) in [0, 2^R) and int64 exponents (K, R): the norm is ``value * 2 ** exponent``.
        """
        _, exponents, norms = self._scaled()
        value, total = functools.reduce(torch.mul, norms), sum(exponents[1:], exponents[0])
        return value.squeeze(2), total.squeeze(2)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "CoupledFactors":
        """Cast and move all factors; the cluster of a filter stays an integer.

        Args:
            dtype: Floating dtype of the result; None keeps it.
            device: Device of the result; None keeps it.

        Returns:
            New factors, sharing memory where nothing changed.
        """
        found = [factor.to(dtype=dtype or factor.dtype, device=device) for factor in self[:-1]]
        return CoupledFactors(*found, self.cluster.to(device=device))

    def _active(self) -> tuple[int, ...]:
        """Places of the factors that carry the norm of a component; the others are one."""
        places = range(1, len(self) - 2)
        spatial = () if all(factor.shape[2] == 1 for factor in self.kernel) else tuple(places)
        return (0, *spatial, *(() if self.clusters == self.num_filters else (len(self) - 2,)))

    def _scaled(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Scale the vectors of components to entries near one; give float64 parts, exponents and norms (K, R, 1)."""
        pairs = [unit_scale(factor, dims=1) for factor in self[:-2]]
        mix, (clusters, rank) = self.mix.double(), self.head.shape[:2]
        index = self.cluster.unsqueeze(1).expand_as(mix)
        largest = mix.new_zeros(clusters, rank).scatter_reduce(0, index, mix.detach().abs(), "amax")
        exponent = torch.frexp(largest).exponent.long()
        pairs.append((times_power_of_two(mix, -exponent[self.cluster]), exponent.unsqueeze(2)))
        norms = [torch.linalg.vector_norm(part, dim=2, keepdim=True) for part, _ in pairs[:-1]]
        squares = mix.new_zeros(clusters, rank).index_add(0, self.cluster, pairs[-1][0].square())
        return [part for part, _ in pairs], [power for _, power in pairs], [*norms, squares.sqrt().unsqueeze(2)]


def clusters_by_size(cluster: Tensor, clusters: int) -> list[tuple[Tensor, Tensor]]:
    """Sort clusters by how many filters they hold, so that those of equal size can be worked on together.

    Args:
        cluster: The cluster of every filter, int64, shape (N,).
        clusters: K; every cluster holds at least one filter.

    Returns:
        For every size n, ascending: the clusters of this size (k,) and their filters (k, n), both int64, ascending.
    """
    sizes = torch.bincount(cluster, minlength=clusters)
    order = torch.argsort(cluster, stable=True)
    first = sizes.cumsum(0) - sizes
    found = []
    for size in sizes.unique().tolist():
        chosen = (sizes == size).nonzero().squeeze(1)
        found.append((chosen, order[first[chosen].unsqueeze(1) + torch.arange(size, device=cluster.device)]))
    return found
