"""The sections of the results page on filters that share components."""

from __future__ import annotations

from statistics import fmean

from report_table import Facts, table

_NETWORKS = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}
_METHODS = {
    "filter": "filter level (K = N)",
    "clusters_of_4": "clusters of 4 filters (K = N/4)",
    "clusters_of_8": "clusters of 8 filters (K = N/8)",
    "cluster4": "4 clusters",
    "cluster2": "2 clusters",
    "layer": "layer level (K = 1)",
    "tucker2": "Tucker-2",
    "svd_channels": "SVD N x (C Kh Kw)",
    "svd_spatial": "SVD (C Kh) x (N Kw)",
}
_LEVELS = {"filter": "filter", "cluster4": "4 clusters", "layer": "layer"}
# What the layer level has to be above the filter level by at rank 1, in points, without and with fine-tuning.
_PLAIN, _FINETUNED = 8.0, 3.0

_SETTING = """
Budget of a layer: the MACs of its filter level at rank R, stride included; every other method gets the largest size
within them. Layers in which rank R saves nothing (stride 2) and the first convolution stay dense for all methods, so
MACs are those of the whole network. The levels are blocks of the package (`level=`, `rank=`). The others, counted as
chains of convolutions: Tucker-2 as 1x1 before the stride, Kh x Kw with the stride, 1x1 after it (the same share of
outputs and inputs kept); the SVD of N x (C Kh Kw) as Kh x Kw with the stride, then 1x1; the SVD of (C Kh) x (N Kw) as
Kh x 1 with the vertical stride, then 1 x Kw with the horizontal one. NMSE is that of a layer, averaged over layers.
""".strip().replace("\n", " ")


def levels(facts: Facts) -> str:
    """Return the section on levels without fine-tuning."""
    rows = list(facts["variants"].values())
    parts = [f"{facts['data']}. {_SETTING} Behind the mean, in brackets, the range over calibration seeds (images for "
             "BatchNorm) where there are several. - where a run was not made."]  # fmt: skip
    for network, title in _NETWORKS.items():
        own = [row for row in rows if row["network"] == network]
        if own:
            parts += [_dense(title, own), _network_table(own), _plain_outcome(title, own)]
    return "\n\n".join(parts)


def _dense(title: str, rows: list[Facts]) -> str:
    scores = [row["top1"] for row in rows if row["method"] == "dense"]
    return f"**{title}**, dense with BatchNorm re-estimated: {_spread(scores)} %."


def _network_table(rows: list[Facts]) -> str:
    budgets = sorted({row["budget_rank"] for row in rows if row["method"] != "dense"})
    header = ["method"] + [cell for b in budgets for cell in (f"MACs %, R = {b}", "NMSE", "top-1 %")]
    body = []
    for method, title in _METHODS.items():
        cells: list[object] = [title]
        for budget in budgets:
            chosen = _chosen(rows, method, budget)
            if not chosen:
                cells += ["-", "-", "-"]
                continue
            scores = _spread([row["top1"] for row in chosen])
            cells += [f"{100 * chosen[0]['macs_share']:.1f}", f"{chosen[0]['mean_nmse']:.3f}", scores]
        body.append(cells)
    return table(header, body)


def _plain_outcome(title: str, rows: list[Facts]) -> str:
    """Say by how much the layer level is better at each budget, and whether that is what was asked for."""
    gaps, shares, seeds = {}, {}, {}
    for budget in sorted({row["budget_rank"] for row in rows if row["method"] != "dense"}):
        by_seed = {m: {r["seed"]: r["top1"] for r in _chosen(rows, m, budget)} for m in ("filter", "layer")}
        common = by_seed["filter"].keys() & by_seed["layer"].keys()
        if not common:
            continue
        gaps[budget] = fmean(by_seed["layer"][seed] - by_seed["filter"][seed] for seed in common)
        shares[budget], seeds[budget] = 100 * _chosen(rows, "filter", budget)[0]["macs_share"], len(common)
    found = ", ".join(f"{gap:+.1f} at R = {budget} ({seeds[budget]} seed(s))" for budget, gap in gaps.items())
    return (
        f"{title}, layer level against filter level, points of top-1: {found}. Asked for at {shares[1]:.1f} % of the "
        f"MACs: at least {_PLAIN:.0f} points; this {_verdict(gaps[1], _PLAIN)}."
    )


# Rank, level, optimizer, rate, momentum, images that the start was fitted to.
_Key = tuple[int, str, str, float, float, int]


