"""Models of torchvision: classification, detection, segmentation, video, optical flow."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from norton_plugin.errors import MissingExtraError, NortonError
from norton_plugin.zoo.ecosystem import Built, failed_build, no_weights, unknown_model
from norton_plugin.zoo.preprocessing import Preprocessing, resolve_input_size
from norton_plugin.zoo.stored import check_no_weights, check_values, label
from norton_plugin.zoo.versions import with_versions

try:
    from torchvision import models
except ImportError as _error:  # pragma: no cover - needs an environment without torchvision
    raise MissingExtraError("torchvision is not installed; run: pip install 'norton-plugin[timm]'") from _error

_DENSE_SIZE = 520  # the size segmentation models were trained at


def names() -> list[str]:
    """Return the names that ``torchvision.models.get_model`` accepts."""
    return list(models.list_models())


def build(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    input_size: int | Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Built:
    """Build a torchvision model; arguments as in :func:`norton_plugin.zoo.load_source`.

    Backbones of detectors and segmentation models are never downloaded on their own.

    Args:
        name: A name of ``torchvision.models.list_models()``.
        pretrained: Load the default weights; with another ``num_classes`` the classifier stays fresh.
        num_classes: Number of outputs, ``None`` for the model's own.
        input_size: Size of the images; passed on to models of a fixed size (ViT, MaxViT).
        kwargs: Further arguments of the constructor.

    Returns:
        The model and the size and normalisation its default weights were trained with.

    Raises:
        SourceError: Unknown name, arguments that do not fit, weights that cannot be had.
    """
    if name not in names():
        raise unknown_model("torchvision", name, names())
    weights = _default_weights(name)
    preprocessing = _preprocessing(name, weights)
    arguments = dict(kwargs or {})
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    arguments.update(
        {key: value for key, value in _size(name, preprocessing, input_size).items() if key not in arguments}
    )
    try:
        model = models.get_model(name, weights=None, **_without_downloads(name), **arguments)
    except NortonError:
        raise
    except Exception as error:  # of whichever layer the arguments do not fit
        raise failed_build("torchvision", name, error) from error
    if pretrained:
        _load(model, name, weights)
    fixed = arguments.get("image_size", arguments.get("input_size"))
    size = resolve_input_size(fixed if input_size is None else input_size, preprocessing.input_size)
    return Built(
        model=model,
        kwargs=arguments,
        preprocessing=Preprocessing(
            size, preprocessing.mean, preprocessing.std, preprocessing.interpolation, preprocessing.crop_pct
        ),
        inputs=2 if name.startswith("raft") else 1,
    )


def rebuild(name: str, kwargs: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
    """Build a torchvision model from stored arguments: any of its constructor but those that name weights.

    Raises:
        SourceError: Other arguments, or as in :func:`build`.
    """
    if not trust_code:
        source = label("torchvision", name)
        # torchvision calls them weights, weights_backbone, pretrained and pretrained_backbone
        check_no_weights(source, kwargs, [key for key in kwargs if str(key).startswith(("weights", "pretrained"))])
        check_values(source, kwargs)
    return build(name, kwargs=kwargs).model


def exported_part(model: nn.Module) -> tuple[Callable[[nn.Module, Any], Any], str] | None:
    """Return what a file of a detector holds; None for all other models, which a plain call runs."""
    from norton_plugin.zoo import torchvision_detectors, torchvision_export

    if not torchvision_detectors.is_detector(model):
        return None
    return torchvision_export.WholeDetector(), torchvision_export.parts_in_words(model)


def trace_of(model: nn.Module, example: Tensor) -> tuple[Callable[[nn.Module, Any], Any], str] | None:
    """See :func:`norton_plugin.zoo.torchvision_detectors.trace_of`."""
    from norton_plugin.zoo import torchvision_detectors

    return torchvision_detectors.trace_of(model, example)


def inference_of(model: nn.Module) -> Callable[[nn.Module, Tensor], Any] | None:
    """Return what runs a detector up to its boxes; None for all other models."""
    from norton_plugin.zoo import torchvision_detectors

    return torchvision_detectors.found_in if torchvision_detectors.is_detector(model) else None


def _default_weights(name: str) -> Any:
    enum = models.get_model_weights(name)
    return enum.DEFAULT if len(enum) else None


def _preprocessing(name: str, weights: Any) -> Preprocessing:
    transform = weights.transforms() if weights is not None else None
    module = models.get_model_builder(name).__module__
    crop = getattr(transform, "crop_size", None)
    resize = getattr(transform, "resize_size", None)
    mean = tuple(getattr(transform, "mean", None) or Preprocessing().mean)
    std = tuple(getattr(transform, "std", None) or Preprocessing().std)
    if ".detection" in module:  # detectors normalise inside the model
        return Preprocessing((3, 320, 320), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0)
    if ".segmentation" in module:
        return Preprocessing((3, _DENSE_SIZE, _DENSE_SIZE), mean, std, crop_pct=1.0)
    if ".optical_flow" in module:
        return Preprocessing((3, 128, 128), (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
    if ".video" in module:
        sides = tuple(crop) if crop else (112, 112)
        return Preprocessing((3, 16, *(sides * 2)[:2]), mean, std, crop_pct=1.0)
    side = crop[0] if crop else 224
    return Preprocessing(
        input_size=(3, side, side),
        mean=mean,
        std=std,
        interpolation=getattr(getattr(transform, "interpolation", None), "value", "bilinear"),
        crop_pct=side / resize[0] if resize else 0.875,
    )


def _size(name: str, preprocessing: Preprocessing, asked: int | Sequence[int] | None) -> dict[str, Any]:
    size = resolve_input_size(asked, preprocessing.input_size)
    if name.startswith("vit_"):
        return {"image_size": size[-1]}
    if name.startswith("maxvit"):
        return {"input_size": list(size[-2:])}
    return {}


def _without_downloads(name: str) -> dict[str, Any]:
    module = models.get_model_builder(name).__module__
    if ".detection" in module or ".segmentation" in module:
        return {"weights_backbone": None}
    # both announce a change of their initialisation unless told which one to use
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _load(model: nn.Module, name: str, weights: Any) -> None:
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # urllib, hash and zip errors: all mean that the weights cannot be had
        raise no_weights("torchvision", name, error) from error
    own, versioned = model.state_dict(), with_versions(state, model)
    for key, value in state.items():
        if key not in own or own[key].shape != value.shape:
            del versioned[key]
    model.load_state_dict(versioned, strict=False)
