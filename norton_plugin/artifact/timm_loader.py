"""Artefacts in timm's registry, for code that builds its models by ``timm.create_model``."""

from __future__ import annotations

from norton_plugin.artifact.loading import load


def register_timm_loader() -> None:
    """Make ``timm.create_model("norton_artifact", path=FOLDER)`` load a compressed model of timm.

    ``num_classes`` gives it another, untrained classifier where it differs; ``features_only=True`` with ``out_indices``
    returns the network of its features, as for other models of timm. ``pretrained`` has no effect: the weights are the
    artefact's.

    Raises:
        MissingExtraError: timm is not installed.
    """
    from norton_plugin.zoo import timm_entry

    timm_entry.register(load)
