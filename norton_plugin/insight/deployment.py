"""Tables of a model made ready for inference, for the terminal."""

from __future__ import annotations

from norton_plugin.deploy.comparison import Comparison
from norton_plugin.deploy.preparation import PreparedModel
from norton_plugin.insight.fitted_table import Column, FittedTable
from norton_plugin.insight.numbers import short

# Of the MACs, from which on a lack of speed is worth a word.
_SAVED = 0.1
# Of the time: less is noise.
_NOTICED = 0.005
_COLUMNS = (
    Column("block"),
    Column("form"),
    Column("MACs\ndense", number=True, optional=1),
    Column("MACs", number=True, optional=2),
    Column("ms, dense\nform", number=True),
    Column("ms", number=True),
    Column("why", optional=3),
)


def blocks_table(prepared: PreparedModel, found: Comparison) -> FittedTable:
    """Block by block: its form, MACs of the dense layer and of the block, and milliseconds where they were measured."""
    table = FittedTable("Blocks", _COLUMNS)
    for choice in prepared.table:
        before, after = found.layers[choice.name]
        dense = choice.candidates.get("dense")
        table.add_row(
            choice.name,
            choice.form,
            short(before),
            short(after),
            "-" if dense is None else f"{dense:.2f}",
            "-" if choice.milliseconds is None else f"{choice.milliseconds:.2f}",
            choice.reason,
        )
    return table


def deployment_lines(prepared: PreparedModel, found: Comparison) -> list[str]:
    """Say in sentences what became of the norms, the memory format and the MACs."""
    kept = f"; {len(prepared.left)} stay ({prepared.left[0][0]}: {prepared.left[0][1]})" if prepared.left else ""
    lines = [f"norms folded: {len(prepared.folded)}{kept}"]
    dense = [choice.name for choice in prepared.table if choice.form == "dense"]
    if dense:
        lines.append(f"blocks that run as dense convolutions, since no factored form is faster here: {len(dense)}")
    if prepared.milliseconds:
        tried = ", ".join(f"{name} {value:.2f} ms" for name, value in prepared.milliseconds.items())
        lines.append(f"whole model: {tried}")
    lines.append(
        f"MACs: {short(found.macs_before)} dense, {short(found.macs_after)} by the factors, "
        f"{found.macs_ratio:.2f}x fewer; in these forms {short(found.macs_run)} run"
    )
    if found.speedup is not None and found.efficiency is not None:
        lines.append(
            f"time of {found.timed}: {found.dense_milliseconds:.2f} ms dense (norms folded too), "
            f"{found.milliseconds:.2f} ms now: {found.speedup:.2f}x as fast; "
            f"efficiency (speed-up / MAC ratio) {found.efficiency:.2f}"
        )
    return lines


def advice(speed_up: float, macs_ratio: float) -> list[str]:
    """Say how to choose sizes by milliseconds, where less than half of the MACs that were saved is saved time.

    Args:
        speed_up: Of the model in PyTorch over the dense one.
        macs_ratio: How many times fewer MACs.
    """
    saved_macs, saved_time = 1 - 1 / macs_ratio, 1 - 1 / speed_up
    if saved_macs < _SAVED or saved_time > saved_macs / 2:
        return []
    time = f"only {saved_time:.0%} of the time" if saved_time >= _NOTICED else "none of the time"
    return [
        f"{saved_macs:.0%} of the MACs are saved, but {time}: narrow layers wait for memory more than they compute. To "
        "choose sizes by milliseconds, compress the dense model with a budget of them, where it is to run: "
        "--budget latency=0.5, with --prune and --calibrate where there are images (NortonHook: "
        "budget=dict(latency=0.5, prune=True), calibrate=True)"
    ]
