"""The section of the results page on components shared by the filters of a layer."""

from __future__ import annotations

from report_table import Facts, table


def coupled_speed(facts: Facts) -> str:
    """Layer-wise CPD against tensorly, and what bounds its components."""
    layers, machine = facts["layers"], facts["machine"]
    ours = sum(row["processor_seconds"] for row in layers)
    wall = sum(row["seconds"] for row in layers)
    theirs = sum(row["tensorly_processor_seconds_one_start"] for row in layers)
    header = ["layers x width", "M", "ours, s", "tensorly, one start, s", "ratio", "NMSE", "tensorly, best of 3"]
    text = (
        "The 3x3 convolutions of ResNet-50, random weights, one cluster per layer (K = 1), M components at the MACs of "
        f"filter-wise rank 2. All sixteen: {ours:.0f} s of processor time ({wall:.0f} s by the clock) on "
        f"{machine['threads']} thread(s), load average {machine['load_average_at_start']:.1f} on {machine['cores']} "
        f"cores at the start; tensorly {theirs:.0f} s for ONE start of {facts['iterations']} iterations in single "
        f"precision, {theirs / ours:.0f} times as long. Ours has several starts. tensorly ran on the first layer of "
        "each width, times the number of layers; where marked, two iterations were timed and extrapolated. Times are "
        "processor seconds.\n\n" + table(header, [_speed(row) for row in layers])
    )
    if not facts["bounds"]:
        return text
    header = ["layer", "method", "NMSE", "NMSE of bfloat16 factors", "largest component / weight", "sweeps"]
    lines = [[_name(layer), *_bound(row)] for layer in facts["bounds"] for row in layer["rows"]]
    return (
        f"{text}\n\nWhat keeps shared components from growing against each other (trained layers of ResNet-20, up "
        "to 1000 sweeps). The default ridge is 3e-4. Plain ALS is a ridge of 1e-12 once the sweeps are in double "
        "precision; the correction starts from it and is given 300 sweeps, which may be too few for the worst layer."
        f"\n\n{table(header, lines)}"
    )


def _speed(row: Facts) -> list[object]:
    """One width."""
    best, busy = row["tensorly_nmse_best_of_three"], row["tensorly_processor_seconds_one_start"]
    mark = " (extrapolated)" if row["tensorly_extrapolated_from_iterations"] else ""
    return [
        f"{row['layers']} x {row['width']}",
        row["components"],
        f"{row['processor_seconds']:.1f}",
        f"{busy:.0f}{mark}",
        f"{busy / row['processor_seconds']:.1f} x",
        f"{row['nmse_first_layer']:.4f}",
        "not run" if best is None else f"{best:.4f}",
    ]


def _name(layer: Facts) -> str:
    """Widths and components of a layer."""
    return f"{layer['shape'][0]} x {layer['shape'][1]}, M = {layer['components']}"


def _bound(row: Facts) -> list[object]:
    """One way to bound the components."""
    return [
        row["method"],
        f"{row['nmse']:.5f}",
        f"{row['nmse_rounded_to_bfloat16']:.5f}",
        f"{row['largest_component']:.2f}",
        row["sweeps"],
    ]
