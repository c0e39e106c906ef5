"""A compressed model on disk: a directory with ``norton.json`` and ``model.safetensors``.

``norton.json`` holds the format version, the structure, the recipe, the report, the source that builds the dense
original, and hashes of all that and of the weights. Nothing in an artefact is executable.

A directory holds one complete artefact at any moment, whatever is saved there and whoever is killed meanwhile. Two
files cannot be replaced in one step, so ``norton.json`` alone decides (see ``saving``):

1. the new weights are written in full, under a name made of their hash (``.norton-<hash>.safetensors``);
2. one rename puts the new ``norton.json``, which holds that hash, in the place of the old one: this is the moment at
   which the new artefact takes over;
3. the weights are renamed to ``model.safetensors``.

A reader looks for the weights under the name of step 1, then under that of step 3, and starts again where
``norton.json`` was replaced meanwhile (see ``loading``). So the two files bear the names that people and other tools
expect, no directory is exchanged, and whatever else stands in the directory stays.
"""

from norton_plugin.artifact.folder import MANIFEST, WEIGHTS
from norton_plugin.artifact.loading import StoredArtifact, check_replaceable, load, open_artifact
from norton_plugin.artifact.manifest import FORMAT, VERSION, Manifest, read_manifest
from norton_plugin.artifact.saving import save
from norton_plugin.artifact.timm_loader import register_timm_loader
from norton_plugin.artifact.weights import load_weights_
from norton_plugin.artifact.whole_file import write_whole

__all__ = [
    "FORMAT",
    "MANIFEST",
    "VERSION",
    "WEIGHTS",
    "Manifest",
    "StoredArtifact",
    "check_replaceable",
    "load",
    "load_weights_",
    "open_artifact",
    "read_manifest",
    "register_timm_loader",
    "save",
    "write_whole",
]
