import threading
import time

import pytest
import torch
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo import allocation, load_source
from norton_plugin.zoo.allocation import BoundedTensors

TERABYTE = 2**40


def made(build) -> int:
    with BoundedTensors() as bound:
        build()
    return bound._bytes


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: torch.empty(10, 10), 400),
        (lambda: torch.zeros(10, dtype=torch.float64), 80),
        (lambda: nn.Linear(9, 10), 400),  # kaiming_uniform_ fills in place
        (lambda: torch.arange(5), 40),
        (lambda: torch.ones(2, 3).expand(5, 2, 3), 24),  # a view
        (lambda: torch.ones(2, 1) + torch.ones(3), 8 + 12 + 24),
        (lambda: torch.ones(2).repeat(3), 8 + 24),
        (lambda: torch.ones(2, 2).sum().item(), 16 + 4),
        (lambda: nn.BatchNorm2d(4), 4 * 4 * 4),  # the number of batches is one of Python
    ],
)
def test_bytes_are_counted(build, expected):
    assert made(build) == expected


def test_a_model_takes_its_own_size():
    def build():
        models.append(load_source("cifar:resnet20").model)

    models: list[nn.Module] = []
    total = made(build)
    own = sum(t.numel() * t.element_size() for m in models for t in [*m.parameters(), *m.buffers()])
    assert own <= total < 1.1 * own + 4 * 3 * 32 * 32  # the example input


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.empty(TERABYTE),
        lambda: torch.randn(TERABYTE),
        lambda: torch.zeros(1).repeat(TERABYTE),
        lambda: torch.arange(2**23)[:, None] - torch.arange(2**23),
        lambda: torch.cat([torch.zeros(2**20)] * 2**14),
        lambda: nn.Conv2d(10**6, 10**6, 3),
    ],
)
def test_what_is_too_large_is_never_made(build):
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"over 8 GiB.*--trust-code"), BoundedTensors():
        build()
    assert time.monotonic() - began < 5


def test_the_sum_counts():
    with pytest.raises(SourceError, match="over 1.86265e-05 GiB"), BoundedTensors(most=20_000):
        [torch.zeros(1000) for _ in range(6)]
    with BoundedTensors(most=20_000):
        [torch.zeros(1000) for _ in range(5)]


def test_operations_are_counted(monkeypatch):
    monkeypatch.setattr(allocation, "_MOST_OPERATIONS", 10)
    with pytest.raises(SourceError, match="or 10 operations"), BoundedTensors():
        nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))


def test_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="negative"), BoundedTensors():
        torch.empty(-1)


def test_other_threads_are_free():
    sizes = []
    with BoundedTensors(most=10):
        thread = threading.Thread(target=lambda: sizes.append(torch.zeros(100).numel()))
        thread.start()
        thread.join()
    assert sizes == [100]


def test_numbers_are_the_same():
    torch.manual_seed(0)
    plain = nn.Linear(3, 3).weight
    torch.manual_seed(0)
    with BoundedTensors():
        bounded = nn.Linear(3, 3).weight
    assert torch.equal(plain, bounded)
