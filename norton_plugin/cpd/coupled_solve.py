"""Run ALS from several starts on a batch of clusters of equal shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.cpd.coupled_sweep import Columns, solve_mix, sweep, unit_columns

# Sweeps given to every start before only the best start of each cluster goes on: so many component-sweeps, between the
# two bounds. With many components one start ends nearly as low as another, and costs more.
_TRIAL_WORK, _TRIAL_LEAST, _TRIAL_MOST = 2000, 10, 60
_ALIGNMENT = 8
# Components beyond which one start is as good as another. Their first sweeps have a ridge at least this large: so they
# share the work from the start, rather than cancel each other, they need this share of the sweeps only; large clusters,
# which start near their end, less still (`sweeps_of_many`).
MANY = 64
_FIRST_SWEEPS, _FIRST_RIDGE, _SHARE, _LEAST_SHARE, _FEW, _SMALL = 60, 0.03, 0.6, 0.1, 30, 2e6
# Sweeps between two looks at convergence, and how many the last ones in double precision are: of many components fewer.
_CHECK_EVERY, _LAST, _LAST_OF_MANY = 10, 10, 2
# The error is a difference of numbers near one: below these, single and double precision see rounding only.
_FLOOR = {torch.float32: 1e-3, torch.float64: 1e-14}
# Relative progress in ten sweeps that single precision can still tell from rounding.
_SINGLE_TOLERANCE = 3e-5
# Least ridges with which Gram matrices stay positive definite.
_LEAST_RIDGE = {torch.float32: 1e-5, torch.float64: 1e-13}
# Extrapolation step, its growth per accepted sweep, its cut per rejected one, and its bound; see
# `norton_plugin.cpd.solve`. On trained and random layers 50 such sweeps reach what 200 plain ones do.
_STEP, _GROW, _CUT, _STEP_MAX = 0.5, 1.1, 0.7, 0.98


@dataclass
class _State:
    """Iterates of a batch: the extrapolated point, the last accepted plain iterate, its objective, step and ridge.

    The ridge is a fixed share of the objective, so it falls with it: an exact solution is found, and yet the components
    of no iterate have a sum of squares above one over this share.
    """

    point: Columns
    plain: Columns
    objective: Tensor
    step: Tensor
    ridge: Tensor

    @classmethod
    def start(cls, columns: Columns, *, ridge: float) -> "_State":
        objective = torch.full_like(columns.head[:, 0, 0], torch.inf)
        return cls(columns, columns, objective, torch.full_like(objective, _STEP), torch.full_like(objective, ridge))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, the batch first in each."""
        return (*self.point, *self.plain, self.objective, self.step, self.ridge)

    def map(self, change: Callable[[Tensor], Tensor]) -> "_State":
        """Change every tensor, such as its dtype or its clusters."""
        return self._of([change(x) for x in self.tensors])

    def where(self, chosen: Tensor, other: "_State") -> "_State":
        """Keep the chosen clusters and take the rest from another state."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return self._of([torch.where(chosen.reshape(-1, *[1] * (x.dim() - 1)), x, y) for x, y in pairs])

    def _of(self, tensors: Sequence[Tensor]) -> "_State":
        modes = len(self.point)
        return _State(Columns(*tensors[:modes]), Columns(*tensors[modes:-3]), *tensors[-3:])

    def advance(self, tensor: Tensor, *, ridge: float) -> None:
        """Make one extrapolated sweep; where the objective rose, go back to the last plain iterate."""
        used = self.ridge.clamp_min(_LEAST_RIDGE[tensor.dtype])
        found, objective = sweep(tensor, self.point, ridge=used)
        better = objective <= self.objective
        self.objective = torch.where(better, objective, self.objective)
        self.ridge = torch.minimum(self.ridge, ridge * self.objective.clamp_min(0))
        self.step = torch.where(better, (self.step * _GROW).clamp_max_(_STEP_MAX), self.step * _CUT)
        momentum, better = (self.step * better)[:, None, None], better[:, None, None]
        plain, point = [], []
        for new, old in zip(found, self.plain, strict=True):
            kept = torch.where(better & new.isfinite().all(1, keepdim=True), new, old)
            plain.append(kept)
            point.append(unit_columns(torch.addcmul(kept, momentum, kept - old)))
        self.plain, self.point = Columns(*plain), Columns(*point)


class Solution(NamedTuple):
    """What `solve` returns.

    Attributes:
        columns: Float64, of norm one.
        ridge: Shape (b,), the last one used, to solve for the mix with.
        sweeps: Sweeps the slowest cluster was given.
        fallback: Shape (b,), True where ALS broke down and the first start was returned instead.
    """

    columns: Columns
    ridge: Tensor
    sweeps: int
    fallback: Tensor


def solve(tensor: Tensor, starts: Sequence[Columns], *, sweeps: int, tolerance: float, ridge: float) -> Solution:
    """Run extrapolated ALS: every start for a few sweeps, then the best of each cluster until it converges.

    Sweeps are made in single precision while it can see progress, then in double precision. Many components (`MANY`) go
    on from the first start only.

    Args:
        tensor: Float64, shape (b, n, Kh*Kw, C), norm one or zero.
        starts: At least one; the first is the one to fall back on.
        sweeps: Most sweeps a cluster is given, >= 1; see `sweeps_of_many` for many components.
        tolerance: A cluster is done when its objective fell by less than this share of itself over ten sweeps.
        ridge: Weight of the squared norms of the components, as a share of the squared error; > 0.

    Returns:
        The columns found.
    """
    rank = starts[0].head.shape[2]
    starts = [_padded(start) for start in starts]
    single = tensor.float()
    if rank > MANY:
        sweeps = sweeps_of_many(sweeps, tensor[0].numel() * rank)
        state, begun = _begun(single, starts[0], sweeps=min(_FIRST_SWEEPS, sweeps // 3), ridge=max(ridge, _FIRST_RIDGE))
    else:
        trial = min(max(_TRIAL_WORK // rank, _TRIAL_LEAST), _TRIAL_MOST, sweeps - 1)
        state, begun = _best_begun(single, starts, sweeps=trial if len(starts) > 1 else 0, ridge=ridge)
    state, coarse = _converge(
        single,
        state,
        sweeps=sweeps - begun - (_LAST_OF_MANY if rank > MANY else _LAST),
        tolerance=max(tolerance, _SINGLE_TOLERANCE),
        ridge=ridge,
    )
    state = state.map(Tensor.double)
    state.objective = torch.full_like(state.objective, torch.inf)
    used = begun + coarse
    state, fine = _converge(tensor, state, sweeps=sweeps - used, tolerance=tolerance, ridge=ridge)
    found, start = (Columns(*(unit_columns(x[:, :, :rank]) for x in columns)) for columns in (state.plain, starts[0]))
    last = state.ridge.clamp_min(_LEAST_RIDGE[torch.float64])
    return _checked(tensor, found, start, used + fine, ridge=last)


def sweeps_of_many(sweeps: int, products: int) -> int:
    """Return the sweeps of a cluster of more than `MANY` components, of those that any cluster may have.

    That is 60 % of them for small clusters and down to a tenth for large ones, in which a sweep takes long; but 30
    where as many are asked for: so many bring random weights nearer than tensorly's best of three starts. Six times as
    many take 5 to 10 % off the error of a large layer, and nothing off that of a model (docs/results).

    Args:
        sweeps: Most sweeps, >= 1.
        products: Numbers in the cluster, times its components.
    """
    share = min(_SHARE, max(_LEAST_SHARE, _SHARE * _SMALL / products))
    return max(min(sweeps, _FEW), round(share * sweeps))


def _begun(tensor: Tensor, start: Columns, *, sweeps: int, ridge: float) -> tuple[_State, int]:
    """Make the first sweeps from a start; give the state and how many there were."""
    state = _State.start(_single(start), ridge=ridge)
    for _ in range(sweeps):
        state.advance(tensor, ridge=ridge)
    return state, sweeps


def _best_begun(tensor: Tensor, starts: Sequence[Columns], *, sweeps: int, ridge: float) -> tuple[_State, int]:
    """Make the first sweeps from all starts; give the best state of each cluster, and how many sweeps there were."""
    state, _ = _begun(tensor, starts[0], sweeps=sweeps, ridge=ridge)
    for start in starts[1:] if sweeps else ():
        other, _ = _begun(tensor, start, sweeps=sweeps, ridge=ridge)
        state = other.where(other.objective < state.objective, state)
    return state, sweeps


def _padded(columns: Columns) -> Columns:
    """Add zero components, which stay zero: matrix products are up to 40 % faster on multiples of eight columns."""
    more = -columns.head.shape[2] % _ALIGNMENT if columns.head.shape[2] > _ALIGNMENT else 0
    return Columns(*(torch.nn.functional.pad(column, (0, more)) for column in columns))


def _single(columns: Columns) -> Columns:
    """Single precision."""
    return Columns(*(column.float() for column in columns))


def _converge(tensor: Tensor, state: _State, *, sweeps: int, tolerance: float, ridge: float) -> tuple[_State, int]:
    """Advance a batch until every cluster has converged; give the state of all and the sweeps of the slowest."""
    result = state.map(Tensor.clone)
    place = torch.arange(len(tensor), device=tensor.device)
    reference = state.objective
    done = 0
    while done < sweeps and len(place):
        step = min(_CHECK_EVERY, sweeps - done)
        for _ in range(step):
            state.advance(tensor, ridge=ridge)
        done += step
        error = state.objective
        ended = (reference - error <= tolerance * error) | (error <= _FLOOR[tensor.dtype])
        reference = error
        for kept, current in zip(result.tensors, state.tensors, strict=True):
            kept[place] = current
        if ended.any():
            keep = (~ended).nonzero().squeeze(1)
            place, reference, tensor = place[keep], reference[keep], tensor[keep]
            state = state.map(lambda x, keep=keep: x[keep])  # type: ignore[misc]
    return result, done


def _checked(tensor: Tensor, found: Columns, start: Columns, sweeps: int, *, ridge: Tensor) -> Solution:
    """Take the start where ALS ended worse than it, or in numbers that are not finite."""
    before, after = (solve_mix(tensor, columns, ridge=ridge)[1] for columns in (start, found))
    broken = ~(after <= before + 1e-12)
    chosen = Columns(*(torch.where(broken[:, None, None], x, y) for x, y in zip(start, found, strict=True)))
    return Solution(chosen, ridge, sweeps, broken)
