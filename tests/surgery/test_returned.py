"""A module without weights whose output meets channels: it is selected at the channels that stay."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import norton_plugin
from norton_plugin import Recipe, compress
from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import ArtifactError, SurgeryError
from norton_plugin.modules.output_selection import output_selection
from norton_plugin.modules.snapshot import Snapshot
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import apply_structure_, diff

HALF = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})


class Sine(nn.Module):
    """Numbers of rows and columns as sines and cosines, as in DETR."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, mask: Tensor, features: Tensor | None = None) -> Tensor:
        rows, columns = (mask.float().cumsum(d)[..., None] for d in (1, 2))
        waves = 10 ** (torch.arange(self.width // 2) / self.width)
        return torch.cat([(rows / waves).sin(), (columns / waves).cos()], dim=3).permute(0, 3, 1, 2)


class Encoded(nn.Module):
    """A trunk to which an encoding of positions is added, twice."""

    def __init__(self, how: str = "mask") -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)
        self.encoding, self.how = Sine(16), how

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        mask = image.new_ones(len(x), *x.shape[2:])
        places = self.encoding(mask, features=x) if self.how == "features" else self.encoding(mask)
        x = (x + places).relu()
        return self.head((x + self.middle(x) * places).relu())


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def build(how: str = "mask") -> Encoded:
    torch.manual_seed(0)
    return Encoded(how).eval()


def structure_of(small: nn.Module) -> dict:
    """As a file would hold it."""
    return json.loads(json.dumps(diff(geometry(build()), geometry(small))))


def masked(net: Encoded, kept: tuple[int, ...]) -> nn.Module:
    """The original without what the removed channels of its trunk have: the oracle."""
    again = copy.deepcopy(net)
    gone = [i for i in range(16) if i not in kept]
    with torch.no_grad():
        again.middle.weight[:, gone] = 0
        again.head.weight[:, gone] = 0
    return again


@pytest.mark.parametrize("how", ["mask", "features"])
def test_the_encoding_loses_the_channels_of_the_trunk(how, image):
    net = build(how)
    small, report = compress(net, image, HALF)
    assert report.status == "full" and report.largest_error < 1e-6
    selection = output_selection(small.encoding)
    assert selection is not None and (selection.dim, selection.size, len(selection.kept)) == (1, 16, 8)
    assert small.stem.out_channels == small.middle.out_channels == small.head.in_channels == 8
    assert output_selection(net.encoding) is None
    with torch.no_grad():
        torch.testing.assert_close(small(image), masked(net, selection.kept)(image), rtol=1e-5, atol=1e-5)
        # Nothing of the size of the example is kept.
        larger = torch.randn(1, 3, 13, 11)
        torch.testing.assert_close(small(larger), masked(net, selection.kept)(larger), rtol=1e-5, atol=1e-5)


def test_an_artefact_a_structure_and_a_copy_bring_it_along(image, tmp_path):
    net = build()
    result = compress(net, image, HALF)
    result.save(tmp_path / "small")
    loaded = norton_plugin.load(tmp_path / "small", build())
    structure = structure_of(result.model)
    rebuilt = build()
    apply_structure_(rebuilt, structure)
    rebuilt.load_state_dict(result.model.state_dict())
    with torch.no_grad():
        for other in (loaded, rebuilt, copy.deepcopy(result.model)):
            assert torch.equal(other.eval()(image), result.model(image))


def test_a_second_compression_selects_among_what_is_left(image):
    net = build()
    once = compress(net, image, HALF).model
    small, report = compress(once, image, HALF)
    first, second = output_selection(once.encoding), output_selection(small.encoding)
    assert first is not None and second is not None
    assert set(second.kept) < set(first.kept) and (len(second.kept), second.size) == (4, 16)
    assert report.status == "full" and report.largest_error < 1e-6


def test_a_cut_is_taken_back_exactly(image):
    net = build()
    before = Snapshot(net.modules())
    graph = ChannelGraph(net, image)
    with torch.no_grad():
        dense = net(image)
        [root] = [group.root for group in graph.groups() if group.blocked is None]
        graph.prune(root, [0, 3])
        assert output_selection(net.encoding) is not None
        before.restore_()
        assert output_selection(net.encoding) is None and torch.equal(net(image), dense)


def test_containers_that_modules_share_stay_shared():
    net = build()
    shared = {"seen": 1}
    net.stem.cache = net.head.cache = shared
    before = Snapshot(net.modules())
    shared["seen"] = 2
    net.head.cache = {}
    before.restore_()
    assert net.stem.cache is net.head.cache is shared and shared == {"seen": 1}


def test_an_encoding_of_another_width_is_refused(image):
    small = compress(build(), image, HALF).model
    small.encoding.width = 12
    with pytest.raises(SurgeryError, match="returned 12 channels along dimension 1, expected 16"):
        small(image)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(kept=[]), "'kept' of 'selected' of 'encoding' is"),
        (lambda s: s.update(kept=[1, 1]), "ascending positions below 16"),
        (lambda s: s.update(kept=[3, 99]), "ascending positions below 16"),
        (lambda s: s.update(kept=[0.5]), "a dimension, a size and positions"),
        (lambda s: s.update(dim=-1), "a dimension, a size and positions"),
        (lambda s: s.pop("size"), "expected dim, size and kept"),
    ],
)
def test_a_damaged_selection_is_refused(edit, message, image):
    structure = structure_of(compress(build(), image, HALF).model)
    edit(next(entry["selected"] for entry in structure["modules"] if "selected" in entry))
    net = build()
    with pytest.raises(ArtifactError, match=message):
        apply_structure_(net, structure)
    assert output_selection(net.encoding) is None and net.stem.out_channels == 16


def test_layers_with_weights_take_no_selection_from_a_structure(image):
    structure = structure_of(compress(build(), image, HALF).model)
    entries = {entry["names"][0]: entry for entry in structure["modules"]}
    entries["head"]["selected"] = entries["encoding"]["selected"]
    with pytest.raises(ArtifactError, match="'selected' of head is 'Conv2d', expected a module without weights"):
        apply_structure_(build(), structure)


class Grown(nn.Module):
    """Doubles a map of numbers: what it returns has places, not channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=-1)


class Weighed(nn.Module):
    """An encoding with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, mask: Tensor) -> Tensor:
        return self.scale * torch.arange(16.0).view(1, 16, 1, 1) * mask[:, None]


@pytest.mark.parametrize("kind", [Grown, Weighed])
def test_what_resizes_or_has_weights_is_not_selected(kind, image):
    class Net(Encoded):
        def forward(self, image: Tensor) -> Tensor:
            x = self.stem(image).relu()
            if kind is Weighed:
                return self.head(x + self.extra(image.new_ones(len(x), *x.shape[2:])))
            return self.head(x * self.extra(image[:, :1, :-2, :3]))

    net = Net().eval()
    net.extra, net.middle = kind(), nn.Identity()
    graph = ChannelGraph(net, image)
    blocked = {group.root: group.blocked.code for group in graph.groups() if group.blocked}
    assert blocked.get("stem") == ("fixed-width-tensor" if kind is Weighed else None)
    members = {member.name for group in graph.groups() for member in group.members}
    assert not any(name.startswith("extra") for name in members)
