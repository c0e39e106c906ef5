"""How detectors of mmdet are traced: every part that can be, cut where tracing would fail or explode.

Two-stage detectors are cut at RoI pooling. Traced end to end, the flattened RoI features (256 x 7 x 7 channels on
five pyramid levels) take over 20 GiB in the dependency graph. Instead one pass yields the pyramid and the RPN's
outputs, and the RoI heads run on constant features: the pyramid's channels are outputs, hence keep their width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.detectors.two_stage import TwoStageDetector
from torch import Tensor, nn

from ..errors import SourceError, first_line

logger = logging.getLogger(__name__)
Forward = Callable[[nn.Module, Any], Any]
