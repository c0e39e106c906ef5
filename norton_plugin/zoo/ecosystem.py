"""What every file of the zoo offers, and the errors they share."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo.preprocessing import Preprocessing


@dataclass(frozen=True)
class Built:
    """A model just built by an ecosystem.

    Attributes:
        model: The model, in eval mode.
        kwargs: JSON-able arguments that build the same architecture again.
        preprocessing: What its images look like.
        inputs: Number of input tensors its ``forward`` takes.
    """

    model: nn.Module
    kwargs: dict[str, Any]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    inputs: int = 1


class Ecosystem(Protocol):
    """The three functions a file of the zoo defines.

    One whose models a plain call does not run defines three more, each of which may return None for a model that it
    runs. ``trace_of`` maps a model and an example to the function that runs what can be traced, and what that covers in
    words. ``exported_part`` maps a model to the function that runs what a file for another runtime holds, and what that
    covers. ``inference_of`` maps a model to what runs it on images where inference does more than what ``trace_of``
    runs.
    """

    def names(self) -> list[str]:
        """Return the names that ``build`` accepts."""
        ...

    def build(
        self,
        name: str,
        *,
        pretrained: bool = False,
        num_classes: int | None = None,
        input_size: int | Sequence[int] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Built:
        """Build one model."""
        ...

    def rebuild(self, name: str, kwargs: Mapping[str, Any], *, trust_code: bool = False) -> nn.Module:
        """Build one model from what an artefact says.

        Unless ``trust_code``, nothing but constructors of models runs, and nothing is opened.
        """
        ...


def unknown_model(kind: str, name: str, names: Sequence[str]) -> SourceError:
    """Describe a name that an ecosystem does not have, with the nearest names it has."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    advice = f"did you mean {', '.join(near)}?" if near else f"it has {len(names)} models, such as {names[0]}"
    return SourceError(f"{kind} has no model {name!r}; {advice}")


def failed_build(kind: str, name: str, error: Exception) -> SourceError:
    """Describe a constructor that raised."""
    return SourceError(f"{kind}:{name} cannot be built with these arguments: {first_line(error)}")


def no_weights(kind: str, name: str, error: Exception) -> SourceError:
    """Describe pretrained weights that cannot be had."""
    return SourceError(
        f"no pretrained weights of {kind}:{name} can be loaded ({first_line(error)}); "
        "without a network, download them elsewhere and pass the file with --checkpoint"
    )


def first_line(error: Exception, *, width: int = 160) -> str:
    """Shorten an error to its kind and first line, at most ``width`` characters."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {' '.join(lines[0].split())}" if lines else type(error).__name__
    return text if len(text) <= width else text[: width - 3] + "..."
