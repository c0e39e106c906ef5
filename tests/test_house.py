"""House rules a reader relies on: a light import, one direction of arrows, public names, a whole wheel."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

import norton_plugin

PACKAGE = Path(norton_plugin.__file__).parent
HEAVY = ("ultralytics", "transformers", "timm", "mmengine", "mmcv", "mmdet", "torch_pruning", "torchvision.models")

# Room -> rooms it may import while running, besides `errors`, itself and what those rooms may import in turn.
# Order matters: arrows point up.
ARROWS: dict[str, set[str]] = {
    "reasons": set(),
    "errors": set(),
    "environment": set(),
    "patterns": set(),
    "recipe": {"patterns"},
    "cpd": set(),
    "pabs": set(),
    "modules": set(),
    "channels": {"modules", "reasons"},
    "blocks": {"cpd", "channels"},
    "cost": {"patterns", "cpd", "blocks"},
    "surgery": {"recipe", "pabs", "channels", "blocks"},
    "integrations": {"surgery"},
    "hf": {"surgery"},
    "calibration": {"cpd", "blocks", "surgery"},
    "distillation": {"blocks", "calibration", "modules"},
    "zoo": set(),
    "artifact": {"surgery", "zoo", "hf"},
    "deploy": {"blocks", "artifact", "cost"},
    "latency": {"surgery", "deploy"},
    "budget": {"cost", "calibration", "latency"},
    "pipeline": {
        "surgery",
        "integrations",
        "hf",
        "calibration",
        "cost",
        "budget",
        "distillation",
        "latency",
        "artifact",
    },
    "export": {"deploy"},
    "insight": {"pipeline", "artifact", "deploy"},
    "pictures": {"artifact", "deploy"},
    "bench": {"cost", "export", "insight", "modules"},
    "yolo": {"pipeline"},
    "mm": {"pipeline", "artifact", "blocks", "distillation", "insight", "zoo"},
    "demo": {"pipeline", "artifact", "deploy", "insight", "zoo", "mm"},
}
# Package of others -> the rooms that may import it. mmengine reads the configs that name mmdet's models; where no room
# is named, the package is one of the `dev` extra, which users do not have.
OWNERS = {
    "torch_pruning": ("integrations",),
    "timm": ("zoo",),
    "torchvision": ("zoo", "pictures"),
    "mmdet": ("zoo",),
    "mmengine": ("mm", "zoo"),
    "ultralytics": ("yolo",),
    "transformers": ("hf",),
    "tensorly": (),
    "scipy": ("pabs", "budget"),
    "onnx": ("export",),
    "onnxruntime": ("export",),
    "openvino": ("export",),
    "nncf": ("export",),
}


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``, which names types and imports nothing."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from _runtime_nodes(other)
            continue
        yield node
        yield from _runtime_nodes(node)


def _imports(source: str, module: str, *, is_package: bool) -> set[str]:
    """Absolute dotted names that ``source`` imports, wherever the statement stands (functions included)."""
    found: set[str] = set()
    for node in _runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def _allowed(room: str) -> set[str]:
    """What ``room`` may import, rooms further up included."""
    direct = ARROWS.get(room, set())
    return {room, "errors", *direct}.union(*(_allowed(other) for other in direct))


def _violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Imports of ``module`` that go against the table, as readable lines."""
    room = (module.split(".") + ["__init__"])[1]
    wrong = []
    for name in sorted(_imports(source, module, is_package=is_package)):
        top, *rest = name.split(".")
        if top in OWNERS and room not in OWNERS[top]:
            owners = f"only {' and '.join(OWNERS[top])} imports" if OWNERS[top] else "no room may import"
            wrong.append(f"{module} imports {name}: {owners} {top}")
        if top == "norton_plugin" and room not in ("cli", "__init__", "__main__") and rest:
            target = rest[0]
            if target.startswith("__"):  # __version__ and its like belong to the package, not to a room
                continue
            if target not in _allowed(room):
                wrong.append(f"{module} imports {name}: {room} may not import {target}")
    return wrong


