"""compress: the numbers it reports, what it does to the copy, and that the original stays as it was."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock, conv_cost, cpd_cost
from norton_plugin.cost import count_cost
from norton_plugin.errors import SurgeryError
from norton_plugin.pipeline import compress
from norton_plugin.recipe import Calibration, Decomposition, Pruning, Recipe, Scope
from norton_plugin.surgery import apply_structure_
from norton_plugin.zoo.cifar import resnet20

DECOMPOSITION = Decomposition(rank=2, restarts=1, sweeps=5)
PRUNING = Pruning(keep=0.5, round_to=1)
BOTH = Recipe(decomposition=DECOMPOSITION, pruning=PRUNING)


class Net(nn.Module):
    """Stem, 3x3, strided 3x3, head; norms between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = torch.relu(self.norm2(self.conv(x)))
        return self.head(torch.relu(self.norm3(self.down(x))).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def unchanged() -> Callable[[nn.Module], Callable[[], None]]:
    """Remembers a model down to its flags and objects; the function returned checks them."""

    def remember(model: nn.Module) -> Callable[[], None]:
        def facts() -> list:
            tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            return [
                repr(model),
                {name: (id(module), module.training, sorted(vars(module))) for name, module in model.named_modules()},
                {name: (id(t), t.requires_grad, t.dtype, t._version, t.grad is None) for name, t in tensors.items()},
                {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
            ]

        before, state = facts(), copy.deepcopy(model.state_dict())

        def check() -> None:
            assert facts() == before
            # Bit for bit, NaN included.
            assert all(v.numpy().tobytes() == state[k].numpy().tobytes() for k, v in model.state_dict().items())

        return check

    return remember


def test_totals_follow_the_closed_forms(net, image):
    compressed, report = compress(net, image, Recipe(decomposition=DECOMPOSITION))
    dense = {
        "stem": conv_cost(16, 3, (3, 3), output_size=(8, 8)),
        "conv": conv_cost(16, 16, (3, 3), output_size=(8, 8)),
        "down": conv_cost(32, 16, (3, 3), output_size=(4, 4)),
    }
    factored = {
        "stem": cpd_cost(16, 3, (3, 3), 2, input_size=(8, 8), output_size=(8, 8)),
        "conv": cpd_cost(16, 16, (3, 3), 2, input_size=(8, 8), output_size=(8, 8)),
        "down": dense["down"],  # break-even rank 1 at stride 2
    }
    batch, head = 2, 32 * 10
    assert {layer.name: layer.macs_before for layer in report.layers} == {
        **{name: batch * cost.macs for name, cost in dense.items()}, "head": batch * head,
    }  # fmt: skip
    assert {layer.name: layer.macs_after for layer in report.layers} == {
        **{name: batch * cost.macs for name, cost in factored.items()}, "head": batch * head,
    }  # fmt: skip
    assert report.macs_before == sum(layer.macs_before for layer in report.layers) == 2 * (27648 + 147456 + 73728 + 320)
    assert report.macs_after == sum(layer.macs_after for layer in report.layers)
    norms = 2 * (16 + 16 + 32)
    assert report.parameters_before == sum(c.parameters for c in dense.values()) + norms + head + 10
    assert report.parameters_after == sum(c.parameters for c in factored.values()) + norms + head + 10
    assert [(layer.name, layer.kind, layer.rank) for layer in report.layers] == [
        ("stem", "CPDBlock", 2), ("conv", "CPDBlock", 2), ("down", "Conv2d", None), ("head", "Linear", None),
    ]  # fmt: skip
    assert [s.name for s in report.skipped] == ["down"] and "break-even rank 1" in report.skipped[0].reason
    assert report.parameters_after == sum(p.numel() for p in compressed.parameters())


def test_decompose_and_prune_together(net, image):
    compressed, report = compress(net, image, BOTH)
    assert [layer.kept for layer in report.layers] == [0.5, 0.5, 0.5, 1.0]
    sizes = {name: (m.in_channels, m.out_channels) for name, m in compressed.named_modules() if hasattr(m, "stride")}
    assert sizes == {"stem": (3, 8), "conv": (8, 8), "down": (8, 16)}
    expected = 2 * (
        cpd_cost(8, 3, (3, 3), 2, input_size=(8, 8), output_size=(8, 8)).macs
        + cpd_cost(8, 8, (3, 3), 2, input_size=(8, 8), output_size=(8, 8)).macs
        + conv_cost(16, 8, (3, 3), output_size=(4, 4)).macs
        + 16 * 10
    )
    assert report.macs_after == expected == sum(layer.macs_after for layer in report.layers)
    by_name = {layer.names[0]: layer for layer in report.decomposition.layers}
    assert {layer.name: layer.nmse for layer in report.layers if layer.nmse is not None} == {
        name: layer.nmse_mean for name, layer in by_name.items()
    }
    assert 0 < by_name["conv"].nmse_mean < by_name["conv"].nmse_worst < 1
    assert compressed(image).shape == (2, 10) and report.pruning.verified and report.seconds > 0


def test_the_structure_rebuilds_the_model_and_the_report_is_plain_json(net, image):
    compressed, report = compress(net, image, BOTH)
    rebuilt = Net().eval()
    apply_structure_(rebuilt, json.loads(json.dumps(report.structure)))
    rebuilt.load_state_dict(compressed.state_dict())
    assert torch.equal(rebuilt(image), compressed(image))
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["macs_after"] == report.macs_after and "structure" not in plain
    assert plain["layers"][1]["rank"] == 2 and plain["decomposition"]["skipped"][0]["name"] == "down"


def test_the_original_stays_bit_for_bit(net, image, unchanged):
    net.train()
    net.norm2.eval()
    net.conv.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones(10, 32)
    check = unchanged(net)
    compressed, _ = compress(net, image, BOTH, calibration=[image])
    check()
    assert compressed.training and compressed.conv.training and not compressed.norm2.training
    assert not compressed.conv.head.requires_grad and compressed.stem.head.requires_grad
    shared = {id(t) for t in net.state_dict(keep_vars=True).values()}
    assert not shared & {id(t) for t in compressed.state_dict(keep_vars=True).values()}


def test_the_original_is_not_even_run(image, unchanged):
    class Counting(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            self.last = tuple(x.shape)
            return super().forward(x)

    net = Counting().eval()
    check = unchanged(net)
    _, report = compress(net, image, BOTH)
    check()
    assert not hasattr(net, "last") and int(net.calls) == 0
    apply_structure_(Counting(), report.structure)


@pytest.mark.parametrize("step", ["measure", "decompose", "prune", "calibrate"])
def test_the_original_stays_when_a_step_fails(net, image, unchanged, step):
    def stop(name: str) -> None:
        if name == step:
            raise RuntimeError(name)

    check = unchanged(net)
    with pytest.raises(RuntimeError, match=step):
        compress(net, image, BOTH, calibration=[image], on_step=stop)
    check()


def test_steps_come_in_the_order_of_the_paper(net, image):
    steps: list[str] = []
    compress(net, image, BOTH, calibration=[image], on_step=steps.append)
    assert steps == ["measure", "decompose", "prune", "calibrate"]
    steps.clear()
    compress(net, image, Recipe(pruning=PRUNING), on_step=steps.append)
    assert steps == ["measure", "prune"]


def test_scope_and_ignored_modules(net, image):
    compressed, report = compress(
        net, image, Recipe(scope=Scope(include=("conv", "norm2")), decomposition=DECOMPOSITION, pruning=PRUNING)
    )
    assert {layer.name for layer in report.layers if layer.rank or layer.kept < 1} == {"conv"}
    assert compressed.conv.out_channels == compressed.down.in_channels == 8
    assert {s.code for s in report.decomposition.skipped} == {"outside-scope"}
    _, report = compress(net, image, Recipe(pruning=PRUNING), ignored=[net.conv])
    assert {layer.name: layer.kept for layer in report.layers} == {"stem": 0.5, "conv": 1.0, "down": 0.5, "head": 1.0}
    assert "conv is ignored" in {s.reason for s in report.skipped}
    with pytest.raises(SurgeryError, match=r"ignored modules \['Conv2d'\] are not part of the model"):
        compress(net, image, BOTH, ignored=[nn.Conv2d(1, 1, 1)])


def test_calibration_sets_the_statistics_of_the_compressed_model(net, image):
    images = torch.randn(8, 3, 8, 8)
    plain, without = compress(net, image, BOTH)
    calibrated, report = compress(net, image, BOTH, calibration=[images[:4], images[4:]])
    assert (without.calibration_images, report.calibration_images) == (0, 8)
    maps = plain.stem(images)
    torch.testing.assert_close(calibrated.norm1.running_mean, maps.mean((0, 2, 3)).detach())
    assert not torch.equal(plain.norm1.running_mean, calibrated.norm1.running_mean)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), calibrated.parameters(), strict=True))
    limited = Recipe(decomposition=DECOMPOSITION, calibration=Calibration(images=4))
    assert compress(net, image, limited, calibration=[images[:4], images[4:]])[1].calibration_images == 4
    off = Recipe(decomposition=DECOMPOSITION, calibration=Calibration(batch_norm=False))
    quiet, report = compress(net, image, off, calibration=[images])
    assert report.calibration_images == 0 and torch.equal(quiet.norm1.running_mean, net.norm1.running_mean)


