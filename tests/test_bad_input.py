"""Bad input: every error is one of ours, says what came, and leaves the model alone."""

import copy
import importlib
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.errors import MissingExtraError, NortonError, RecipeError, SurgeryError
from norton_plugin.pipeline import compress
from norton_plugin.recipe import Decomposition, Pruning, Recipe, Scope
from norton_plugin.zoo.cifar import resnet20

QUICK = dict(restarts=1, sweeps=5)
BOTH = Recipe(decomposition=Decomposition(rank=2, **QUICK), pruning=Pruning(keep=0.5, round_to=1))


def network(norm: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ]  # fmt: skip
    return nn.Sequential(*(layer for layer in layers if norm or not isinstance(layer, nn.BatchNorm2d))).eval()


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def _facts(model: nn.Module) -> list:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    bits = [(n, t.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) for n, t in tensors if not t.is_meta]
    flags = [(n, id(t), t.requires_grad, t.dtype) for n, t in tensors]
    return [repr(model), bits, flags, [(id(m), m.training) for m in model.modules()]]


def refused(model: nn.Module, example, recipe, **options) -> str:
    """The message of the error that compress raises; the model is checked to be as before."""
    before = _facts(model)
    with pytest.raises(NortonError) as caught:
        compress(model, example, recipe, **options)
    assert _facts(model) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), ("no layer is eligible", "1x1 kernel")),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3)), ("no layer is eligible", "depthwise")),
        (nn.Sequential(nn.ReLU()), ("the Sequential has no parameters",)),
        (nn.Sequential(nn.BatchNorm2d(3)), ("no layer is eligible: the model has none",)),
        (nn.Conv2d(3, 16, 3), ("nn.Sequential(layer)",)),
    ],
)
def test_zero_eligible_layers(model, words):
    message = refused(model, IMAGE, Recipe(decomposition=Decomposition(rank=1, **QUICK)))
    assert all(word in message for word in words)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["3.weight", "0.bias", "7.weight"])
def test_weights_that_are_not_finite(name, value):
    model = network()
    model.get_parameter(name).data.view(-1)[3] = value
    message = refused(model, IMAGE, BOTH)
    assert message.startswith(f"{name} holds NaN or infinite values") and "load a sound checkpoint" in message


def test_statistics_that_are_not_finite():
    model = network()
    model[1].running_var[0] = float("nan")
    assert "buffer 1.running_var holds NaN" in refused(model, IMAGE, BOTH)


@pytest.mark.parametrize("rank", [0, -1, 10**6, 1.5, "many", True])
def test_ranks_out_of_range(rank):
    with pytest.raises(RecipeError, match=rf"decomposition.rank is {rank!r}; expected a whole number from 1 to 4096"):
        Decomposition(rank=rank)
    with pytest.raises(RecipeError, match=rf"ranks\['conv'\] is {rank!r}"):
        Decomposition(ranks={"conv": rank})


def test_a_rank_that_saves_nothing():
    message = refused(network(), IMAGE, Recipe(decomposition=Decomposition(rank=4000)))
    assert "rank 4000 needs more MACs than the dense convolution (break-even rank 2)" in message


@pytest.mark.parametrize("keep", [0, -0.5, 1.01, float("nan"), float("inf"), "half", None, True])
def test_shares_out_of_range(keep):
    with pytest.raises(RecipeError, match=rf"pruning.keep is {keep!r}; expected a number in \(0, 1\]"):
        Pruning(keep=keep)
    with pytest.raises(RecipeError, match=rf"keeps\['conv'\] is {keep!r}"):
        Pruning(keeps={"conv": keep})


