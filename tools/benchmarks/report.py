"""Writes docs/results/README.md from the JSON files beside it, so that every printed figure is a measured one.

python tools/benchmarks/report.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from report_ablation import ablation
from report_bccd import bccd, bccd_levels, bccd_norms, bccd_positions
from report_budget import budget
from report_budget_coverage import budget_coverage
from report_budget_speed import bccd_speed
from report_calibration import calibration
from report_comparison import comparison
from report_compress_time import compress_time, sweeps_of_many
from report_coupled import coupled_speed
from report_deploy import delivered, form_costs, memory_formats, width_lanes
from report_detectors import detectors
from report_distillation import distillation
from report_fitted_finetune import fitted_finetune
from report_fuzz import fuzz
from report_hybrid_budget import hybrid_budget
from report_int8 import int8
from report_latency_budget import latency_budget
from report_level_latency import equal_latency, level_latency, model_latency
from report_levels import levels, levels_finetune
from report_pictures import pictures
from report_speed_accuracy import speed_accuracy
from report_strided import strided
from report_table import Facts, table
from report_throughput import throughput
from report_wide import calibration_cost, wide


def ranks(facts: Facts) -> str:
    """Accuracy without fine-tuning by rank."""
    parts = [facts["data"] + "."]
    for name, title in (("resnet20", "ResNet-20"), ("resnet56", "ResNet-56")):
        if name not in facts:
            continue
        dense = facts[name]["dense"]
        rows = [
            [
                row["rank"],
                f"{row['macs_down_percent']:.2f}",
                f"{row['parameters_down_percent']:.2f}",
                f"{row['nmse']:.4f}",
                f"{row['top1_plain']:.2f}",
                f"{row['top1_batch_norm_reestimated']:.2f}",
            ]
            for row in facts[name]["ranks"]
        ]
        parts.append(
            f"**{title}**: dense {dense['top1']:.2f} % ({dense['top1_batch_norm_reestimated']:.2f} % with BatchNorm "
            f"statistics re-estimated), {dense['macs'] / 1e6:.2f} M MACs, {dense['parameters']:,} parameters."
        )
        header = ["rank", "MACs down %", "parameters down %", "NMSE", "top-1 %", "top-1 %, BatchNorm re-estimated"]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def hybrid(facts: Facts) -> str:
    """Hybrid against decomposition and pruning alone."""
    rows = []
    for name, row in facts["variants"].items():
        after = row["top1_after_finetuning"]
        rows.append(
            [
                name,
                f"{row['macs'] / 1e6:.2f} M" if "macs" in row else "dense",
                f"{100 * row['parameters_share']:.1f}" if "macs" in row else "100",
                f"{row['top1_before_finetuning']:.2f}",
                f"{after:.2f}",
            ]
        )
    settings = facts["settings"]
    header = ["variant", "MACs", "parameters, % of dense", "top-1 % before", "top-1 % after fine-tuning"]
    return (
        f"{facts['model']}; {facts['data']}. {settings['epochs']} epochs of fine-tuning for every variant, the dense "
        f"one too (SGD, learning rate {settings['lr']}, batch {settings['batch_size']}, cosine). Accuracy before "
        "fine-tuning is with BatchNorm statistics re-estimated.\n\n" + table(header, rows)
    )


def complexity(facts: Facts) -> str:
    """Return the section on the paper's complexity."""
    points = [
        [
            row["point"],
            f"{row['macs'] / 1e6:.2f} M",
            f"{row['macs_and_elementwise']:,}",
            f"{row['paper_macs']:,}",
            f"{row['parameters']:,}",
            f"{row['paper_parameters']:,}",
            f"{row['macs_down_percent']:.1f} / {row['parameters_down_percent']:.1f}",
        ]
        for row in facts["pruned_points"]
    ]
    by_rank = [
        [
            row["rank"],
            row["macs_down_percent"],
            row["macs_and_elementwise_down_percent"],
            row["paper_macs_down_percent"],
            row["parameters_down_percent"],
            row["paper_parameters_down_percent"],
        ]
        for row in facts["vgg16_bn_by_rank"]
    ]
    return (
        "Ours counts convolutions and matrix products alone. The paper's counter, as ptflops, adds what lies between "
        "them (two operations per element of a BatchNorm, one per element of a ReLU and per input of a pooling layer, "
        "one per bias of a Linear layer); counted so, MACs and parameters agree to the number. In the table by rank "
        "the rest is the convolutions' biases, which the paper's dense network has.\n\n"
        + table(
            ["point", "MACs", "as the paper counts", "paper", "parameters", "paper", "down %, MACs / parameters"],
            points,
        )
        + "\n\nVGG-16-BN, all 13 convolutions decomposed:\n\n"
        + table(["rank", "MACs down %", "as the paper counts", "paper", "parameters down %", "paper"], by_rank)
    )


