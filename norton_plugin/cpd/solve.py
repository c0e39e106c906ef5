"""Run ALS from several starts on a batch of filters given by their Gram matrices."""

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
    """Iterates of a batch: the extrapolated point, the last accepted plain iterate, its fit and its step."""

    vertical: Tensor
    horizontal: Tensor
    plain_vertical: Tensor
    plain_horizontal: Tensor
    explained: Tensor
    step: Tensor

    @classmethod
    def start(cls, vertical: Tensor, horizontal: Tensor) -> "_State":
        explained = torch.full_like(vertical[0, 0], -torch.inf)
        return cls(vertical, horizontal, vertical, horizontal, explained, torch.full_like(explained, _STEP))

    def best_start(self) -> "_State":
        """Of every filter keep the start that explains most; the axis of starts goes."""
        index = self.explained.argmax(0, keepdim=True)
        return _State(*(x.gather(-2, index.expand(*x.shape[:-2], 1, -1)).squeeze(-2) for x in vars(self).values()))

    def select(self, index: Tensor) -> "_State":
        """Keep the filters at ``index``."""
        return _State(*(x.index_select(-1, index) for x in vars(self).values()))

    def advance(self, gram: Tensor, *, ridge: float) -> None:
        """Make one extrapolated sweep, in place; where the fit fell, go back to the last plain iterate."""
        vertical, horizontal, explained = sweep(gram, self.vertical, self.horizontal, ridge=ridge)
        better = explained >= self.explained
        self.step = torch.where(better, (self.step * _GROW).clamp_max_(_STEP_MAX), self.step * _CUT)
        momentum = self.step * better
        previous_vertical, previous_horizontal = self.plain_vertical, self.plain_horizontal
        self.plain_vertical = torch.where(better, vertical, previous_vertical)
        self.plain_horizontal = torch.where(better, horizontal, previous_horizontal)
        self.explained = torch.where(better, explained, self.explained)
        self.vertical = torch.addcmul(self.plain_vertical, momentum, self.plain_vertical - previous_vertical)
        self.horizontal = torch.addcmul(self.plain_horizontal, momentum, self.plain_horizontal - previous_horizontal)


class Solution(NamedTuple):
    """What `solve` returns.

    Attributes:
        vertical: Shape (Kh, R, n), columns of norm one.
        horizontal: Shape (Kw, R, n), columns of norm one.
        sweeps: Sweeps the slowest filter was given.
        fallback: Shape (n,), True where ALS broke down and the first start was returned instead.
    """

    vertical: Tensor
    horizontal: Tensor
    sweeps: int
    fallback: Tensor


def solve(
    gram: Tensor, vertical: Tensor, horizontal: Tensor, *, sweeps: int, tolerance: float, ridge: float
) -> Solution:
    """Run extrapolated ALS: every start for a few sweeps, then the best of each filter until it converges.

    Args:
        gram: ``A'A`` of the unfolded filters, trace one, shape (D, D, n), float64.
        vertical: Starts, shape (Kh, R, S, n); start 0 is the one to fall back on.
        horizontal: Starts, shape (Kw, R, S, n).
        sweeps: Most sweeps a filter is given, >= 1.
        tolerance: A filter is done when its NMSE fell by less than this share of itself over ten sweeps.
        ridge: Relative to the mean diagonal of each R x R system; > 0.

    Returns:
        The vertical and horizontal factors found.
    """
    count = vertical.shape[2]
    first = vertical[:, :, 0], horizontal[:, :, 0]
    state = _State.start(vertical, horizontal)
    trial = min(sweeps, _TRIAL_SWEEPS) if count > 1 else 0
    for _ in range(trial):
        state.advance(gram.unsqueeze(2), ridge=ridge)
    state = state.best_start()

    found = torch.empty_like(first[0]), torch.empty_like(first[1])
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

    broken = ~(found[0].isfinite().flatten(0, 1).all(0) & found[1].isfinite().flatten(0, 1).all(0))
    return Solution(torch.where(broken, first[0], found[0]), torch.where(broken, first[1], found[1]), done, broken)


def _store(found: tuple[Tensor, Tensor], place: Tensor, state: _State, chosen: Tensor) -> None:
    """Write the accepted iterates of the chosen filters to their places in the result."""
    found[0][:, :, place[chosen]] = state.plain_vertical[:, :, chosen]
    found[1][:, :, place[chosen]] = state.plain_horizontal[:, :, chosen]
