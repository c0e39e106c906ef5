"""What all tests share: markers that skip where a machine lacks something, and the folder of real data."""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from networks import Dense, Residual, settle

from norton_plugin.channels.records import Call
from norton_plugin.channels.tracer import Tracer

ROOT = Path(__file__).resolve().parents[1]


def _missing_for(marker: str) -> str | None:
    if marker == "gpu" and not torch.cuda.is_available():
        return "needs a CUDA device; torch.cuda.is_available() is False"
    if marker == "mm":
        absent = [name for name in ("mmengine", "mmcv", "mmdet") if find_spec(name) is None]
        if absent:
            return f"needs {', '.join(absent)}: pip install 'norton-plugin[mmdet]'"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """One thread: the tests' tensors are small, and on a busy machine threads wait for each other (40 times slower)."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    reasons = {marker: _missing_for(marker) for marker in ("mm", "gpu")}
    for item in items:
        for marker, reason in reasons.items():
            if reason is not None and item.get_closest_marker(marker) is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Top folder of the working tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (``cifar10_jpeg/``, ``weights/``, ``bccd/``); ``NORTON_DATA`` names another one."""
    folder = Path(os.environ.get("NORTON_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set NORTON_DATA to one")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _failing_rules_fail_tests() -> Iterator[Callable[..., None]]:
    """Make a rule of the trace that raises end the test: users only lose channels by it, and hear of it in the log."""

    def fail(tracer: Tracer, call: Call, error: Exception) -> None:
        # An outcome of pytest is no Exception, so that nothing between here and the test catches it.
        pytest.fail(f"the rule for {call.name} failed ({type(error).__name__}: {error})")

    with pytest.MonkeyPatch.context() as patch:
        tolerant = Tracer.rule_failed
        patch.setattr(Tracer, "rule_failed", fail)
        yield tolerant


@pytest.fixture
def failing_rules_tolerated(_failing_rules_fail_tests: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rules fail in this test as they do at a user's."""
    monkeypatch.setattr(Tracer, "rule_failed", _failing_rules_fail_tests)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    """Give every test the same random numbers, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _same_words_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long because the machine is busy adds no line: only the clock decides when one is told."""
    monkeypatch.setattr("norton_plugin.pipeline.step_log.SECONDS", 1e6)


@pytest.fixture
def residual() -> nn.Module:
    torch.manual_seed(0)
    return settle(Residual())


@pytest.fixture
def group_normed() -> nn.Module:
    torch.manual_seed(0)
    return settle(Residual(norm=lambda width: nn.GroupNorm(4, width)))


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return settle(Dense())


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
