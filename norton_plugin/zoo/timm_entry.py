"""An entry of timm's registry that builds whatever a given function loads: ``timm.create_model`` for stored models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from norton_plugin.errors import MissingExtraError, SourceError

try:
    from timm.models import FeatureListNet, is_model, register_model
except ImportError as _error:  # pragma: no cover - needs an environment without timm
    raise MissingExtraError("timm is not installed; run: pip install 'norton-plugin[timm]'") from _error

NAME = "norton_artifact"
# What timm's factory gives to every entry; it is about weights that timm would fetch.
_OF_FACTORY = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def register(load: Callable[[str], nn.Module]) -> None:
    """Make ``timm.create_model("norton_artifact", path=...)`` return what ``load(path)`` returns.

    Args:
        load: Loads a stored model of timm; a second registration is left out.
    """
    if is_model(NAME):
        return

    def norton_artifact(
        pretrained: bool = False,
        *,
        path: str | None = None,
        num_classes: int | None = None,
        features_only: bool = False,
        out_indices: Sequence[int] | None = None,
        **options: Any,
    ) -> nn.Module:
        unknown = sorted(set(options) - set(_OF_FACTORY))
        if path is None or unknown:
            found = f"the arguments {unknown}" if unknown else "no path"
            raise SourceError(f"{NAME} was given {found}; it takes path, num_classes, features_only and out_indices")
        model = load(path)
        if num_classes is not None and num_classes != getattr(model, "num_classes", num_classes):
            model.reset_classifier(num_classes)  # type: ignore[operator]
        if not features_only:
            return model
        indices: dict[str, Any] = {} if out_indices is None else {"out_indices": tuple(out_indices)}
        return FeatureListNet(model, **indices)

    register_model(norton_artifact)
