"""The benchmark's arithmetic, by clocks and models whose times are known."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn

from norton_plugin import NortonError, RecipeError, compress
from norton_plugin.bench import bench, plot_speed
from norton_plugin.bench.candidates import CHANNELS_LAST, DELIVERED, DENSE, FOLDED, PYTORCH, Candidate, OpenedCandidate
from norton_plugin.bench.layers import verdict
from norton_plugin.bench.memory import first_call_peak
from norton_plugin.bench.report import Setting, Timing
from norton_plugin.bench.timing import of_batch, samples_of, setting_of
from norton_plugin.deploy.compiling import compiled
from norton_plugin.recipe import Decomposition, Pruning, Recipe


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()


def small_report(**options: object):
    dense = small_network()
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    recipe = Recipe(decomposition=Decomposition(rank=1), pruning=Pruning(keep=0.5))
    compressed, found = compress(dense, x, recipe)
    return bench(dense, compressed, x, rounds=3, **options), found


class Clock:
    """Every call that is timed takes as long as its turn says."""

    def __init__(self, durations: list[float]) -> None:
        self.durations, self.place, self.now = durations, count(), 0.0

    def __call__(self) -> float:
        turn = next(self.place)
        if turn % 2:
            self.now += self.durations[turn // 2 % len(self.durations)]
        return self.now


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    found = samples_of(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=2,
        seconds=10,
        clock=Clock([1.0, 3.0, 2.0, 5.0]),
    )
    assert order == ["a", "b", "a", "b", "a", "b"]  # one of each to warm up
    assert found == {"a": [1.0, 2.0], "b": [3.0, 5.0]}


def test_no_further_round_after_the_time_is_up_but_three_in_any_case() -> None:
    assert len(samples_of({"a": lambda: None}, rounds=50, seconds=0.0)["a"]) == 3


def test_speed_up_is_over_the_faster_dense_model_of_the_same_runtime() -> None:
    def candidate(model: str, runtime: str) -> Candidate:
        return Candidate(model, runtime, lambda inputs, threads: lambda: None)

    candidates = [
        candidate(DENSE, PYTORCH),
        candidate(FOLDED, CHANNELS_LAST),
        candidate(DELIVERED, PYTORCH),
        candidate(DENSE, "onnxruntime"),
        candidate(DELIVERED, "onnxruntime"),
    ]
    setting = setting_of(
        {each: OpenedCandidate(lambda: None, None) for each in candidates},
        batch=1,
        threads=torch.get_num_threads(),
        macs_ratio=4.0,
        file_macs_ratio=2.0,
        rounds=1,
        seconds=1.0,
        clock=Clock([8.0, 6.0, 2.0, 4.0, 1.0]),
    )
    dense, folded, delivered, dense_file, delivered_file = setting.timings
    assert (dense.speed_up, folded.speed_up) == (0.75, 1.0)
    assert (delivered.speed_up, delivered.speed_up_in_all, delivered.efficiency) == (3.0, 4.0, 0.75)
    assert (delivered_file.speed_up, delivered_file.speed_up_in_all, delivered_file.efficiency) == (4.0, 8.0, 2.0)
    assert dense.efficiency is None and dense_file.milliseconds == 4000.0
    assert setting.best(DELIVERED) is delivered_file


def test_times_that_vary_too_much_are_doubted() -> None:
    def row(model: str, low: float, high: float) -> Timing:
        return Timing(model, PYTORCH, 10.0, low, high, 1.0, 1.0, None, None)

    steady = Setting(1, 1, 5, (row("dense", 9.0, 14.0), row("delivered", 10.0, 10.0)))
    assert steady.doubt is None
    shaky = Setting(1, 1, 5, (row("dense", 0.8, 13.4), row("delivered", 10.0, 10.0)))
    assert shaky.doubt is not None
    assert shaky.doubt.startswith("the times of dense in PyTorch vary by more than half of their median")
    assert "delivered" not in shaky.doubt


def test_a_batch_repeats_the_first_image() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert of_batch((x, 1.5), 3)[0].tolist() == [[0, 1, 2]] * 3
    assert of_batch({"x": x}, 1)["x"].tolist() == [[0, 1, 2]]
    with pytest.raises(RecipeError, match="no tensor with a batch axis"):
        of_batch(("text", 2), 4)


def test_first_call_peak_sees_what_a_call_takes_and_gives_back() -> None:
    found = first_call_peak(lambda: bytearray(b"x" * 64 * 2**20))
    if found is None:
        pytest.skip("this system has no such counter")
    assert 60 < found < 200


@pytest.mark.parametrize(
    ("speed_up", "ratio", "intensity", "words"),
    [
        (0.8, 3.0, 20.0, "slower than dense"),
        (1.0, 1.0, 20.0, "nothing to gain"),
        (1.0, 3.0, 2.0, "waits for memory"),
        (1.0, 3.0, 20.0, "products are small"),
        (2.0, 4.0, 2.0, "memory limits it"),
        (2.0, 4.0, 20.0, "steps are small"),
        (2.7, 3.0, 20.0, "fast"),
    ],
)
def test_verdicts(speed_up: float, ratio: float, intensity: float, words: str) -> None:
    assert words in verdict(speed_up, ratio, intensity)


def test_report_of_a_small_network() -> None:
    threads = torch.get_num_threads()
    report, compression = small_report(batches=(1, 2))
    assert (report.macs_dense, report.macs) == (compression.macs_before, compression.macs_after)
    assert (report.parameters_dense, report.parameters) == (
        compression.parameters_before,
        compression.parameters_after,
    )
    assert [(setting.batch, setting.threads) for setting in report.settings] == [(1, 1), (2, 1)]
    names = [(timing.model, timing.runtime) for timing in report.settings[0].timings]
    assert names == [
        ("dense", "PyTorch"),
        ("compressed", "PyTorch"),
        ("dense, folded", "PyTorch"),
        ("dense, folded", "PyTorch, channels_last"),
        ("delivered", "PyTorch"),
        ("delivered", "PyTorch, channels_last"),
    ]
    for timing in report.settings[0].timings:
        assert 0 < timing.low <= timing.milliseconds <= timing.high
    assert [layer.name for layer in report.layers] == ["0", "3", "8"]
    changed = {layer.name: (layer.macs_before, layer.macs_after) for layer in compression.layers}
    assert {layer.name: (layer.macs_dense, layer.macs) for layer in report.layers} == changed
    assert torch.get_num_threads() == threads
    json.dumps(report.to_dict())


def test_compiled_models_are_a_runtime_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    resets = []
    monkeypatch.setattr(torch, "compile", nn.Sequential)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    report, _ = small_report(compile=True, layers=False, batches=(1, 2))
    assert len(resets) == 2  # each batch gets code of its own
    timed = {(t.model, t.runtime): t for t in report.settings[0].timings if "compile" in t.runtime}
    runtimes = ("torch.compile", "torch.compile, channels_last")
    assert list(timed) == [(model, runtime) for model in ("dense, folded", "delivered") for runtime in runtimes]
    best = min(timed["dense, folded", runtime].milliseconds for runtime in runtimes)
    for runtime in runtimes:
        own = timed["delivered", runtime]
        assert own.speed_up == pytest.approx(best / own.milliseconds)
        assert own.efficiency == pytest.approx(own.speed_up / report.macs_ratio)


def test_what_is_not_called_is_not_compiled() -> None:
    report, _ = small_report(compile=True, layers=False, timed_fn=lambda model, x: model(x))
    ((name, reason),) = report.left
    assert name == "the model in torch.compile" and "runs by methods of its own" in reason
    assert not [t for t in report.settings[0].timings if "compile" in t.runtime]


@pytest.mark.slow
def test_weights_are_constants_of_what_is_compiled() -> None:
    network, x = small_network(), torch.randn(2, 3, 16, 16)
    fast = compiled(network)
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(fast(x), expected)
        network[8].weight.zero_()
        torch.testing.assert_close(fast(x), expected)
    assert not torch._inductor.config.freezing


def test_a_model_that_cannot_be_compiled_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(model: nn.Module) -> object:
        def refuse(*_: object) -> None:
            raise RuntimeError("no working C++ compiler")

        return nn.Sequential(model, _Calling(refuse))

    monkeypatch.setattr(torch, "compile", compile)
    report, _ = small_report(compile=True, layers=False)
    assert ("delivered in torch.compile", "no working C++ compiler") in report.left
    assert not [t for t in report.settings[0].timings if "compile" in t.runtime]


class _Calling(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.forward = function


def test_exported_models_are_timed_too() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    report, _ = small_report(runtimes=("onnxruntime",), layers=False)
    timed = [(t.model, t.runtime) for t in report.settings[0].timings if "PyTorch" not in t.runtime]
    assert timed == [("dense", "onnxruntime"), ("delivered", "onnxruntime")]
    assert report.left == ()


def test_files_of_a_part_are_held_against_their_own_macs() -> None:
    """As those of detectors of two stages, which end before the boxes."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    part = 4

    def front(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model[:part](x)  # type: ignore[index]

    report, compression = small_report(runtimes=("onnxruntime",), layers=False, export_forward=front)
    whole = {layer.name: (layer.macs_before, layer.macs_after) for layer in compression.layers}
    front_macs = [sum(macs[i] for name, macs in whole.items() if int(name) < part) for i in (0, 1)]
    assert list(report.file_macs or ()) == front_macs
    assert report.macs_dense > front_macs[0] and report.macs_ratio != report.file_macs_ratio
    for timing in report.settings[0].timings:
        if timing.efficiency is not None:
            ratio = report.file_macs_ratio if timing.runtime == "onnxruntime" else report.macs_ratio
            assert timing.efficiency == pytest.approx(timing.speed_up / ratio)


def test_a_whole_detector_is_timed_as_a_file_and_not_quantised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from norton_plugin.bench import candidates
    from norton_plugin.export import Int8

    asked = []
    monkeypatch.setattr(candidates, "export", lambda *_, int8, **__: asked.append(int8))

    def boxes(model: nn.Module, inputs: object) -> None: ...

    boxes.unordered = True  # type: ignore[attr-defined]
    x, found = torch.randn(1, 3, 16, 16), candidates.Candidates()
    models = ((DENSE, small_network()), (DELIVERED, small_network()))
    found.add_files(models, x, ("onnxruntime",), tmp_path, forward_fn=boxes, int8=Int8([x]))
    assert asked == [None, None]
    assert [(each.model, each.runtime) for each in found.found] == [(DENSE, "onnxruntime"), (DELIVERED, "onnxruntime")]
    assert found.left == [("delivered, int8", "a whole detector is not quantised")]


def test_a_file_of_one_batch_says_so(tmp_path: Path) -> None:
    from norton_plugin.bench import candidates

    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(NortonError, match="the file takes a batch of 1, not of 2"):
        candidates._from_file(tmp_path / "a.onnx", "onnxruntime", (x,), 1, batch=1)


def test_what_cannot_be_exported_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    from norton_plugin.bench import candidates
    from norton_plugin.errors import ExportError

    def refuse(*_: object, **__: object) -> None:
        raise ExportError("no such operator")

    monkeypatch.setattr(candidates, "export", refuse)
    report, _ = small_report(runtimes=("onnxruntime",), layers=False)
    assert report.left == (("dense as ONNX", "no such operator"), ("delivered as ONNX", "no such operator"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": ()}, r"batches are \[\]"),
        ({"threads": (0,)}, r"threads are \[0\]"),
        ({"runtimes": ("tensorrt",)}, "not known"),
        ({"forms": {"conv9": "dense"}}, "names the block 'conv9', which the model does not have"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], words: str) -> None:
    network, x = small_network(), torch.randn(1, 3, 16, 16)
    with pytest.raises(RecipeError, match=words):
        bench(network, network, x, **options)  # type: ignore[arg-type]


def test_plot(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    report, _ = small_report(layers=False)
    path = plot_speed(tmp_path / "speed.png", report)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_convolutions_of_two_and_three_axes_are_timed_in_both_memory_formats() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.deep(self.flat(x)[:, None])

    network, x = Volume().eval(), torch.randn(1, 3, 8, 8)
    report = bench(network, network, x, rounds=1)
    assert {timing.runtime for timing in report.settings[0].timings} == {PYTORCH, CHANNELS_LAST}
    assert not report.left
