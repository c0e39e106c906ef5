"""What a report warns of: sentences that say what happened, and what to do about it."""

from __future__ import annotations

from norton_plugin.budget import TOLERANCE, BudgetPlan
from norton_plugin.reasons import Reason
from norton_plugin.surgery.report import DecompositionReport

# Ties that the warning names.
_NAMED = 3
# A budget of this share or more of the dense model's time is none.
_WHOLE = 0.9995
# MACs over milliseconds, both as shares of the dense model's, below which a plan is out of balance.
_FEW = 0.5
# Norm of a component over that of its cluster's weight, from which on a report warns of it.
_LARGE = 10.0


def warning_of_branches(count: int) -> str | None:
    """Return a sentence on blocks whose branches are meant to be joined for inference; None where there are none."""
    if not count:
        return None
    words = "1 block of the model has" if count == 1 else f"{count} blocks of the model have"
    return (
        f"{words} branches for training, which are joined for inference (timm.utils.reparameterize_model). MACs here "
        "are those of the branches, and joined afterwards nothing of the compression is left. Join them first, in "
        "Python or by a source python:MODULE:FUNCTION, and compress the joined model."
    )


def warning_of_untied(decomposition: DecompositionReport) -> str | None:
    """Return a sentence on tied layers that became blocks with factors of their own; None where there are none."""
    ties = decomposition.untied
    if not ties:
        return None
    told = "; ".join(_tie(tie.blocks, tie.kept) for tie in ties[:_NAMED])
    more = f"; and {len(ties) - _NAMED} more" if len(ties) > _NAMED else ""
    return (
        f"Tied layers are tied no longer: {told}{more}. Each block has factors of its own, which are counted and "
        "trained apart. Exclude these layers (scope.exclude, --exclude) if they are to stay tied; they stay dense then."
    )


def warning_of_missed_time(plan: BudgetPlan) -> str | None:
    """Return a sentence on a budget of milliseconds that was missed; None where it was met, or none was given.

    To stay below it is a miss only where no other budget asks for less.
    """
    asked, found = plan.budget.latency, plan.milliseconds
    if asked is None or found is None:
        return None
    off = found.share / asked - 1
    if abs(off) <= TOLERANCE or (off < 0 and len(plan.budget.limits) > 1):
        return None
    aim = asked**2 / max(found.share, asked**2)
    how = f" (budget.latency={aim:.3g}, --budget latency={aim:.3g})" if aim < _WHOLE else ""
    what = "predicted by the table that was given" if found.measured is None else "measured as delivered"
    again = ", repeat on a quiet machine, or give the times of one (budget.table, --latency-table)"
    remedy = f"{'lower' if off > 0 else 'higher'}{how}{'' if found.measured is None else again}"
    return (
        f"The budget of milliseconds was missed by {abs(off):.1%}: asked for {asked:.4g} of the dense model's time, "
        f"reached {found.share:.4g} ({what}). Aim {remedy}."
    )


def warning_of_time_beside_layers(plan: BudgetPlan) -> str | None:
    """Return a sentence on a budget of milliseconds that took far more of the MACs than of the time; else None."""
    found = plan.milliseconds
    if found is None or set(plan.budget.limits) != {"latency"} or plan.budget.prune:
        return None
    if not plan.macs < _FEW * found.share < _FEW:
        return None
    without = "" if found.measured is not None else ", which times whole models: leave budget.table out"
    return (
        f"To reach {found.share:.0%} of the time, {plan.macs:.0%} of the MACs are left: much of the time lies beside "
        "the layers that are decomposed (norms, activations, additions, calls). Narrower channels save that too and "
        f"may cost less accuracy: set budget.prune (--prune, with images and --calibrate{without}), or pruning.keep in "
        "place of a budget."
    )


def warning_of_earlier_blocks(decomposition: DecompositionReport) -> str | None:
    """Return a sentence on blocks that were there before and stay; None where there were none."""
    count = sum(entry.cause.reason is Reason.DECOMPOSED for entry in decomposition.skipped)
    if not count:
        return None
    words = "1 block" if count == 1 else f"{count} blocks"
    return (
        f"An earlier compression made {words}, which {'keeps its' if count == 1 else 'keep their'} level and rank: no "
        "layer is decomposed twice. For other sizes compress the dense model."
    )


def warning_of_pruning_below_budget(plan: BudgetPlan, *, macs: float, params: float) -> str | None:
    """Return a sentence on a budget that pruning by a share of channels went below; None where it did not.

    Args:
        plan: What was decomposed for the budget.
        macs: MACs of the result as a share of the dense model's.
        params: Its parameters, likewise.
    """
    reached = {"macs": macs, "params": params}
    if plan.budget.prune or not any(share < (1 - TOLERANCE) * getattr(plan, name) for name, share in reached.items()):
        return None
    asked = " and ".join(f"{name}={share:g}" for name, share in plan.budget.limits.items())
    return (
        f"The budget ({asked}) is that of the decomposed model, and pruning.keep removed channels from it: {macs:.3g} "
        f"of the MACs and {params:.3g} of the parameters are left. To plan both within the budget, set budget.prune "
        "(--prune) in place of pruning.keep."
    )


def warning_of_large_components(decomposition: DecompositionReport) -> str | None:
    """Return a sentence on components that cancel each other; None where those of all layers are of sound size."""
    found = [layer for layer in decomposition.layers if (layer.largest_component or 0) > _LARGE]
    if not found:
        return None
    worst = max(found, key=lambda layer: layer.largest_component or 0)
    others = f" (the largest of {len(found)} such layers)" if len(found) > 1 else ""
    return (
        f"A component of {worst.names[0]} has {worst.largest_component:.0f} times the norm of the weight it is part "
        f"of{others}: its components cancel each other, which costs accuracy in half precision and makes fine-tuning "
        "harder. Ask for fewer components there, or for another level."
    )


def _tie(blocks: tuple[str, ...], kept: tuple[str, ...]) -> str:
    words = f"{' and '.join((*blocks, *kept))} held one parameter"
    if not kept:
        return words
    return f"{words}, which stays in {' and '.join(kept)}"
