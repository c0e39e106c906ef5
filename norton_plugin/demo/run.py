"""The run of the demonstration: digits, a small network, three compressed ones, fine-tuned and compared."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from norton_plugin.artifact import write_whole
from norton_plugin.demo.results import CompressedResult, DemoResult, DenseResult
from norton_plugin.deploy import compare_latency, prepare
from norton_plugin.errors import ArtifactError
from norton_plugin.insight import TradeOffPoint, percent, plot_trade_off, short
from norton_plugin.insight.page import Table, page_template, write_page
from norton_plugin.insight.plots import new_figure
from norton_plugin.mm import FinetuneSettings, PackedImages, evaluate, finetune
from norton_plugin.pipeline import CompressionResult, compress
from norton_plugin.recipe import Decomposition, Pruning, Recipe
from norton_plugin.zoo import ModelSource, Preprocessing, load_source
from norton_plugin.zoo.demo import load_digits

OnStep = Callable[[str, int | None, int | None], None]
# Hybrid recipes (rank, keep) that come to about 50, 30 and 15 % of the network's MACs; measured, not exact.
RECIPES: dict[str, tuple[int, float]] = {"half": (7, 0.75), "third": (4, 0.75), "seventh": (4, 0.5)}
_TRAINING = FinetuneSettings(
    epochs=20, lr=0.05, batch_size=64, warmup_epochs=1.0, crop_padding=1, val_interval=5, label_smoothing=0.05
)
_TUNING = FinetuneSettings(epochs=10, optimizer="SGD", lr=0.02, batch_size=64, crop_padding=1, val_interval=5)
_LATENCY_BATCH = 64
PAGE, DENSE = "report.html", "dense.safetensors"
_LATENCY_ROUNDS = 31


@dataclass(frozen=True)
class _Candidate:
    """A compressed network on its way."""

    name: str
    compressed: CompressionResult
    before: float
    after: float
    seconds: float


@dataclass(frozen=True)
class _Digits:
    train: PackedImages
    test: PackedImages
    preprocessing: Preprocessing

    def normalised(self, count: int, *, seed: int = 0) -> Tensor:
        """Training images as the network sees them, (count, 1, H, W)."""
        images = self.train.subset(count, seed=seed).images.float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.preprocessing.mean, self.preprocessing.std))
        return (images - mean) / std

    def accuracy(self, model: nn.Module) -> float:
        return evaluate(model, self.test, mean=self.preprocessing.mean, std=self.preprocessing.std, device="cpu").top1


def run_demo(directory: Path, *, quick: bool, seed: int, on_step: OnStep, on_note: Callable[[str], None]) -> DemoResult:
    """Train, compress, fine-tune, measure and write everything into a directory.

    Args:
        directory: Gets one artefact per compressed network, ``dense.safetensors``, ``demo.png``,
            ``demo.json`` and ``report.html``.
        quick: A few epochs only.
        seed: Of all random choices.
        on_step: Told what is going on, with the steps done and to do.
        on_note: Told a result as it comes.

    Raises:
        MissingExtraError: scikit-learn, mmengine, matplotlib or jinja2 is not installed.
        ArtifactError: The directory cannot be written.
    """
    new_figure(), page_template()  # a missing extra is told now, not after minutes of training
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write to {directory}: {error}") from error
    source, digits = _prepare(seed)
    training = _TRAINING.replace(seed=seed, **({"epochs": 2} if quick else {}))
    tuning = _TUNING.replace(seed=seed, **({"epochs": 1} if quick else {}))
    seconds = _train(source.model, digits, training, "training the dense network", on_step)
    accuracy = digits.accuracy(source.model)
    on_note(f"dense: {accuracy:.2f} % after {training.epochs} epochs, {seconds:.0f} s")
    candidates = []
    for name, (rank, keep) in RECIPES.items():
        recipe = Recipe(decomposition=Decomposition(rank=rank, seed=seed), pruning=Pruning(keep=keep))
        made = _compress(name, source, recipe, digits, tuning, on_step)
        share = 100 * made.compressed.report.macs_after / made.compressed.report.macs_before
        on_note(
            f"{name}: {share:.1f} % of the MACs, {made.before:.2f} % before and {made.after:.2f} % after fine-tuning"
        )
        candidates.append(made)
    on_step("measuring latency", None, None)
    ratios = _latency_ratios(source.model, candidates, digits.normalised(_LATENCY_BATCH, seed=seed))
    compressed = tuple(_result(made, ratio) for made, ratio in zip(candidates, ratios, strict=True))
    report = candidates[0].compressed.report
    found = DemoResult(
        DenseResult(accuracy, report.macs_before, report.parameters_before, seconds),
        compressed,
        len(digits.train),
        len(digits.test),
        _LATENCY_BATCH,
        seed,
        quick,
    )
    on_step("writing", None, None)
    _save(directory, candidates, found, source)
    _write(directory, found)
    return found


def _prepare(seed: int) -> tuple[ModelSource, _Digits]:
    """Build the dense network, with weights of this seed, and the data."""
    data = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = load_source("demo:digits")
    train = PackedImages(data.train_images, data.train_labels)
    test = PackedImages(data.test_images, data.test_labels)
    return source, _Digits(train, test, source.preprocessing)


def _save(directory: Path, candidates: list[_Candidate], found: DemoResult, source: ModelSource) -> None:
    """Write the dense network's weights, and an artefact of each compressed one."""
    write_whole(directory / DENSE, save_tensors(source.model.state_dict()))
    for made, result in zip(candidates, found.compressed, strict=True):
        made.compressed.save(directory / made.name, source=source, extra={"demo": asdict(result)})


