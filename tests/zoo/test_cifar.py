import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from norton_plugin.errors import SourceError
from norton_plugin.zoo import list_models, load_source
from norton_plugin.zoo.cifar import PadShortcut

# The paper's tables give 0.27, 0.85, 14.98 (without BN) and 1.04 M parameters (likewise),
# and 40.55, 125.49, 313.73 (BN and ReLU counted as well) and 282.92 M MACs.
COSTS = {
    "resnet20": (269_722, 40_551_040),
    "resnet56": (853_018, 125_485_696),
    "vgg16_bn": (14_991_946, 313_463_808),
    "densenet40": (1_059_298, 282_917_328),
}


def test_the_four_networks_of_the_paper():
    assert list_models("cifar") == list(COSTS)


@pytest.mark.parametrize("name", COSTS)
def test_parameters_and_macs(name):
    source = load_source(f"cifar:{name}")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = source.model(*source.example_inputs)
    parameters = sum(p.numel() for p in source.model.parameters())
    assert (parameters, counter.get_total_flops() // 2) == COSTS[name]
    assert logits.shape == (1, 10)


def test_vgg_without_its_norms_has_the_parameters_of_the_paper():
    model = load_source("cifar:vgg16_bn").model
    norms = sum(
        p.numel()
        for n in model.modules()
        if isinstance(n, torch.nn.modules.batchnorm._BatchNorm)
        for p in n.parameters()
    )
    assert sum(p.numel() for p in model.parameters()) - norms == 14_982_474


def test_vgg_has_13_convs_with_bias():
    convs = [m for m in load_source("cifar:vgg16_bn").model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convs] == [64, 64, 128, 128, 256, 256, 256] + [512] * 6
    assert all(c.bias is not None for c in convs)


def test_densenet_widths():
    model = load_source("cifar:densenet40").model
    assert [model.features.transition1.conv.in_channels, model.features.transition2.conv.in_channels] == [168, 312]
    assert model.classifier.in_features == 456


def test_pad_shortcut_by_hand():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y = PadShortcut(1)(x)
    assert y[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert y.shape == (1, 3, 2, 2)
    assert y[0, 0].abs().sum() == y[0, 2].abs().sum() == 0


def test_number_of_classes():
    assert load_source("cifar:densenet40", num_classes=100).model.classifier.out_features == 100


def test_none_are_pretrained():
    with pytest.raises(SourceError, match="--checkpoint"):
        load_source("cifar:resnet20", pretrained=True)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_published_weights_fit(name, shared_data):
    file = shared_data / "weights" / f"cifar10_{name}.safetensors"
    model = load_source(f"cifar:{name}", checkpoint=file).model
    assert model.linear.weight.std() > 0.2  # a fresh linear layer of 64 inputs has 0.07


@pytest.mark.parametrize("name", COSTS)
def test_torch_pruning_traces_it(name):
    tp = pytest.importorskip("torch_pruning")
    source = load_source(f"cifar:{name}")
    graph = tp.DependencyGraph().build_dependency(source.model, source.example_inputs)
    convs = [m for m in source.model.modules() if isinstance(m, torch.nn.Conv2d)]
    inner = convs[1]  # in each of the four a conv without a shortcut around it
    before = inner.out_channels
    graph.get_pruning_group(inner, tp.prune_conv_out_channels, [0, 1]).prune()
    assert inner.out_channels == before - 2
    assert source.model(*source.example_inputs).shape == (1, 10)
