"""What standard layers say of their sizes is what their tensors are, after every cut."""

import pytest
import torch
from torch import nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.channels.consistency import disagreements, require_agreement
from norton_plugin.errors import SurgeryError
from norton_plugin.recipe import Pruning, Scope
from norton_plugin.surgery.prune import prune_


class OwnWeight(nn.Conv2d):
    """Reads its own number of filters, twice that of its inputs, while it computes."""

    def forward(self, x):
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = (weight - weight.mean(2, keepdim=True)).reshape_as(self.weight)
        return nn.functional.conv2d(x, weight, self.bias, padding=1)


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), OwnWeight(16, 32, 3, padding=1), nn.Conv2d(32, 8, 1)).eval()


def test_a_size_is_looked_up_among_the_attributes_of_the_trace():
    """Half of what the filters were is the number of inputs, which is none of this group's business."""
    model = chain()
    prune_(model, torch.randn(1, 3, 8, 8), Pruning(keep=0.75, round_to=1), scope=Scope(exclude=("0",)))
    assert (model[1].in_channels, model[1].out_channels) == (16, 24)
    assert disagreements(model) == set()


LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3), {"in_channels": 5, "out_channels": 7, "kernel_size": (3, 1)}),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), {"in_channels": 5, "out_channels": 7, "groups": 4}),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), {"in_channels": 5, "out_channels": 7, "groups": 1}),
    "linear": (nn.Linear(4, 6), {"in_features": 5, "out_features": 7}),
    "batch": (nn.BatchNorm2d(4), {"num_features": 5}),
    "group": (nn.GroupNorm(2, 4), {"num_channels": 6, "num_groups": 3}),
    "layer": (nn.LayerNorm(4), {"normalized_shape": (5,)}),
    "attention": (nn.MultiheadAttention(8, 2), {"embed_dim": 6, "head_dim": 3, "kdim": 6, "vdim": 6}),
    "apart": (nn.MultiheadAttention(8, 2, kdim=5, vdim=3), {"embed_dim": 6, "kdim": 6, "vdim": 6}),
    "lstm": (nn.LSTM(4, 3), {"input_size": 5}),
    "cell": (nn.GRUCell(4, 3), {"input_size": 5}),
    "embedding": (nn.Embedding(4, 3), {"num_embeddings": 5, "embedding_dim": 4}),
    "prelu": (nn.PReLU(3), {"num_parameters": 1}),
}


@pytest.mark.parametrize(("layer", "attribute"), [(name, key) for name, (_, wrong) in LAYERS.items() for key in wrong])
def test_every_attribute_of_standard_layers_is_compared(layer, attribute):
    module, wrong = LAYERS[layer]
    model = nn.Sequential(module)
    assert disagreements(model) == set()
    right = getattr(module, attribute)
    try:
        setattr(module, attribute, wrong[attribute])
        assert disagreements(model)
        with pytest.raises(SurgeryError, match=r"does not agree with the tensors: 0\."):
            require_agreement(model, set())
        require_agreement(model, disagreements(model))  # it was so before
    finally:
        setattr(module, attribute, right)


@pytest.mark.parametrize("verify", [True, False])
def test_a_cut_that_leaves_a_wrong_attribute_is_undone(monkeypatch, verify):
    """The check runs after every cut, whether the outputs are compared or not."""
    own = ChannelGraph.prune

    def careless(self, root, indices):
        own(self, root, indices)
        if root == "0":
            self.model[0].out_channels = 99

    monkeypatch.setattr(ChannelGraph, "prune", careless)
    model = chain()
    if not verify:
        with pytest.raises(SurgeryError, match=r"0\.out_channels .*is 99, its tensors say 12"):
            prune_(model, torch.randn(1, 3, 8, 8), Pruning(keep=0.75, round_to=1), verify=verify)
        assert model[0].out_channels == 16
        return
    report = prune_(model, torch.randn(1, 3, 8, 8), Pruning(keep=0.75, round_to=1), verify=verify)
    assert [group.root for group in report.groups] == ["1"] and model[0].out_channels == 16
    assert any("is 99, its tensors say 12" in entry.reason for entry in report.skipped if entry.name == "0")
