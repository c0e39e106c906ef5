"""An artefact whose report holds everything that a page shows."""

import pytest
import torch
from networks import Residual, settle

from norton_plugin import Recipe, compress


@pytest.fixture(scope="session")
def compressed():
    torch.manual_seed(0)
    recipe = Recipe.from_dict({"decomposition": {"rank": 2, "ranks": {"layers.1.conv2": 3}}, "pruning": {"keep": 0.5}})
    return compress(settle(Residual()), torch.randn(1, 3, 16, 16), recipe)


@pytest.fixture
def artefact(compressed, tmp_path):
    extra = {"weights": "random", "finetune": {"top1": 91.25, "epochs": 3}}
    return compressed.save(tmp_path / "small", source={"kind": "python", "name": "a.b:c", "kwargs": {}}, extra=extra)
