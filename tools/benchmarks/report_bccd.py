"""The section of the results page on the blood cell detector."""

from __future__ import annotations

from report_table import Facts, table

_HEADER = [
    "variant",
    "MACs %",
    "parameters %",
    "mAP after surgery, old BatchNorm statistics",
    "mAP after surgery",
    "mAP fine-tuned (range)",
    "mAP50",
    "mAP RBC / WBC / platelets",
    "processor s",
]
_COMMANDS = ("retinanet_r18-thin_bccd", "dense test", "hybrid, rank 5 seed 0", "hybrid, rank 5 seed 0 test")


def bccd(facts: Facts) -> str:
    """Return the section: the blood cell detector, by mmdet's scripts."""
    variants = facts["variants"]
    rows = [_row(name, row) for name, row in variants.items()]
    return f"{_setting(facts)}\n\n{table(_HEADER, rows)}\n\n{_outcome(variants)}\n\n{_commands(facts)}{_proofs(facts)}"


def bccd_levels(facts: Facts) -> str:
    """Return the section: levels and budgets, from a dense training of its own."""
    variants = facts["variants"]
    header = ["variant", "MACs %", "mAP after surgery", "mAP fine-tuned (range)", "seeds"]
    rows = [
        [
            name,
            _percent(row, "macs_share"),
            _before(row),
            _finetuned(row),
            len(row["finetuned"]),
        ]
        for name, row in variants.items()
    ]
    return (
        f"{facts['data']}. {facts['model']}: {facts['dense_test']['map']:.1f} mAP as trained. "
        f"{facts['epochs']['finetuning']} epochs of fine-tuning, norms on the statistics of each batch; rate and first "
        "beta of AdamW are those of the config (0.0005, 0.9) unless named, and 0.002 and 0.5 with a budget or fitted. "
        f"Seeds of one variant span up to {_widest(variants):.1f} points, so a single one decides nothing. Fitted to "
        "images, with sizes from the budget, the detector keeps most of its accuracy before any training; no schedule "
        "that was tried gained more than that, before norms kept their statistics (below). Budgets: all sizes are "
        "found by the hook (`budget=dict(macs=0.5)`), without images or, fitted, from training images without their "
        "labels (`calibrate=True`).\n\n" + table(header, rows)
    )


def bccd_positions(facts: Facts) -> str:
    """Return the section: positions of each image that layers are fitted to, from a dense training of its own."""
    rows = [
        [
            name,
            _percent(row, "macs_share"),
            _before(row),
            _classes(row.get("after_surgery") or row["test"]),
            f"{row['surgery_seconds']:.0f}" if "surgery_seconds" in row else "-",
            _finetuned(row),
            len(row["finetuned"]),
        ]
        for name, row in facts["variants"].items()
    ]
    header = [
        "variant",
        "MACs %",
        "mAP after surgery",
        "RBC / WBC / platelets",
        "surgery, s",
        "mAP fine-tuned (range)",
        "seeds",
    ]
    return (
        f"{facts['data']}. {facts['model']}: {facts['dense_test']['map']:.1f} mAP as trained, a third training. With "
        "`calibrate=True` a layer is read at the more positions of each image, the fewer numbers it reads "
        '(`positions="auto"`), here at nearly all; before, 50 of each image were read, and small objects (platelets) '
        "lost most. Fine-tuned with norms on the statistics of each batch.\n\n" + table(header, rows)
    )


def bccd_norms(facts: Facts) -> str:
    """Return the section: norms that keep their statistics in fine-tuning, from the dense training of the last one."""
    rows = [
        [
            name,
            _percent(row, "macs_share"),
            _before(row),
            _finetuned(row),
            _classes(row["finetuned_mean"]) if row["finetuned"] else "-",
            len(row["finetuned"]),
        ]
        for name, row in facts["variants"].items()
    ]
    header = ["variant", "MACs %", "mAP after surgery", "mAP fine-tuned (range)", "RBC / WBC / platelets", "seeds"]
    return (
        f"{facts['data']}. {facts['model']}: {facts['dense_test']['map']:.1f} mAP as trained, the same training as in "
        "the section before. All BatchNorms of the compressed model keep their statistics in training, which is the "
        "hook's default where a batch holds fewer than 32 images (`norm_eval`; here 8), except in rows that say "
        f"otherwise; {facts['epochs']['finetuning']} epochs with labels and, all but the dense one, towards the dense "
        "model too; AdamW at the config's 0.0005 unless the rate is named. Budget: of MACs; latency: of milliseconds, "
        "one image on one thread; both phases: channels may be pruned too (`prune=True`). For the dense detector a "
        "small hook of the benchmark keeps them, where its row says so.\n\n"
        + table(header, rows)
        + f"\n\n{_goal(facts['variants'])}"
    )


_DENSE = "dense, rate 0.0001, statistics kept"


