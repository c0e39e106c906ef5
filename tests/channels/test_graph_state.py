"""What a graph does to a model beside its widths: flags and gradients stay, bad requests change nothing."""

import copy
import json
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.snapshot import Snapshot


def test_the_room_stands_alone_and_a_block_is_known_once_it_is_imported():
    code = """
import json, sys
import norton_plugin.channels
from norton_plugin.channels.layers import layer_type
rooms = sorted({name.split(".")[1] for name in sys.modules if name.startswith("norton_plugin.")})
from norton_plugin.blocks.cpd_block import CPDBlock
print(json.dumps([rooms, layer_type(CPDBlock(2, 2, 3, 1)).produces]))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == [["channels", "errors", "modules", "reasons"], True]


def test_flags_gradients_and_rollback(residual, image):
    conv = residual.layers[0].conv1
    conv.weight.requires_grad_(False)
    residual(image).sum().backward()
    grad = residual.layers[0].norm1.weight.grad.clone()
    graph = ChannelGraph(residual, image)
    before, expected = dict(residual.named_parameters()), residual(image)
    snapshot = Snapshot(residual.modules(), graph.bookkeeping())
    graph.prune("layers.0.conv1", [0, 2])
    assert conv.weight.shape[0] == 14 and not conv.weight.requires_grad
    norm = residual.layers[0].norm1
    assert torch.equal(norm.weight.grad, grad[[1, *range(3, 16)]]) and norm.num_features == 14
    graph.prune("layers.0.conv1", [5])
    assert conv.out_channels == 13 and torch.equal(norm.weight.grad, grad[[1, 3, 4, *range(6, 16)]])
    snapshot.restore_()
    assert torch.equal(residual(image), expected) and graph.width("layers.0.conv1") == 16
    assert all(p is before[name] for name, p in residual.named_parameters())


def test_bad_requests_change_nothing(residual, group_normed, image):
    graph = ChannelGraph(residual, image)
    text = copy.deepcopy(residual.state_dict())
    with pytest.raises(SurgeryError, match="stem has 16 channels; asked to remove 1 of them, from 16 to 16"):
        graph.prune("stem", [16])
    with pytest.raises(SurgeryError, match="would lose all 16"):
        graph.prune("stem", range(16))
    with pytest.raises(SurgeryError, match="no channel group 'nowhere'"):
        graph.prune("nowhere", [1])
    assert all(torch.equal(v, text[k]) for k, v in residual.state_dict().items())
    parts = ChannelGraph(group_normed, image)
    with pytest.raises(SurgeryError, match="4 equal parts"):
        parts.prune("stem", [0, 1])


def test_the_trace_leaves_no_trace(residual, image):
    residual.layers[0].train()
    residual.requires_grad_(False)
    decomposed = nn.Sequential(residual, nn.Identity())
    hooks = len(nn.modules.module._global_forward_hooks)
    ChannelGraph(decomposed, image)
    assert residual.layers[0].conv1.training and not residual.layers[1].training
    assert not any(p.requires_grad for p in residual.parameters())
    assert len(nn.modules.module._global_forward_hooks) == hooks


def test_time_limit_and_wrong_examples(residual, image):
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.05)
            return x + 1

    with pytest.raises(SurgeryError, match="within the time"):
        ChannelGraph(nn.Sequential(residual, Slow()), image, time_limit=0.0)
    with pytest.raises(SurgeryError, match="cannot be traced"):
        ChannelGraph(residual, torch.zeros(1, 5, 8, 8))
