"""Run ALS from several starts on a batch of filters given by their Gram matrices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.cpd.sweep import sweep

# Sweeps given to every start before only the best start of each filter goes on.
_TRIAL_SWEEPS = 20
# Sweeps between two looks at convergence: each look costs a synchronisation on CUDA.
_CHECK_EVERY = 10
# The explained share is a difference of numbers near one: errors below this are rounding.
_NMSE_FLOOR = 1e-14
# Extrapolation step, its growth per accepted sweep, its cut per rejected one, and its bound. After Ang and Gillis,
# "Accelerating nonnegative matrix factorization algorithms using extrapolation", Neural Computation 31(2), 2019.
# On conv filters 50 such sweeps reach what 300 plain ones do.
_STEP, _GROW, _CUT, _STEP_MAX = 0.5, 1.1, 0.7, 0.98


@dataclass
class _State:
    """Iterates of a batch: the extrapolated point, the last accepted plain iterate, its fit and its step.

    Points and iterates hold one factor for each axis of the kernel.
    """

    point: tuple[Tensor, ...]
    plain: tuple[Tensor, ...]
    explained: Tensor
    step: Tensor

    @classmethod
    def start(cls, kernel: tuple[Tensor, ...]) -> "_State":
        explained = torch.full_like(kernel[0][0, 0], -torch.inf)
        return cls(kernel, kernel, explained, torch.full_like(explained, _STEP))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "_State":
        point, plain = (tuple(map(change, factors)) for factors in (self.point, self.plain))
        return _State(point, plain, change(self.explained), change(self.step))

    def best_start(self) -> "_State":
        """Of every filter keep the start that explains most; the axis of starts goes."""
        index = self.explained.argmax(0, keepdim=True)
        return self._map(lambda x: x.gather(-2, index.expand(*x.shape[:-2], 1, -1)).squeeze(-2))

    def select(self, index: Tensor) -> "_State":
        """Keep the filters at ``index``."""
        return self._map(lambda x: x.index_select(-1, index))

    def advance(self, gram: Tensor, *, ridge: float) -> None:
        """Make one extrapolated sweep, in place; where the fit fell, go back to the last plain iterate."""
        *found, explained = sweep(gram, *self.point, ridge=ridge)
        better = explained >= self.explained
        self.step = torch.where(better, (self.step * _GROW).clamp_max_(_STEP_MAX), self.step * _CUT)
        momentum, previous = self.step * better, self.plain
        self.plain = tuple(torch.where(better, new, old) for new, old in zip(found, previous, strict=True))
        self.explained = torch.where(better, explained, self.explained)
        pairs = zip(self.plain, previous, strict=True)
        self.point = tuple(torch.addcmul(new, momentum, new - old) for new, old in pairs)


class Solution(NamedTuple):
    """What `solve` returns.

    Attributes:
        kernel: Factors of the kernel's axes, shapes (Kh, R, n) and (Kw, R, n) for a 2-D one, columns of norm one.
        sweeps: Sweeps the slowest filter was given.
        fallback: Shape (n,), True where ALS broke down and the first start was returned instead.
    """

    kernel: tuple[Tensor, ...]
    sweeps: int
    fallback: Tensor


def solve(gram: Tensor, *starts: Tensor, sweeps: int, tolerance: float, ridge: float) -> Solution:
    """Run extrapolated ALS: every start for a few sweeps, then the best of each filter until it converges.

    Args:
        gram: ``A'A`` of the unfolded filters, trace one, shape (D, D, n), float64.
        starts: For each axis of the kernel, shapes (Kh, R, S, n) and (Kw, R, S, n) for a 2-D one; start 0 is the one
            to fall back on.
        sweeps: Most sweeps a filter is given, >= 1.
        tolerance: A filter is done when its NMSE fell by less than this share of itself over ten sweeps.
        ridge: Relative to the mean diagonal of each R x R system; > 0.

    Returns:
        The factors found.
    """
    first = tuple(factor[:, :, 0] for factor in starts)
    state = _State.start(starts)
    trial = min(sweeps, _TRIAL_SWEEPS) if starts[0].shape[2] > 1 else 0
    for _ in range(trial):
        state.advance(gram.unsqueeze(2), ridge=ridge)
    state = state.best_start()

    found = tuple(map(torch.empty_like, first))
    place = torch.arange(gram.shape[-1], device=gram.device)
    active = torch.ones_like(place, dtype=torch.bool)
    reference = state.explained
    done = trial
    while done < sweeps and place.numel():
        step = min(_CHECK_EVERY, sweeps - done)
        for _ in range(step):
            state.advance(gram, ridge=ridge)
        done += step
        error = 1 - state.explained
        converged = (state.explained - reference <= tolerance * error) | (error <= _NMSE_FLOOR)
        reference = state.explained
        # Stored when it converges, not when it is dropped: the result must not depend on its neighbours.
        _store(found, place, state, active & converged)
        active &= ~converged
        # Copying the survivors costs about one sweep, so it must save more than that.
        if active.sum() <= 0.8 * place.numel():
            keep = active.nonzero().squeeze(1)
            place, reference, active = place[keep], reference[keep], active[keep]
            state, gram = state.select(keep), gram.index_select(-1, keep)
    _store(found, place, state, active)

    broken = ~torch.stack([factor.isfinite().flatten(0, 1).all(0) for factor in found]).all(0)
    kept = tuple(torch.where(broken, old, new) for old, new in zip(first, found, strict=True))
    return Solution(kept, done, broken)


def _store(found: tuple[Tensor, ...], place: Tensor, state: _State, chosen: Tensor) -> None:
    """Write the accepted iterates of the chosen filters to their places in the result."""
    for kept, plain in zip(found, state.plain, strict=True):
        kept[:, :, place[chosen]] = plain[:, :, chosen]
