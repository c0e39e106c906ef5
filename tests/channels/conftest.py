"""Prunes every free group of a model and compares it with the masked one."""

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.modules.running import output_tensors, relative_error


@pytest.fixture
def halve():
    """Removes every second channel of every free group: {root: (before, after)}, {blocked root: code}, error."""

    def run(model: nn.Module, x: Tensor) -> tuple[dict[str, tuple[int, int]], dict[str, str], float]:
        model.eval()
        graph = ChannelGraph(model, x)
        selection = []
        for group in graph.groups():
            if group.blocked is None:
                part = group.size // group.channel_groups
                gone = [p * part + i for p in range(group.channel_groups) for i in range(1, part, 2)]
                selection.append((group.root, gone))
        with torch.no_grad():
            dense = output_tensors(model(x))
        with graph.masked(selection):
            expected = output_tensors(model(x))
        sizes = {root: graph.width(root) for root, _ in selection}
        for root, gone in selection:
            graph.prune(root, gone)
        with torch.no_grad():
            actual = output_tensors(model(x))
        assert not selection or relative_error(expected, dense) > 1e-3
        blocked = {group.root: group.blocked.code for group in graph.groups() if group.blocked}
        pruned = {root: (size, graph.width(root)) for root, size in sizes.items()}
        return pruned, blocked, relative_error(actual, expected)

    return run