def _goal(variants: Facts) -> str:
    """Say whether the goal at half of the MACs is reached: at least 47.0 mAP after fine-tuning."""
    best = max((row for row in variants.values() if _is_half(row)), key=lambda row: row["finetuned_mean"]["map"])
    reached, asked = best["finetuned_mean"]["map"], 47.0
    dense = variants[_DENSE]["finetuned_mean"]["map"]
    verdict = "holds" if reached >= asked else "does not hold"
    return (
        f"Asked for at half of the MACs: at least {asked} mAP after fine-tuning; the best row has {reached:.1f}, so "
        f"this {verdict}. The dense detector, fine-tuned alike, has {dense:.1f}."
    )


def _is_half(row: Facts) -> bool:
    return bool(row["finetuned"]) and 0.45 < row.get("macs_share", 1.0) <= 0.5


def _classes(figures: Facts) -> str:
    return " / ".join(f"{figures[f'map_{kind}']:.1f}" for kind in ("RBC", "WBC", "Platelets"))


def _widest(variants: Facts) -> float:
    """Return the largest range of mAP between the seeds of one variant."""
    found = [[run["map"] for run in row["finetuned"]] for row in variants.values() if row["finetuned"]]
    return max(max(values) - min(values) for values in found)


def _percent(row: Facts, share: str) -> str:
    """Return what is left of the dense detector, which has no share itself."""
    return f"{100 * row[share]:.1f}" if share in row else "100"


def _before(row: Facts) -> str:
    """Return mAP before fine-tuning: after surgery, or of the dense detector as trained."""
    if "after_surgery" in row:
        return f"{row['after_surgery']['map']:.1f}"
    return f"{row['test']['map']:.1f} (as trained)"


def _finetuned(row: Facts) -> str:
    """Return the mean mAP after fine-tuning, and the range where there is more than one run."""
    values = [run["map"] for run in row["finetuned"]]
    if not values:
        return "-"
    spread = f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else ""
    return f"{row['finetuned_mean']['map']:.1f}{spread}"


def _row(name: str, row: Facts) -> list[object]:
    plain = row.get("after_surgery_without_reestimation")
    runs = row["finetuned"]
    mean = row["finetuned_mean"]
    return [
        name,
        _percent(row, "macs_share"),
        _percent(row, "parameters_share"),
        f"{plain['map']:.1f}" if plain else "-",
        _before(row),
        _finetuned(row),
        f"{mean['map50']:.1f}",
        _classes(mean),
        f"{sum(r['processor_seconds'] for r in runs) / len(runs):.0f}",
    ]


def _setting(facts: Facts) -> str:
    """Say what was trained, how long, and what is measured."""
    variants, epochs = facts["variants"], facts["epochs"]
    dense, seeds = variants["dense"], len(facts["seeds"]["finetuning"])
    sizes = next((row for row in variants.values() if "macs_dense" in row), None)
    size = f", {sizes['macs_dense'] / 1e9:.3f} G MACs, {sizes['parameters_dense']:,} parameters" if sizes else ""
    return (
        f"{facts['data']}. {facts['model']}{size}. {facts['metric']}: {dense['test']['map']:.1f} mAP and "
        f"{dense['test']['map50']:.1f} mAP50 after {epochs['dense']} epochs. Every variant, the dense one too, is then "
        f"fine-tuned for {epochs['finetuning']} epochs by the same schedule; means over {seeds} seed(s) of fine-tuning "
        "after one dense training, norms on the statistics of each batch. Processor seconds are those of one "
        "fine-tuning run on "
        f"{facts['machine']['threads']} thread(s) of a shared machine, surgery included."
    )


def _outcome(variants: dict[str, Facts]) -> str:
    """Name the best compressed detector beside the dense one."""
    compressed = {name: row["finetuned_mean"]["map"] for name, row in variants.items() if "after_surgery" in row}
    best = max(compressed, key=lambda name: compressed[name])
    loss = variants["dense"]["finetuned_mean"]["map"] - compressed[best]
    return (
        f"Best at equal MACs here: {best}, {loss:.1f} points of mAP "
        "below the dense model. The network is thin already (24 to 192 channels); most of the loss is in the "
        "platelets, its smallest objects."
    )


def _commands(facts: Facts) -> str:
    shown = [facts["commands"][step]["command"] for step in _COMMANDS if step in facts["commands"]]
    return (
        "Four of the commands (all are in `bccd.json`); `MMDET` is the folder "
        "`mmdet/.mim`:\n\n```\n" + "\n".join(shown) + "\n```"
    )


def _proofs(facts: Facts) -> str:
    """Say what the exported config and a resumed run were compared with."""
    text = ""
    if facts.get("exported_config", {}).get("same_as_with_hook"):
        text += "\n\nThe exported `norton_config.py`, without the hook, tests to the same figures."
    if facts.get("resumed", {}).get("largest_difference_of_weights") == 0:
        text += (
            f" A run killed (`kill -9`) in the middle of epoch {facts['resumed']['killed_in_epoch']} and resumed ends "
            "in the same weights, difference 0.0."
        )
    return text
