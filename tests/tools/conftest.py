"""Tools are scripts, not a package: tests load them by their path."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="session")
def load_tool() -> Callable[[str], ModuleType]:
    """Load a script of the folder ``tools``, beside which it finds its sister files, as a module of its own."""

    def load(name: str) -> ModuleType:
        path = TOOLS / name
        spec = importlib.util.spec_from_file_location(f"{path.stem}_tool", path)
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path, str(path.parent)])
            spec.loader.exec_module(module)
        return module

    return load
