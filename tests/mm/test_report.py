"""The hook's table has the words of the command's: level, rank, components."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[timm]'")

import torch
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.mm.run.report import layer_lines, log_surgery, summary_table

pytestmark = pytest.mark.mm


def test_a_row_for_each_level():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3) for _ in range(3)))
    layers = {"1": {"level": "cluster", "clusters": 4}, "2": {"level": "filter", "rank": 1}}
    recipe = Recipe.from_dict({"decomposition": {"level": "layer", "components": 24, "layers": layers}})
    _, report = compress(model, torch.randn(1, 16, 12, 12), recipe)
    heading, *rows = (line.split() for line in summary_table(report, traced="all")[1:5])
    assert heading == ["layer", "level", "rank", "components", "NMSE", "kept", "MMACs", "after"]
    assert [row[1:-6] for row in rows] == [["layer"], ["cluster", "(4)"], ["filter"]]
    assert [row[-6:-4] for row in rows] == [["-", "24"], ["-", "24"], ["1", "-"]]
    assert "level cluster (4), 24 components, NMSE 0." in layer_lines(report)[1]


def test_what_a_report_warns_of_is_in_the_log(tmp_path):
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3) for _ in range(2)))
    model[1].weight = model[0].weight
    report = compress(model, torch.randn(1, 16, 12, 12), Recipe.from_dict({"decomposition": {"rank": 1}})).report
    logger = Mock()
    log_surgery(SimpleNamespace(rank=0, logger=logger, work_dir=str(tmp_path)), report, traced="all")
    logger.warning.assert_called_once_with("NORTON: %s", report.warnings[0])