@pytest.mark.parametrize("shape", ["tuple", "dict", "forward_fn"])
def test_ways_to_give_an_example(net, image, shape):
    expected = compress(net, image, BOTH)[1].macs_after
    example, forward = {
        "tuple": ((image,), None),
        "dict": ({"x": image}, None),
        "forward_fn": ({"inputs": [image]}, lambda model, data: model(data["inputs"][0])),
    }[shape]
    assert compress(net, example, BOTH, forward_fn=forward)[1].macs_after == expected


def test_a_shared_layer_counts_once_in_parameters_and_twice_in_macs(image):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 1)
            self.first = nn.Conv2d(16, 16, 3, padding=1)
            self.second = self.first

        def forward(self, x):
            return self.second(torch.relu(self.first(self.stem(x))))

    compressed, report = compress(Twice().eval(), image, Recipe(decomposition=Decomposition(rank=1, sweeps=5)))
    layers = {layer.name: layer for layer in report.layers}
    assert list(layers) == ["stem", "first"]
    assert layers["first"].macs_before == 2 * 2 * 16 * 16 * 9 * 64
    assert layers["first"].macs_after == 2 * 2 * 16 * (16 + 3 + 3) * 64
    assert report.parameters_after == 16 * 3 + 16 + 16 * (16 + 3 + 3) + 16
    assert compressed.first is compressed.second