def levels_finetune(facts: Facts) -> str:
    """Return the section on levels after fine-tuning."""
    rows = list(facts["variants"].values())
    groups: dict[_Key, list[Facts]] = {}
    for row in rows:
        setting = (row["rank"], row["level"], row["optimizer"], row["lr"], row["momentum"])
        groups.setdefault((*setting, row.get("fitted_images", 0)), []).append(row)
    order = {level: place for place, level in enumerate(_LEVELS)}
    keys = sorted(groups, key=lambda key: (key[0], key[-1], order[key[1]], *key[2:]))
    body = [_finetuned_row(key, sorted(groups[key], key=lambda row: row["seed"])) for key in keys]
    header = [
        "MACs %",
        "level",
        "start",
        "optimizer",
        "rate",
        "momentum",
        "NMSE at the start",
        "top-1 % (seeds)",
        "mean",
        "wall s / processor s of one run",
    ]
    outcomes = [_finetuned_outcome(groups, *start) for start in sorted({(key[0], key[-1]) for key in keys})]
    return f"{_schedule(facts, rows)}\n\n{table(header, body)}\n\n" + " ".join(outcomes)


def _schedule(facts: Facts, rows: list[Facts]) -> str:
    settings = facts["settings"]
    warm = 100 * settings["warmup_epochs"] / settings["epochs"]
    return (
        f"{facts['model']}; {facts['data']}. Every run: {settings['epochs']} epochs, {rows[0]['steps']} steps of "
        f"{settings['batch_size']} images with flips and shifted crops, one cycle of the rate ({warm:.0f} % linear "
        f"warm-up from a tenth, then a cosine to zero), weight decay {settings['weight_decay']} on all parameters, "
        "AdamW (momentum is its first beta) or SGD with Nesterov momentum, by `norton_plugin.mm.finetune`. The start "
        "is what `compress` gives from the weights alone, or fitted to unlabelled images (with its accuracy before "
        "fine-tuning); the blocks rebuild their weight in training (the dense form). BatchNorm trains on "
        "the statistics of each batch, so statistics re-estimated at the start would change nothing. A seed draws "
        "the images, their order and augmentation, and the starts of the decomposition. MACs as in the section above."
        + (f" {facts['note']}" if facts.get("note") else "")
    )


def _finetuned_row(key: _Key, rows: list[Facts]) -> list[object]:
    _, level, optimizer, lr, momentum, fitted = key
    return [
        f"{100 * rows[0]['macs_share']:.1f}",
        _LEVELS[level],
        f"fitted, {fmean(row['top1_before'] for row in rows):.1f} %" if fitted else "weights alone",
        optimizer,
        f"{lr:g}",
        f"{momentum:g}",
        f"{rows[0]['nmse']:.3f}",
        ", ".join(f"{row['top1']:.2f}" for row in rows),
        f"{fmean(row['top1'] for row in rows):.2f}",
        f"{fmean(row['wall_seconds'] for row in rows):.0f} / {fmean(row['processor_seconds'] for row in rows):.0f}",
    ]


def _finetuned_outcome(groups: dict[_Key, list[Facts]], rank: int, fitted: int) -> str:
    """Compare the levels, each with the optimizer and rate of the best mean."""
    best: dict[str, tuple[float, str]] = {}
    for (budget, level, optimizer, lr, momentum, images), rows in groups.items():
        score = fmean(row["top1"] for row in rows)
        if (budget, images) == (rank, fitted) and score > best.get(level, (0.0, ""))[0]:
            best[level] = (score, f"{optimizer} {lr:g}, momentum {momentum:g}, {len(rows)} seed(s)")
    if not {"layer", "filter"} <= best.keys():
        return ""
    share = next(100 * rows[0]["macs_share"] for key, rows in groups.items() if key[:2] == (rank, "filter"))
    found = ", ".join(f"{title} {best[level][0]:.2f} ({best[level][1]})" for level, title in _LEVELS.items()
                      if level in best)  # fmt: skip
    gap = best["layer"][0] - best["filter"][0]
    start = f"from layers fitted to {fitted} images" if fitted else "from the weights alone"
    text = f"At {share:.1f} % of the MACs {start}, each level with its best setting: {found}; "
    text += f"layer level {gap:+.1f} points."
    if rank == 1:
        text += f" Asked for: at least {_FINETUNED:.0f} points; this {_verdict(gap, _FINETUNED)}."
    return text


def _chosen(rows: list[Facts], method: str, budget: int) -> list[Facts]:
    return [row for row in rows if row["method"] == method and row["budget_rank"] == budget]


def _spread(scores: list[float]) -> str:
    """Return the mean, and the range where there is more than one."""
    mean = f"{fmean(scores):.1f}"
    return mean if len(scores) == 1 else f"{mean} ({min(scores):.1f}-{max(scores):.1f})"


def _verdict(gap: float, asked: float) -> str:
    return "holds" if gap >= asked else f"does not hold ({gap:+.1f})"
