"""Norms folded where the dataflow of a run proves it, in any model."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks import FORMS, CPDBlock, CPDLinear
from norton_plugin.deploy import fold_, folding, lower_
from norton_plugin.errors import SurgeryError


def norm(kind: type[nn.Module], channels: int, **options) -> nn.Module:
    """A norm that changes what it gets."""
    layer = kind(channels, **options)
    generator = torch.Generator().manual_seed(channels)
    layer.running_mean.copy_(torch.randn(channels, generator=generator))
    layer.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
    if layer.weight is not None:
        layer.weight.data.copy_(torch.randn(channels, generator=generator))
        layer.bias.data.copy_(torch.randn(channels, generator=generator))
    return layer


class Frozen(nn.Module):
    """As torchvision's ``FrozenBatchNorm2d``: arithmetic of its own, tensors in buffers."""

    def __init__(self, channels):
        super().__init__()
        plain = norm(nn.BatchNorm2d, channels)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(plain, name).detach())
        self.eps = 1e-5

    def forward(self, x):
        gain = self.weight * (self.running_var + self.eps).rsqrt()
        return x * gain[:, None, None] + (self.bias - self.running_mean * gain)[:, None, None]


Frozen.__name__ = "FrozenBatchNorm2d"


class WithActivation(nn.BatchNorm2d):
    """As timm's ``BatchNormAct2d``."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(super().forward(x))


@pytest.mark.parametrize(
    ("layer", "after", "shape"),
    [
        (nn.Conv2d(3, 5, 3), norm(nn.BatchNorm2d, 5), (2, 3, 8, 8)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), norm(nn.BatchNorm2d, 6, affine=False), (2, 4, 8, 8)),
        (nn.Conv1d(3, 5, 3), norm(nn.BatchNorm1d, 5), (2, 3, 8)),
        (nn.Conv3d(3, 5, 3), norm(nn.BatchNorm3d, 5), (2, 3, 4, 4, 4)),
        (nn.ConvTranspose2d(3, 5, 3, stride=2), norm(nn.BatchNorm2d, 5), (2, 3, 8, 8)),
        (nn.Linear(3, 5), norm(nn.BatchNorm1d, 5), (2, 3)),
        (nn.Conv2d(3, 5, 3), Frozen(5), (2, 3, 8, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_and_norms(layer, after, shape):
    net, x = nn.Sequential(layer, after, nn.ReLU()).double().eval(), torch.randn(shape, dtype=torch.float64)
    expected, weight = net(x), layer.weight.detach().clone()
    report = fold_(net, x)
    assert report.folded == ("1",) and report.left == () and isinstance(net[1], nn.Identity)
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.weight, weight) and type(net[0]) is type(layer)  # the given layer is not written into


def test_what_else_a_norm_holds_stays():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), norm(WithActivation, 5)).eval()
    x = torch.randn(1, 3, 8, 8)
    expected = net(x)
    assert fold_(net, x).folded == ("1",) and [type(m) for m in net[1]] == [nn.ReLU]
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
    assert float(expected.min()) == 0.0


@pytest.mark.parametrize("clusters", [None, 1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_last_convolution_of_a_lowered_block(form, clusters):
    torch.manual_seed(0)
    block = CPDBlock(4, 9, 3, 3, clusters=clusters, padding=1, form=form, bias=False)
    if clusters == 3:
        block.slot = torch.randperm(9)
    net = nn.Sequential(block, norm(nn.BatchNorm2d, 9)).double().eval()
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    expected = net(x)
    lower_(net)
    assert fold_(net, x).folded == ("1",)
    torch.testing.assert_close(net(x), expected, rtol=1e-11, atol=1e-11)


def test_a_lowered_linear_layer():
    net = nn.Sequential(CPDLinear(6, 9, 2), norm(nn.BatchNorm1d, 9)).double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = net(x)
    lower_(net)
    assert fold_(net, x).folded == ("1",)
    torch.testing.assert_close(net(x), expected, rtol=1e-11, atol=1e-11)


class Net(nn.Module):
    """A convolution, a norm, and how they are used."""

    def __init__(self, use):
        super().__init__()
        self.norm, self.conv = norm(nn.BatchNorm2d, 3), nn.Conv2d(3, 3, 3, padding=1)  # in no helpful order
        self.other, self.use, self.kept = nn.Conv2d(3, 3, 1), use, None

    def forward(self, x):
        return self.use(self, x)


def keep(net: Net, x: Tensor) -> Tensor:
    net.kept = net.conv(x)
    return net.norm(net.kept)


NOT_FOLDED = {
    "read twice": (lambda net, x: net.norm(y := net.conv(x)) + y, "something else reads the output of conv"),
    "returned": (lambda net, x: (y := net.conv(x), net.norm(y)), "something else reads the output of conv"),
    "kept": (keep, "something else reads the output of conv"),
    "before the layer": (lambda net, x: net.conv(net.norm(x)), "its input is not the output of one"),
    "after a function": (lambda net, x: net.norm(F.relu(net.conv(x))), "its input is not the output of one"),
    "two layers": (lambda net, x: net.norm(net.conv(x)) + net.norm(net.other(x)), "its input is not the output of one"),
    "once without": (lambda net, x: net.norm(net.conv(x)) + net.conv(x + 1), "something else reads the output"),
    "shared weight": (
        lambda net, x: net.norm(net.conv(x)) + F.conv2d(x, net.conv.weight, padding=1),
        "something else reads the weight of conv",
    ),
    "not reached": (lambda net, x: net.conv(x), "the example does not reach it"),
}


@pytest.mark.parametrize("case", NOT_FOLDED)
def test_what_is_left_and_why(case):
    use, reason = NOT_FOLDED[case]
    net, x = Net(use).eval(), torch.randn(1, 3, 6, 6)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    report = fold_(net, x)
    assert report.folded == () and [name for name, _ in report.left] == ["norm"]
    assert report.left[0][1].startswith(reason)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items()) and len(state) == 9
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_layer_called_often_is_folded_where_its_norm_always_follows():
    net = Net(lambda net, x: net.norm(net.conv(x)) + net.norm(net.conv(x[..., ::2, ::2])).mean()).eval()
    x = torch.randn(1, 3, 6, 6)
    expected = net(x)
    assert fold_(net, x).folded == ("norm",)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_a_norm_without_statistics_is_left():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False)).eval()
    assert fold_(net, torch.randn(1, 3, 8, 8)).left == (("1", "it has no running statistics"),)


def test_a_layer_that_makes_its_weight_in_every_call_is_left():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight / self.weight.norm(), self.bias)

    net = nn.Sequential(Standardised(3, 5, 3), norm(nn.BatchNorm2d, 5)).eval()
    [(name, reason)] = fold_(net, torch.randn(1, 3, 8, 8)).left
    assert name == "1" and reason.startswith("folded, its outputs would differ by")
    weighted = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 3)), norm(nn.BatchNorm2d, 5)).eval()
    [(_, reason)] = fold_(weighted, torch.randn(1, 3, 8, 8)).left
    assert reason == "the weight of the layer before it is computed in every call"


def test_all_comes_back_where_the_outputs_of_the_model_would_differ(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 5, 3), norm(nn.BatchNorm2d, 5)).eval()
    conv, after, x = net[0], net[1], torch.randn(1, 3, 8, 8)
    monkeypatch.setattr(folding, "_errors", lambda model, example, forward_fn, new: dict.fromkeys(new, 0.0))
    right = folding.folded
    monkeypatch.setattr(folding, "folded", lambda layer, *rest: nn.Sequential(right(layer, *rest), nn.Tanh())[0:2])
    [(name, reason)] = fold_(net, x).left
    assert name == "1" and reason.startswith("folded, the model's outputs would differ by")
    assert net[0] is conv and net[1] is after


def test_a_model_that_reads_its_norms_gets_them_back():
    net = Net(lambda net, x: net.norm(net.conv(x)) * net.norm.weight[0]).eval()
    [(name, reason)] = fold_(net, torch.randn(1, 3, 6, 6)).left
    assert name == "norm" and reason.startswith("without its norms the model does not run (AttributeError")
    assert isinstance(net.norm, nn.BatchNorm2d)


@pytest.mark.parametrize("read", [[1], [0, 4], [0, 1, 2, 3, 4]])
def test_norms_that_the_model_reads_do_not_cost_the_others(read):
    def run(net, x):
        x = net.layers(x)
        return x * sum(net.layers[2 * i + 1].bias.mean() for i in read)

    net = Net(run)
    net.layers = nn.Sequential(*[m for _ in range(5) for m in (nn.Conv2d(3, 3, 3, padding=1), norm(nn.BatchNorm2d, 3))])
    net.conv = net.norm = None
    net.eval()
    x = torch.randn(1, 3, 6, 6)
    before = net(x)
    report = fold_(net, x)
    assert {name for name, _ in report.left} == {f"layers.{2 * i + 1}" for i in read}
    assert len(report.folded) == 5 - len(read)
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)


def test_a_wrong_example_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), norm(nn.BatchNorm2d, 5))
    with pytest.raises(SurgeryError, match="does not run on the example inputs"):
        fold_(net, torch.zeros(1, 4, 8, 8))
    assert isinstance(net[1], nn.BatchNorm2d)


def test_operations_of_scripts_are_seen():
    @torch.jit.script
    def doubled(x: Tensor) -> Tensor:
        return x + x

    net = Net(lambda net, x: net.norm(y := net.conv(x)) + doubled(y)).eval()
    assert fold_(net, torch.randn(1, 3, 6, 6)).folded == ()