def test_products_outside_layers_belong_to_the_module_that_computes_them():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(4, 8, bias=False)

        def forward(self, x):
            y = self.project(x)
            return y @ y.transpose(-1, -2)

    model = nn.Sequential(Product(), nn.ReLU())
    cost = count_cost(model, lambda: model(torch.zeros(2, 5, 4)))
    assert cost.macs == 2 * 5 * 4 * 8 + 2 * 5 * 8 * 5
    assert cost.layer_macs == {"0.project": 320, "0": 400}


def test_a_parameter_as_a_modules_input_is_counted():
    """Class tokens are handed to blocks as they are; gradients' flags come back."""

    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.mix = nn.Linear(4, 6, bias=False)
            self.mix.weight.requires_grad_(False)

        def forward(self):
            return self.mix(self.token)

    model = Token()
    assert count_cost(model, model).macs == 4 * 6
    assert [p.requires_grad for p in model.parameters()] == [True, False]


def test_blocks_are_counted_by_their_factors_in_any_form(image):
    block = nn.Sequential(CPDBlock(3, 8, 3, 1, padding=1, form="dense"))
    cost = count_cost(block, lambda: block(image))
    assert cost.macs == 2 * cpd_cost(8, 3, (3, 3), 1, input_size=(8, 8), output_size=(8, 8)).macs
    assert block[0].form == "dense" and cost.map_sizes["0"] == ((8, 8), (8, 8))


def test_resnet20_at_rank_one_reaches_the_cost_of_the_formula():
    model, x = resnet20().eval(), torch.randn(1, 3, 32, 32)
    _, report = compress(model, x, Recipe(decomposition=Decomposition(rank=1, restarts=1, sweeps=3)))
    blocks, total = 0, 0
    sizes = {"layer1": 32, "layer2": 16, "layer3": 8}
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            out = sizes.get(name.split(".")[0], 32)
            inner = out * conv.stride[0]
            total += cpd_cost(
                conv.out_channels, conv.in_channels, (3, 3), 1, input_size=(inner, inner), output_size=(out, out)
            ).macs
            blocks += 1
    assert blocks == len(report.decomposition.layers) == 19
    assert report.macs_after == total + 64 * 10
    assert report.macs_before == 40_551_040


def test_tensors_that_a_module_computed_and_keeps_are_copied_without_their_history(image):
    """As the older torch.nn.utils.weight_norm does."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        nn.Flatten(),
        nn.Linear(32, 4),
    )
    net[4] = nn.utils.weight_norm(net[4])
    image = image[:, :, :8, :8]
    expected = net.eval()(image)
    kept = net[4].weight
    small, report = compress(net, image, Recipe(pruning=Pruning(keep=0.5)))
    assert report.pruning.groups and small[0].out_channels == 8
    assert net[4].weight is kept and kept.grad_fn is not None
    assert torch.equal(net(image), expected)


class _Remembering(nn.Module):
    """Keeps the shape of the last image, as heads of detectors do; a fresh one has none."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        self.shape = x.shape
        self.side = x.shape[-1]
        return self.last(self.first(x).relu())


def test_what_a_model_keeps_of_its_last_image_is_no_part_of_the_structure():
    used = _Remembering()
    used(torch.randn(4, 3, 32, 32))
    result = compress(used, torch.randn(1, 3, 16, 16), Recipe.from_dict({"pruning": {"keep": 0.5}}))
    assert [entry["names"] for entry in result.report.structure["modules"]] == [["first"], ["last"]]
    fresh = _Remembering()
    apply_structure_(fresh, result.report.structure)
    assert fresh.first.out_channels == 8