def cpd_speed(facts: Facts) -> str:
    """Batched CPD against a loop."""
    rows = [
        [
            name.replace("_", " "),
            entry["filters"],
            f"{entry['batched_processor_seconds']:.2f}",
            f"{entry['loop_processor_seconds_extrapolated']:.0f}",
            f"{entry['ratio_of_processor_seconds']:.0f} x",
            f"{entry['batched_nmse_on_sample']:.4f} / {entry['loop_nmse_on_sample']:.4f}",
        ]
        for name, entry in facts["comparison"].items()
    ]
    header = ["weights", "filters", "batched, s", "loop, s (extrapolated)", "ratio", "NMSE batched / loop"]
    return f"{facts['method']}\n\n{table(header, rows)}\n\n![cost of the batched CPD](cpd_speed.png)"


def pabs_speed(facts: Facts) -> str:
    """PABS against loops over pairs."""
    speed, memory = facts["speed"], facts["memory"]
    rows = [[name.removeprefix("loop: "), f"{ratio:.1f} x"] for name, ratio in speed["ratios"].items()]
    return (
        f"{speed['filters']} filters of {speed['channels']}x3x3 at rank {speed['rank']}: matrix and order in "
        f"{speed['ours_total_processor_seconds']:.2f} s of processor time on {facts['machine']['threads']} thread(s). "
        f"{facts['note'].capitalize()}.\n\n"
        + table(["Python loop over pairs", "our speed-up"], rows)
        + f"\n\n{memory['filters']} filters: peak {memory['peak_bytes'] / 2**30:.2f} GiB of memory, "
        f"{memory['before_bytes'] / 2**30:.2f} GiB of it before the work.\n\n![cost of PABS](pabs_speed.png)"
    )


def upstream(facts: Facts) -> str:
    """Patterns that torch-pruning's dependency graph does not follow."""
    rows = [[row["pattern"], row["seen_in"], row["alone"], row["cause"], row["here"]] for row in facts["cases"]]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{versions}. Two channels of one convolution are pruned; the outputs are compared with those of the unpruned "
        "network with the same channels masked.\n\n"
        + table(["pattern", "seen in", "torch-pruning alone", "cause", "here"], rows)
    )


def figure1(facts: Facts) -> str:
    """Decompositions at equal parameters."""
    budgets = sorted({row["budget_rank"] for row in facts["summary"]})
    names = {
        "als": "filter-wise CPD",
        "layer_cp": "layer-wise CPD",
        "tucker2": "Tucker-2",
        "svd_channels": "SVD N x (C Kh Kw)",
        "svd_spatial": "SVD (C Kh) x (N Kw)",
    }
    nmse = {(row["budget_rank"], row["method"]): row["mean_nmse"] for row in facts["summary"]}
    rows = [[title, *(f"{nmse[b, method]:.3f}" for b in budgets)] for method, title in names.items()]
    return (
        f"{facts['method']} {facts['layers']} layers of ResNet-56 (trained). At equal parameters, layer-wise CPD has "
        "the lower weight error on these layers; filter-wise CPD is below both SVDs and below Tucker-2 from rank 2 on. "
        "What filter-wise factors give in return is a filter axis that can be pruned.\n\n"
        + table(["NMSE at the budget of", *(f"R={b}" for b in budgets)], rows)
        + "\n\n![NMSE at equal parameters](figure1.png)"
    )


