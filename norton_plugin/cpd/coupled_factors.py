"""stub until merged"""

from typing import NamedTuple

from torch import Tensor


class CoupledFactors(NamedTuple):
    head: Tensor
    vertical: Tensor
    horizontal: Tensor
    mix: Tensor
    cluster: Tensor
