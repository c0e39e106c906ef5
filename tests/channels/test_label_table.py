"""Components, pins and widths: the arithmetic under the trace."""

from fractions import Fraction

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from norton_plugin.channels.label_table import LabelTable, connected
from norton_plugin.channels.widths import Scale, Width
from norton_plugin.reasons import Reason


def test_components_are_those_of_scipy():
    generator = torch.Generator().manual_seed(0)
    for edges in (0, 5, 60, 100, 400):
        a, b = torch.randint(0, 120, (2, edges), generator=generator)
        roots = connected(120, a, b)
        graph = coo_matrix((np.ones(edges), (a.numpy(), b.numpy())), shape=(120, 120))
        count, labels = connected_components(graph, directed=False)
        smallest = [int(np.flatnonzero(labels == label)[0]) for label in labels]
        assert roots.tolist() == smallest and len(set(roots.tolist())) == count


def test_a_long_chain_is_one_component():
    nodes = torch.randperm(5000, generator=torch.Generator().manual_seed(1))
    assert connected(5000, nodes[:-1], nodes[1:]).unique().tolist() == [0]


def test_label_zero_joins_and_pins_nothing():
    table = LabelTable()
    assert table.allocate(4) == 1 and table.allocate(2) == 5
    table.unite(torch.tensor([0, 1, 2]), torch.tensor([3, 0, 5]))
    first, second = (Reason.NO_RULE.because(operation=name) for name in ("first", "second"))
    table.pin(torch.tensor([0, 5]), first)
    table.pin(torch.tensor([2, 4]), second)
    classes = table.resolve()
    assert classes.class_of.tolist() == [0, 1, 2, 3, 4, 2, 6]
    assert classes.reasons == (first, second)
    assert classes.pinned.tolist() == [0, 0, 1, 0, 2, 1, 0]


def test_widths_remember_their_channels():
    used = []
    width = Width.of(12, torch.arange(1, 13), used.append)
    assert width // 3 == 4 and (width // 3).ratio == Fraction(1, 3)
    assert (2 * width + 1).ratio == 2 and (2 * width + 1).offset == 1
    assert not isinstance(width // 5, Width) and not isinstance(width * 0.5, Width)
    scale = (width // 3) ** -0.5
    assert isinstance(scale, Scale) and scale == 0.5 and scale.exponent == -0.5
    assert used == [] and float(width) == 12.0 and len(used) == 1
