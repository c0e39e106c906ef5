"""What every test of runs needs."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _clean_process() -> Iterator[None]:
    """Put back what a run of mmengine changes of the process."""
    pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")
    from norton_plugin.mm.runner.quiet import preserved_process

    with preserved_process():
        yield