def _modules() -> list[tuple[str, Path]]:
    files = sorted(path for path in PACKAGE.rglob("*.py") if ".mim" not in path.parts)
    names = (".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files)
    return [(name.removesuffix(".__init__"), path) for name, path in zip(names, files, strict=True)]


def test_import_is_light() -> None:
    code = f"import sys, json, norton_plugin; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []
    assert answer.stderr == ""


def test_every_room_has_a_row() -> None:
    rooms = {name.split(".")[1] for name, _ in _modules() if "." in name} - {"cli", "__main__"}
    assert "errors" in rooms
    assert rooms - set(ARROWS) == set(), "add the new room to ARROWS, with what it may import"


def test_the_page_shows_these_arrows(repository: Path) -> None:
    page = (repository / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", page, re.MULTILINE)
    shown = {room: set(arrows.split(", ")) - {"-"} for room, _, arrows in rows}
    assert shown == ARROWS
    assert list(shown) == list(ARROWS)


def test_arrows_point_up_only() -> None:
    order = list(ARROWS)
    for room, targets in ARROWS.items():
        assert all(order.index(target) < order.index(room) for target in targets)


@pytest.mark.parametrize(("name", "path"), [pytest.param(*pair, id=pair[0]) for pair in _modules()])
def test_imports_follow_the_arrows(name: str, path: Path) -> None:
    assert _violations(path.read_text(), name, is_package=path.stem == "__init__") == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("norton_plugin.cpd.als", "from ..pabs import order", "cpd may not import pabs"),
        ("norton_plugin.cpd.als", "import norton_plugin.blocks.block", "cpd may not import blocks"),
        ("norton_plugin.recipe", "from . import pipeline", "recipe may not import pipeline"),
        (
            "norton_plugin.pipeline",
            "def f():\n    import torch_pruning as tp",
            "only integrations imports torch_pruning",
        ),
        ("norton_plugin.cost.cost", "from torchvision import models", "only zoo and pictures imports torchvision"),
        (
            "norton_plugin.cost.cost",
            "import importlib\nimportlib.import_module('mmengine')",
            "only mm and zoo imports mmengine",
        ),
        ("norton_plugin.cli", "import timm", "only zoo imports timm"),
        ("norton_plugin.cpd.als", "from tensorly.decomposition import parafac", "no room may import tensorly"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, message: str) -> None:
    (line,) = _violations(source, module)
    assert message in line


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "norton_plugin.cpd.als",
            "from .factors import CPDFactors\nfrom ..errors import NortonError\nimport torch",
        ),
        (
            "norton_plugin.artifact",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .pipeline import X",
        ),
        ("norton_plugin.artifact", "from . import __version__"),
        ("norton_plugin.cli", "from .zoo import timm"),
        ("norton_plugin.integrations.torch_pruning", "import torch_pruning"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert _violations(source, module) == []


def test_public_names_are_declared_once_for_readers_and_once_for_checkers() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {a.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert typed == {name: f"norton_plugin.{room}" for name, room in norton_plugin._HOME.items()}
    assert set(norton_plugin.__all__) == {"__version__", *typed}
    assert set(norton_plugin.__all__) <= set(dir(norton_plugin))


@pytest.mark.parametrize("name", norton_plugin.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(norton_plugin, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'norton_plugin' has no attribute 'compres'"):
        norton_plugin.compres  # noqa: B018


def _built(source: Path, out: Path) -> Path:
    """The wheel of ``source``, built by pip without asking the registry."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True, capture_output=True)
    (wheel,) = out.glob("norton_plugin-*.whl")
    return wheel


def test_wheel_and_sdist_carry_configs_and_tools(repository: Path, tmp_path: Path) -> None:
    if not (repository / "setup.cfg").is_file():
        pytest.skip("the package is installed without its source tree")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("norton_plugin", "configs", "tools"):
        shutil.copytree(repository / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (repository / name).is_file():
            shutil.copy(repository / name, tree / name)
    junk = tree / "tools" / "__pycache__"
    junk.mkdir(exist_ok=True)
    (junk / "x.cpython-310.pyc").write_bytes(b"")

    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("norton_plugin-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()

    names = []
    for source, out in ((tree, tmp_path / "from_tree"), (unpacked, tmp_path / "from_sdist")):
        with ZipFile(_built(source, out)) as wheel:
            names.append({name for name in wheel.namelist() if ".dist-info/" not in name})
    assert names[0] == names[1]
    carried = {
        f"norton_plugin/.mim/{path.relative_to(repository).as_posix()}"
        for top in ("configs", "tools")
        for path in (repository / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names[0] if "/.mim/" in name} == carried
    assert {"norton_plugin/.mim/tools/constraints.txt", "norton_plugin/.mim/configs/README.md"} <= carried
    assert {"norton_plugin/py.typed", "norton_plugin/__init__.py", "norton_plugin/errors.py"} <= names[0]
    assert {name.split("/")[0] for name in names[0]} == {"norton_plugin"}


# Functions that may be longer than 40 lines, with the reason. Docstrings do not count.
LONG = {
    "norton_plugin.cli.compress.compress": "one call after the other, each with the options of the command by name",
    "norton_plugin.cli.finetune.finetune": "one call after the other, each with the options of the command by name",
}


def _bodies(source: str) -> Iterator[tuple[str, int]]:
    """Names of functions and the lines of their bodies, docstrings left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                yield node.name, (node.end_lineno or 0) - body[0].lineno + 1


def _tools() -> list[tuple[str, Path]]:
    """Names and files of the tools; none where the package is installed without its source tree."""
    root = PACKAGE.parent
    return [(path.relative_to(root).as_posix(), path) for path in sorted((root / "tools").rglob("*.py"))]


@pytest.mark.parametrize(("name", "path"), [pytest.param(*pair, id=pair[0]) for pair in _modules() + _tools()])
def test_files_and_functions_are_short(name: str, path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    long = {f"{name}.{function}": lines for function, lines in _bodies(source) if lines > 40}
    assert {function: lines for function, lines in long.items() if function not in LONG} == {}
    assert long.keys() == {function for function in LONG if function.rpartition(".")[0] == name}


def test_the_length_of_a_body() -> None:
    source = 'def f():\n    """Say."""\n    a = 1\n\n    return a\n'
    assert list(_bodies(source)) == [("f", 3)]
