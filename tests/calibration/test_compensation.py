"""After pruning, what reads the channels that stayed takes over what the others carried."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from norton_plugin import compress
from norton_plugin.blocks import ConvBlock
from norton_plugin.calibration import calibrate_
from norton_plugin.calibration.relative_norm import correct_batch_norm_
from norton_plugin.recipe import Calibration, Decomposition, Pruning, Recipe, Scope
from norton_plugin.surgery import decompose_, prune_
from norton_plugin.surgery.removed import RemovedChannels
from tests.calibration.test_calibrate import error, images
from tests.networks import Dense, Residual, settle


def pair(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()


def without(
    model: nn.Module, root: str, channels: list[int], *coupled: str
) -> tuple[nn.Module, dict[str, RemovedChannels]]:
    """A copy that lost these channels, and what its layers lost."""
    own = copy.deepcopy(model)

    def last(group) -> Tensor:
        return torch.tensor([0.0 if i in channels else 1.0 for i in range(group.size)])

    size = model.get_submodule(root).weight.shape[0]
    pruning = Pruning(keeps=dict.fromkeys([root, *coupled], 1 - len(channels) / size), round_to=1)
    report = prune_(own, images(2)[0], pruning, criterion=last)
    assert [(group.root, group.before - group.after) for group in report.groups] == [(root, len(channels))]
    return own, dict(report.removed)


@torch.no_grad()
def test_least_squares_of_numpy():
    model, batches = pair(), images(56)
    own, removed = without(model, "0", [1, 4])
    report = calibrate_(model, own, batches, example_inputs=batches[0], positions=64, removed=removed)
    assert report.chosen == "fitted" and [layer.name for layer in report.layers] == ["2"]
    assert dict(report.left) == {"0": "it sees what it sees in the dense model"}

    x = torch.cat(batches[:-1])  # the last one is held back
    patches = nn.functional.unfold(own[1](own[0](x)).double(), 3, padding=1).transpose(1, 2).flatten(0, 1).numpy()
    targets = model(x).double().flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    means = patches.mean(0), targets.mean(0)
    centred = patches - means[0]
    ridge = np.sqrt(1e-3 * np.square(centred).mean(0).mean() * len(patches))
    kept = model[2].weight[:, [0, 2, 3, 5]].double().flatten(1).numpy()
    rows = np.concatenate([centred, ridge * np.eye(len(kept[0]))])
    wanted = np.concatenate([targets - means[1], ridge * kept.T])
    weight = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    np.testing.assert_allclose(own[2].weight.flatten(1).numpy(), weight, atol=1e-4)
    np.testing.assert_allclose(own[2].bias.numpy(), means[1] - weight @ means[0], atol=1e-4)
    assert np.abs(weight - kept).max() > 0.01


def twins() -> nn.Module:
    """Channels 2 and 5 carry the same, in the stream and in the first block."""
    torch.manual_seed(0)
    model = settle(Residual(8))
    for layer in (model.stem, model.layers[0].conv1, model.layers[0].conv2, model.layers[1].conv2):
        layer.weight.data[5] = layer.weight.data[2]
    for norm in (model.layers[0].norm1, model.layers[0].norm2, model.layers[1].norm2):
        norm.bias.data.fill_(1.0)  # no channel is dead behind the ReLU
        for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            values[5] = values[2]
    return model


@pytest.mark.parametrize("root", ["layers.0.conv1", "stem"], ids=["inner", "residual"])
def test_a_removed_duplicate_is_compensated_exactly(root):
    model, others = twins(), images(seed=9)
    own, removed = without(model, root, [5], *(["*.conv2"] if root == "stem" else []))
    assert error(model, own, others) > 0.01
    report = calibrate_(model, own, images(96), example_inputs=others[0], positions=64, norms=False, removed=removed)
    assert error(model, own, others) < 1e-5
    consumers = {"stem": ["layers.0.conv1", "layers.1.conv1", "head"], "layers.0.conv1": ["layers.0.conv2"]}
    assert {layer.name for layer in report.layers} >= set(consumers[root])


@pytest.mark.parametrize(
    "settings",
    [
        {"level": "filter", "rank": 4},
        {"level": "layer", "components": 12},
        {"level": "cluster", "clusters": 2, "components": 12},
        {"level": "spatial", "components": 12},
    ],
    ids=lambda settings: settings["level"],
)
def test_blocks_of_every_level_take_over(settings):
    torch.manual_seed(3)
    model, others = settle(Residual(8)), images(seed=9)
    own = copy.deepcopy(model)
    decompose_(own, Decomposition(linear=True, allow_more_macs=True, **settings), scope=Scope(include=("layers.*",)))
    assert sum(isinstance(module, ConvBlock) for module in own.modules()) == 4
    report = prune_(own, others[0], Pruning(keep=0.75, round_to=1))
    assert len(report.groups) == 3
    plain = error(model, own, others)
    settings = {"example_inputs": others[0], "positions": 64, "removed": report.removed}
    found = calibrate_(model, own, images(96), **settings)
    assert {layer.name for layer in found.layers if layer.decomposed} == {
        f"layers.{i}.conv{j}" for i in (0, 1) for j in (1, 2)
    }
    assert [layer.target for layer in found.layers if layer.name.endswith("conv2")] == ["stream"] * 2
    assert found.chosen.startswith("fitted") and error(model, own, others) < 0.35 * plain


def test_groups_concatenations_and_flattened_maps():
    torch.manual_seed(0)
    model, others = Dense().eval(), images(seed=9)
    own = copy.deepcopy(model)
    report = prune_(own, others[0], Pruning(keep=0.75, round_to=1))
    plain = error(model, own, others)
    found = calibrate_(model, own, images(160), example_inputs=others[0], positions=64, removed=report.removed)
    fitted = {layer.name: layer for layer in found.layers}
    assert {"b", "grouped", "depthwise", "pointwise", "fc", "out"} <= fitted.keys()
    assert all(layer.nmse_after <= layer.nmse_before + 1e-3 for layer in found.layers)
    assert error(model, own, others) < 0.5 * plain


def test_norms_of_fewer_channels_are_corrected_against_their_own():
    torch.manual_seed(0)
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3)))
    own, removed = without(model, "0", [1])
    factor = torch.tensor([0.5, 1.5, 2.0])
    own[0].weight.data.mul_(factor.view(-1, 1, 1, 1))
    own[0].bias.data.mul_(factor).add_(3.0)
    settings = {"example_inputs": images(2)[0], "call": lambda net, x: net(x), "removed": removed}
    with torch.no_grad():
        assert correct_batch_norm_(model, own, images(), **settings) == 1
        expected = model[:2](images()[0])[:, [0, 2, 3]]
        torch.testing.assert_close(own[:2](images()[0]), expected, rtol=1e-3, atol=1e-3)


def test_layers_outside_of_the_scope_that_lost_inputs_take_over():
    model = pair()
    own, removed = without(model, "0", [1, 4])
    settings = {"example_inputs": images(2)[0], "positions": 64, "admits": lambda name: False}
    report = calibrate_(model, own, images(56), removed=removed, **settings)
    assert [layer.name for layer in report.layers] == ["2"]
    left = calibrate_(model, without(model, "0", [1, 4])[0], images(56), **settings)
    assert left.layers == () and left.chosen == "plain"


@pytest.mark.parametrize("rank", [None, 3], ids=["pruning alone", "both phases"])
def test_compress_compensates_where_the_recipe_asks_for_it(rank):
    torch.manual_seed(3)
    model, others = settle(Residual(8)), images(seed=9)
    recipe = Recipe(decomposition=Decomposition(rank=rank), pruning=Pruning(keep=0.75, round_to=1))
    plain = compress(model, others[0], recipe, calibration=images(96))
    fitting = Recipe(
        decomposition=recipe.decomposition, pruning=recipe.pruning, calibration=Calibration(fit=True, positions=64)
    )
    result = compress(model, others[0], fitting, calibration=images(96))
    assert plain.report.macs_after == result.report.macs_after
    assert plain.report.calibration_images == 96 and result.report.calibration_images == 0
    found = result.report.calibration
    assert found.chosen.startswith("fitted") and found.divergence[found.chosen] < found.divergence["plain"]
    assert error(model, result.model, others) < 0.5 * error(model, plain.model, others)
    assert "removed" not in result.report.to_dict()["pruning"]


def test_few_samples_do_not_keep_a_consumer_from_taking_over():
    """With fewer samples than inputs, a layer that lost nothing is left, and one that lost inputs is fitted."""
    torch.manual_seed(0)
    model = nn.Sequential(*pair(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    batches = [batch[:2] for batch in images(48)]  # 5 batches of 2: 10 samples of the classifier
    own, removed = without(model, "0", [1, 4])
    report = calibrate_(model, own, batches, example_inputs=batches[0], positions=3, removed=removed)
    fitted = {layer.name: layer for layer in report.layers}
    assert fitted["2"].samples == 30 < fitted["2"].inputs == 36
    assert dict(report.left)["5"] == "10 samples are too few for 16 inputs"


@pytest.mark.parametrize("decomposed", [False, True])
def test_rows_that_keep_the_scale_of_attention_stay_multiplied(decomposed):
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")
    torch.manual_seed(0)
    settings = {"img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.models.VisionTransformer(**settings).eval()
    for block in model.blocks:
        block.attn.qkv.weight.data *= 20
    own = copy.deepcopy(model)
    if decomposed:
        decompose_(
            own,
            Decomposition(level="layer", components=16, linear=True, allow_more_macs=True),
            scope=Scope(include=("blocks.*.attn.qkv",)),
        )
    others = images(seed=9)
    report = prune_(own, others[0], Pruning(keep=0.67, round_to=1))
    lost = report.removed["blocks.0.attn.qkv"]
    # A head of 12 channels keeps 8: queries or keys are multiplied by the root of 8 / 12 or its inverse.
    assert lost.inputs and {round(max(f, 1 / f) ** 2, 6) for _, f in lost.factors} == {1.5}
    plain = error(model, own, others)
    found = calibrate_(model, own, images(160), example_inputs=others[0], removed=report.removed)
    fitted = {layer.name: layer for layer in found.layers}
    assert fitted["blocks.0.attn.qkv"].nmse_after < fitted["blocks.0.attn.qkv"].nmse_before < 0.9
    with torch.no_grad():
        x = torch.randn(64, 16, own.embed_dim, generator=torch.Generator().manual_seed(1))
        dense, mine = model.blocks[0].attn.qkv.weight, own.blocks[0].attn.qkv(x) - own.blocks[0].attn.qkv(0 * x)
        kept = dense[lost.kept_outputs(72)][:, lost.kept_inputs(24)]
        ratio = (mine * (x @ kept.T)).sum((0, 1)) / (x @ kept.T).square().sum((0, 1))
    changed = [lost.kept_outputs(72).index(i) for i, _ in lost.factors if i not in lost.outputs]
    others_of = [i for i in range(len(kept)) if i not in changed]
    assert float(ratio[changed].mean() / ratio[others_of].mean()) == pytest.approx(lost.factors[0][1], rel=0.1)
    assert error(model, own, others) < 0.6 * plain