@pytest.mark.parametrize(
    ("recipe", "quoted"),
    [
        (Recipe(scope=Scope(include=("net.*",)), decomposition=Decomposition(rank=1)), "scope.include pattern 'net.*'"),
        (Recipe(scope=Scope(exclude=("re:x+",)), pruning=Pruning(keep=0.5)), "scope.exclude pattern 're:x+'"),
        (Recipe(decomposition=Decomposition(ranks={"stem": 2})), "decomposition.ranks pattern 'stem'"),
        (Recipe(pruning=Pruning(keeps={"layer9": 0.5})), "pruning.keeps pattern 'layer9'"),
        (Recipe(decomposition=Decomposition(ranks={"7": 2})), "decomposition.ranks pattern '7'"),
    ],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_quoted(recipe, quoted):
    assert quoted in refused(network(), IMAGE, recipe)


def test_a_broken_expression_is_quoted():
    recipe = Recipe(scope=Scope(include=("re:(",)), decomposition=Decomposition(rank=1))
    assert "pattern 're:(' is not a valid regular expression" in refused(network(), IMAGE, recipe)


@pytest.mark.parametrize("recipe", [BOTH, Recipe(decomposition=BOTH.decomposition), Recipe(pruning=BOTH.pruning)])
@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.zeros(1, 5, 8, 8), "does not run on the example inputs (RuntimeError"),
        (torch.zeros(8), "does not run on the example inputs"),
        (None, "does not run on the example inputs"),
        ("image.jpg", "does not run on the example inputs"),
        ((IMAGE, IMAGE), "does not run on the example inputs (TypeError"),
        ({"pixels": IMAGE}, "does not run on the example inputs (TypeError"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.long), "does not run on the example inputs"),
        (IMAGE.double(), "example_inputs are torch.float64, the model's parameters torch.float32"),
        (IMAGE.half(), "example_inputs are torch.float16, the model's parameters torch.float32"),
        (IMAGE.to("meta"), "example_inputs are on meta, the model on cpu"),
    ],
)
def test_a_wrong_example(recipe, example, words):
    assert words in refused(network(), example, recipe)


def test_an_error_without_a_message_is_told_by_its_kind():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            raise ValueError

    assert "(ValueError: )" in refused(Strict(), IMAGE, BOTH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision(dtype):
    model = network().to(dtype)
    assert f"torch.float32, the model's parameters {dtype}" in refused(model, IMAGE, BOTH)
    before = _facts(model)
    compressed, report = compress(model, IMAGE.to(dtype), BOTH, calibration=[IMAGE.to(dtype)])
    assert _facts(model) == before
    assert {p.dtype for p in compressed.parameters()} == {dtype}
    assert [layer.rank for layer in report.decomposition.layers] == [2, 2]
    assert [(g.before, g.after) for g in report.pruning.groups] == [(16, 8), (16, 8)]
    assert torch.isfinite(compressed(IMAGE.to(dtype))).all()


def test_rounding_of_half_precision_is_not_taken_for_a_wrong_group():
    model, image = resnet20().half().eval(), torch.randn(2, 3, 32, 32).half()
    _, report = compress(model, image, BOTH)
    assert len(report.pruning.groups) == 10
    # The shortcuts that pad channels are wrong in any precision.
    assert not [s.name for s in report.pruning.skipped if s.code == "differs"]


@pytest.mark.parametrize("recipe", [BOTH, Recipe(pruning=BOTH.pruning), Recipe(decomposition=BOTH.decomposition)])
def test_a_frozen_model(recipe):
    model = network().requires_grad_(False)
    before = _facts(model)
    compressed, _ = compress(model, IMAGE, recipe)
    assert _facts(model) == before
    assert not any(p.requires_grad for p in compressed.parameters())
    assert sum(p.numel() for p in compressed.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_model_with_no_norm():
    compressed, report = compress(network(norm=False), IMAGE, BOTH, calibration=[IMAGE])
    assert report.calibration_images == 0 and len(report.pruning.groups) == 2
    assert compressed(IMAGE).shape == (2, 4)


def test_a_batch_of_one():
    compressed, report = compress(network(), IMAGE[:1], BOTH, calibration=[IMAGE[:1], IMAGE[1:]])
    assert report.calibration_images == 2 and compressed(IMAGE[:1]).shape == (1, 4)
    pixel = nn.Sequential(nn.Conv2d(3, 16, 8), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 4)).eval()
    message = refused(pixel, IMAGE[:1], Recipe(pruning=BOTH.pruning), calibration=[IMAGE[:1]])
    assert "Expected more than 1 value per channel" in message and "batches" in message and "two images" in message
    assert compress(pixel, IMAGE[:1], Recipe(pruning=BOTH.pruning), calibration=[IMAGE])[1].calibration_images == 2


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "the calibration data holds no batch"),
        ([torch.zeros(2, 5, 8, 8)], "does not run on a calibration batch (RuntimeError"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "statistics are not finite"),
        (IMAGE, "calibration is a Tensor; expected an iterable of batches"),
        ("images", "calibration is a str; expected an iterable of batches"),
        ({"images": IMAGE}, "calibration is a dict; expected"),
    ],
)
def test_wrong_calibration_data(batches, words):
    message = refused(network(), IMAGE, BOTH, calibration=batches)
    assert words in message and "\n" not in message


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(), "the recipe asks for nothing"),
        ({"decomposition": {"rank": 2}}, "recipe is a dict; expected a Recipe (Recipe.from_dict makes one)"),
        (None, "recipe is a NoneType"),
    ],
)
def test_no_recipe(recipe, words):
    assert words in refused(network(), IMAGE, recipe)