SECTIONS: list[tuple[str, str, Callable[[Facts], str]]] = [
    ("throughput.json", "Whole models as they are delivered: speed-up and efficiency", throughput),
    ("pictures.json", "Pictures: where a classifier looks, what a detector finds", pictures),
    ("hybrid_resnet20.json", "Decomposition and pruning together, at equal MACs (the paper's Figure 2)", hybrid),
    ("levels.json", "Which filters share components, at equal MACs (Figure 1 again), without fine-tuning", levels),
    ("calibration.json", "Fitted to what layers see: no labels, no fine-tuning", calibration),
    ("budget.json", "Sizes of layers from a budget, against one share for all", budget),
    ("budget_coverage.jsonl", "Budgets over models of all kinds, random weights", budget_coverage),
    ("latency_budget.json", "Sizes of layers from a budget of milliseconds", latency_budget),
    ("wide.json", "A wide classifier at 64 pixels: budgets without labels", wide),
    ("calibration_cost.json", "What a budget and a fit cost on a large model", calibration_cost),
    ("hybrid_budget.json", "Criteria with and without compensation; both phases in one budget", hybrid_budget),
    ("distillation.json", "Learning from the dense model on the same unlabelled images", distillation),
    ("levels_finetune.json", "Which filters share components, after fine-tuning", levels_finetune),
    ("ablation.json", "Each step left out, and published baselines", ablation),
    ("fitted_finetune.json", "Fine-tuned from what a budget and a few unlabelled images give", fitted_finetune),
    ("bccd.json", "A detector trained, compressed and tested by mmdet's own scripts (BCCD)", bccd),
    ("speed_accuracy.json", "Speed and accuracy of the same models", speed_accuracy),
    (
        "bccd_levels.json",
        "The same detector from another dense training: levels, budgets, layers fitted to its images",
        bccd_levels,
    ),
    ("bccd_positions.json", "A blood cell detector fitted to few and to many positions of each image", bccd_positions),
    ("bccd_norms.json", "The same detector, its norms kept as they are in fine-tuning", bccd_norms),
    ("bccd_speed.json", "Accuracy and speed of the same detectors, as they are delivered", bccd_speed),
    ("detectors.json", "Full-size detectors of mmdet: time, memory, MACs", detectors),
    ("cifar_ranks.json", "Accuracy without fine-tuning, rank by rank", ranks),
    ("level_latency.json", "Latency of the coupling levels at equal MACs", level_latency),
    ("equal_latency.json", "Error of the levels, Tucker-2 and spatial SVD at equal milliseconds", equal_latency),
    ("strided_latency.json", "Layers of stride 2: spatial SVD against shared components", strided),
    ("model_latency.json", "Latency of whole models at equal MACs, by method", model_latency),
    ("delivered.json", "Latency of compressed models as they are delivered", delivered),
    ("form_costs.json", "Forms of a block, and the choice that nothing is measured for", form_costs),
    ("memory_formats.json", "Which memory format a model should have", memory_formats),
    ("width_lanes.json", "Which multiple widths should be (`round_to`)", width_lanes),
    ("int8.json", "Prune, decompose, then quantise", int8),
    ("complexity.json", "The paper's complexity, reproduced", complexity),
    ("cpd_speed.json", "Speed of the batched CPD", cpd_speed),
    ("coupled_speed.json", "Components shared by a layer: speed, and how they stay bounded", coupled_speed),
    ("compress_time.json", "Whole compressions: filter against layer level", compress_time),
    ("sweeps_of_many.json", "Many shared components: what more sweeps give", sweeps_of_many),
    ("pabs_speed.json", "Speed of PABS", pabs_speed),
    ("upstream.json", "Patterns torch-pruning's dependency graph does not follow", upstream),
    ("fuzz.json", "Hostile and odd input", fuzz),
    ("compare_reports.json", "Reports before and after a change of the code", comparison),
    ("figure1.json", "Layer-wise, reshaped and filter-wise decomposition at equal parameters (Figure 1)", figure1),
]


def read(path: Path) -> Facts:
    """Return the facts of a section; a file of lines has one row in each."""
    if path.suffix == ".jsonl":
        return {"command": f"python tools/{path.stem}.py", "rows": [*map(json.loads, path.read_text().splitlines())]}
    facts: Facts = json.loads(path.read_text())
    return facts


def main() -> None:
    """Read what is there and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the JSON files")
    folder = parser.parse_args().results
    parts = [
        "# Results\n\nWritten by `tools/benchmarks/report.py` from the JSON files in this folder; each section names "
        "the command that makes its figures. `WEIGHTS` is a folder with the public CIFAR weights as safetensors."
    ]
    for file, title, render in SECTIONS:
        if not (folder / file).exists():
            continue
        facts = read(folder / file)
        parts.append(f"## {title}\n\n`{facts['command']}`\n\n{render(facts)}")
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
