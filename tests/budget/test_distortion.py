"""Errors foretold from singular values against those of the decompositions themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from norton_plugin.budget.distortion import weight_errors
from norton_plugin.recipe import Decomposition, LayerRequest, Scope
from norton_plugin.surgery.factorise import factorise
from norton_plugin.surgery.layouts import highest_layouts
from norton_plugin.surgery.targets import plan_decomposition


def _targets(level, groups=1, kernel=3):
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 32, kernel, groups=groups, bias=False)
    # Weights of trained layers have energies that fall off.
    left, values, right = torch.linalg.svd(conv.weight.data.flatten(1), full_matrices=False)
    fall = torch.linspace(0, 2, len(values)).neg().exp()
    conv.weight.data = (left * (values * fall) @ right).view_as(conv.weight)
    asked = Decomposition(level=level, share=1.0)
    targets, _ = plan_decomposition(nn.Sequential(conv), asked, scope=Scope(), map_sizes={})
    return targets[0]


def _measured(target, layouts):
    jobs = [replace(target, request=LayerRequest(rank=1), layouts=(layout,)) for layout in layouts]
    found, _ = factorise(jobs, Decomposition(rank=1, restarts=1, sweeps=60))
    return np.array([each.layer_nmse for _, each in found])


@pytest.mark.parametrize(("level", "groups", "kernel"), [("spatial", 1, 3), ("spatial", 2, 3), ("layer", 1, 1)])
def test_truncated_svds_are_foretold_exactly(level, groups, kernel):
    target = _targets(level, groups, kernel)
    (highest,) = highest_layouts(target.shape, target.request)
    layouts = [replace(highest, rank=rank) for rank in range(1, highest.rank + 1)]
    assert weight_errors(target, layouts) == pytest.approx(_measured(target, layouts), abs=1e-9)


@pytest.mark.parametrize(("level", "groups"), [("layer", 1), ("filter", 1), ("layer", 2)])
def test_als_is_foretold_to_a_tenth(level, groups):
    target = _targets(level, groups)
    (highest,) = highest_layouts(target.shape, target.request)
    layouts = [replace(highest, rank=max(1, highest.rank * part // 4)) for part in (1, 2, 3, 4)]
    assert weight_errors(target, layouts) == pytest.approx(_measured(target, layouts), abs=0.1)


@pytest.mark.parametrize("level", ["filter", "layer", "spatial"])
def test_a_larger_size_never_loses_more(level):
    target = _targets(level)
    (highest,) = highest_layouts(target.shape, target.request)
    errors = weight_errors(target, [replace(highest, rank=rank) for rank in range(1, highest.rank + 1)])
    assert (np.diff(errors) <= 0).all()
    assert 0 < errors[-1] < errors[0] < 1


def test_a_zero_weight_loses_nothing():
    target = _targets("layer")
    target.module.weight.data.zero_()
    (highest,) = highest_layouts(target.shape, target.request)
    assert weight_errors(target, [highest]).tolist() == [0.0]