def _train(model: nn.Module, digits: _Digits, settings: FinetuneSettings, text: str, on_step: OnStep) -> float:
    result = finetune(
        model,
        digits.train,
        None,
        settings=settings,
        mean=digits.preprocessing.mean,
        std=digits.preprocessing.std,
        device="cpu",
        on_step=lambda done, total: on_step(text, done, total),
    )
    return result.seconds


def _compress(
    name: str, source: ModelSource, recipe: Recipe, digits: _Digits, tuning: FinetuneSettings, on_step: OnStep
) -> _Candidate:
    start = time.perf_counter()
    on_step(f"compressing to {name}", None, None)
    images = digits.normalised(len(digits.train), seed=recipe.decomposition.seed)
    compressed = compress(
        source.model, source.example_inputs, recipe, calibration=[(batch,) for batch in images.split(128)]
    )
    before = digits.accuracy(compressed.model)
    _train(compressed.model, digits, tuning, f"fine-tuning {name}", on_step)
    after = digits.accuracy(compressed.model)
    return _Candidate(name, compressed, before, after, time.perf_counter() - start)


def _latency_ratios(dense: nn.Module, candidates: list[_Candidate], images: Tensor) -> tuple[float, ...]:
    """Measure the dense network's latency over each candidate's, all as delivered, timed in turn on the same images."""

    def call(model: nn.Module) -> Callable[[], Tensor]:
        ready = prepare(model, images, forms="measured").model

        def run() -> Tensor:
            with torch.inference_mode():
                return ready(images)

        return run

    models = [dense, *(made.compressed.model for made in candidates)]
    return compare_latency([call(model) for model in models], rounds=_LATENCY_ROUNDS).ratios[1:]


def _result(made: _Candidate, ratio: float) -> CompressedResult:
    return CompressedResult(
        name=made.name,
        recipe=f"rank {made.compressed.recipe.decomposition.rank}, keep {made.compressed.recipe.pruning.keep:g}",
        accuracy_before=made.before,
        accuracy_after=made.after,
        macs=made.compressed.report.macs_after,
        parameters=made.compressed.report.parameters_after,
        latency_ratio=ratio,
        seconds=made.seconds,
    )


def _write(directory: Path, found: DemoResult) -> None:
    points = [
        TradeOffPoint(
            each.recipe.replace(", ", "\n"), each.macs / found.dense.macs, each.accuracy_before, each.accuracy_after
        )
        for each in found.compressed
    ]
    title = "Handwritten digits: accuracy against cost"
    try:
        plot_trade_off(directory / "demo.png", points, dense=found.dense.accuracy, title=title)
        text = json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n"
        (directory / "demo.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"cannot write to {directory}: {error}") from error
    smallest = directory / found.compressed[-1].name
    write_page(smallest, directory / PAGE, tables=[_table(found)], more_pictures=[directory / "demo.png"])


def _table(found: DemoResult) -> Table:
    """Return what the page says of the whole run; the rest of it shows the smallest network."""
    dense = found.dense
    headings = ("model", "recipe", "accuracy, %", "fine-tuned, %", "MACs", "of dense", "parameters", "speed-up")
    rows = [("dense", "-", f"{dense.accuracy:.2f}", "-", short(dense.macs), "100.0 %", short(dense.parameters), "1.00")]
    rows += [
        (
            each.name,
            each.recipe,
            f"{each.accuracy_before:.2f}",
            f"{each.accuracy_after:.2f}",
            short(each.macs),
            percent(each.macs / dense.macs),
            short(each.parameters),
            f"{each.latency_ratio:.2f}",
        )
        for each in found.compressed
    ]
    title = f"All networks of the run; this page shows {found.compressed[-1].name}"
    return Table(title, headings, tuple(rows))
