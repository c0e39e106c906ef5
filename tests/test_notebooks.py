"""The notebooks run from top to bottom, and are committed as they were written: without outputs."""

import os
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def clean(notebook):
    """Whether nothing of a run is left in a notebook."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    empty = all(not cell.outputs and cell.execution_count is None for cell in code)
    return empty and not any(cell.metadata for cell in notebook.cells) and notebook.metadata == METADATA


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {"timm_classifier", "mmdet_detector"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert clean(notebook)


def test_what_a_run_leaves_is_seen():
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.execution_count = 1
    assert not clean(notebook)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.mm] if "mmdet" in path.stem else [], id=path.stem) for path in NOTEBOOKS],
)
def test_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=90, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    shown = [output.get("data", {"text/plain": output.get("text", "")}) for cell in code for output in cell.outputs]
    assert any("MACs" in each.get("text/plain", "") for each in shown)
    assert any("image/png" in each for each in shown) == (path.stem == "timm_classifier")