def test_not_a_model():
    with pytest.raises(SurgeryError, match="model is a str; expected a torch.nn.Module"):
        compress("resnet18", IMAGE, BOTH)
    meta = nn.Sequential(nn.Conv2d(3, 8, 3, device="meta"))
    assert "0.weight is on the meta device" in refused(meta, IMAGE, BOTH)


def test_a_quantised_model_and_a_script():
    quantised = nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert "holds a quantised Conv2d; compress the floating-point model first" in refused(quantised, IMAGE, BOTH)
    assert "a script of torch.jit; compress the model itself" in refused(torch.jit.script(network()), IMAGE, BOTH)


def test_a_model_that_cannot_be_copied():
    model = network()
    model.lock = threading.Lock()
    with pytest.raises(SurgeryError, match="the model cannot be copied .* before it is wrapped or compiled"):
        compress(model, IMAGE, BOTH)


def test_tensors_with_a_history_are_copied_without_it():
    """What a model has computed and kept, as the weights of weight_norm; its own tensor stays what it was."""
    model = network()
    model.cache = kept = model[0](IMAGE)
    compressed, report = compress(model, IMAGE, BOTH)
    assert model.cache is kept and kept.grad_fn is not None and report.status == "full"
    assert compressed.cache.is_leaf and torch.equal(compressed.cache, kept)
    normed = network()
    torch.nn.utils.weight_norm(normed[3])
    before, (compressed, report) = normed(IMAGE), compress(normed, IMAGE, BOTH)
    assert torch.equal(normed(IMAGE), before) and report.largest_error < 1e-4
    assert compressed(IMAGE).shape == before.shape


class Detached(nn.Module):
    """Runs, but its output does not show how it was made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x))).detach()


def test_an_output_that_does_not_show_how_it_was_made_is_followed_all_the_same():
    _, report = compress(Detached(), IMAGE, Recipe(pruning=BOTH.pruning))
    assert [(g.root, g.before, g.after) for g in report.pruning.groups] == [("conv", 16, 8)]


@pytest.mark.parametrize(
    ("package", "module", "command"),
    [
        ("timm", "norton_plugin.zoo.timm", "pip install 'norton-plugin[timm]'"),
        ("torchvision", "norton_plugin.zoo.torchvision", "pip install 'norton-plugin[timm]'"),
        ("mmengine", "norton_plugin.mm", "pip install 'norton-plugin[timm]'"),
    ],
)
def test_a_missing_extra_names_the_command(monkeypatch, package, module, command):
    for name in [n for n in sys.modules if n.split(".")[0] == package or n == module or n.startswith(module + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError) as caught:
        importlib.import_module(module)
    assert command in str(caught.value) and package in str(caught.value)


def test_the_comparison_sees_a_single_bit():
    """Otherwise the tests above would prove nothing."""
    model = network()
    before = _facts(model)
    model[0].weight.data[0, 0, 0, 0] += 1e-6
    assert _facts(model) != before
    other = copy.deepcopy(model)
    assert _facts(other)[:2] == _facts(model)[:2] and _facts(other) != _facts(model)
