"""Loading what ``norton deploy`` wrote, and any other artefact, for inference."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from norton_plugin.artifact import Manifest
from norton_plugin.artifact.opening import open_model_of
from norton_plugin.deploy.preparation import Forms, PreparedModel, prepare
from norton_plugin.deploy.table import DeploymentTable, table_from
from norton_plugin.errors import ArtifactError, RecipeError

# Where the manifest of an artefact keeps its table, and the name of the copy for people beside it.
KEY, TABLE = "deployment", "forms.json"


def load(directory: str | Path, *, trust_code: bool = False) -> nn.Module:
    """Load the lowered and folded model of an artefact.

    Args:
        directory: Written by ``norton deploy``: its table is taken over, nothing is measured. Any other artefact of the
            ``norton`` command gets the static choice of forms.
        trust_code: Run the Python function that the artefact names; look at it first.

    Returns:
        The model in evaluation mode, on the CPU; for inference alone.

    Raises:
        ArtifactError: The artefact or its table is damaged, or does not say what built its model.
        SourceError: The source cannot be built here, or is code that is not trusted.
    """
    return load_prepared(directory, trust_code=trust_code).model


def load_prepared(directory: str | Path, *, forms: Forms | None = None, trust_code: bool = False) -> PreparedModel:
    """Load an artefact and prepare its model, with all that was done; arguments as of ``load``.

    Args:
        directory: As of ``load``.
        forms: In place of the artefact's own table; see ``prepare``.
        trust_code: As of ``load``.
    """
    opened = open_model_of(directory, trust_code=trust_code)
    table = stored_table(opened.manifest, directory)
    return prepare(
        opened.model,
        opened.example_inputs,
        forms=forms or table or "static",
        fold=table is None or table.folded,
        forward_fn=opened.forward_fn,
    )


def stored_table(manifest: Manifest, directory: str | Path) -> DeploymentTable | None:
    """Return the table of an artefact, None where it has none.

    Raises:
        ArtifactError: It is damaged.
    """
    if KEY not in manifest.extra:
        return None
    try:
        return table_from(manifest.extra[KEY], f"the table in {directory}")
    except RecipeError as error:
        raise ArtifactError(str(error)) from error
