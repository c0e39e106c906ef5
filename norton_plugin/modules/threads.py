"""PyTorch's threads on the CPU, for as long as they are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set torch's CPU threads, and put them back."""
    import torch  # the command line imports this before it knows whether torch is needed

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
