"""Structure: what it records, that it is plain JSON, and that it rebuilds exactly or says why not."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import ArtifactError
from norton_plugin.recipe import Decomposition, Pruning
from norton_plugin.surgery import apply_structure_, decompose_, prune_, structure_hash
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import diff


class Scaled(nn.Module):
    """A bare parameter per channel, a LayerNorm with a tuple attribute, a module held twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 16).reshape(1, 16, 1, 1))
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.again = nn.ModuleList([self.shared])
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x)) * self.scale
        y = torch.relu(self.again[0](torch.relu(self.shared(y))))
        return self.head(self.norm(y.mean((2, 3))))


class Grouped(nn.Module):
    """A grouped 3x3 convolution that becomes a grouped block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.grouped(torch.relu(self.stem(x)))))


def reseeded(model: nn.Module) -> nn.Module:
    """The same architecture as a constructor would give it: other weights."""
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return fresh


def compressed(model: nn.Module, x: Tensor) -> tuple[nn.Module, dict]:
    """Rank 1, about half the channels, and the structure after a trip through JSON."""
    changed = copy.deepcopy(model)
    decompose_(changed, Decomposition(rank=1, restarts=1, sweeps=5))
    report = prune_(changed, x, Pruning(keep=0.5, round_to=1))
    assert report.groups
    return changed, json.loads(json.dumps(diff(geometry(model), geometry(changed)), allow_nan=False))


@pytest.fixture(params=["residual", "group_normed", "dense", "scaled", "grouped"])
def net(request: pytest.FixtureRequest) -> nn.Module:
    made = {"scaled": Scaled, "grouped": Grouped}
    return made[request.param]().eval() if request.param in made else request.getfixturevalue(request.param)


def test_round_trip_is_bit_equal(net, image):
    changed, structure = compressed(net, image)
    expected = changed(image)
    assert (expected - net(image)).abs().max() > 1e-3
    rebuilt = reseeded(net)
    apply_structure_(rebuilt, structure)
    assert repr(rebuilt) == repr(changed)
    assert geometry(rebuilt) == geometry(changed)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {
        k: v.shape for k, v in changed.state_dict().items()
    }
    rebuilt.load_state_dict(changed.state_dict())
    assert torch.equal(rebuilt(image), expected)


def test_what_is_recorded_is_what_changed(residual, image):
    changed, structure = compressed(residual, image)
    by_name = {entry["names"][0]: entry for entry in structure["modules"]}
    kept = changed.stem.out_channels
    assert 1 <= kept < 16
    assert by_name["head"] == {
        "names": ["head"],
        "resize": {"weight": [10, kept]},
        "attributes": {"in_features": kept},
    }
    assert by_name["layers.0.norm2"]["resize"] == {
        "weight": [kept], "bias": [kept], "running_mean": [kept], "running_var": [kept],
    }  # fmt: skip
    assert by_name["layers.0.conv1"]["block"] == {
        "in_channels": kept, "out_channels": 8, "kernel_size": [3, 3], "rank": 1, "stride": [1, 1],
        "padding": [1, 1], "dilation": [1, 1], "groups": 1, "bias": False, "padding_mode": "zeros",
        "form": "auto", "training_form": "dense",
    }  # fmt: skip
    assert structure["version"] == 1 and structure["source"]["stem.weight"] == [16, 3, 3, 3]


def test_an_unchanged_model_has_an_empty_structure(residual):
    assert diff(geometry(residual), geometry(copy.deepcopy(residual)))["modules"] == []


def test_tuples_stay_tuples(image):
    model = Scaled().eval()
    changed, structure = compressed(model, image)
    rebuilt = reseeded(model)
    apply_structure_(rebuilt, structure)
    assert rebuilt.norm.normalized_shape == (changed.head.in_features,) != (16,)
    assert isinstance(rebuilt.norm.normalized_shape, tuple)
    assert isinstance(rebuilt.again[0].padding, tuple) and isinstance(rebuilt.stem.padding, tuple)


def test_a_shared_module_stays_one_object_and_a_bare_parameter_shrinks(image):
    model = Scaled().eval()
    changed, structure = compressed(model, image)
    rebuilt = reseeded(model)
    apply_structure_(rebuilt, structure)
    assert isinstance(rebuilt.shared, CPDBlock) and rebuilt.shared is rebuilt.again[0]
    assert rebuilt.scale.shape == changed.scale.shape and rebuilt.scale.shape[1] < 16
    assert isinstance(rebuilt.scale, nn.Parameter)
    assert ["shared", "again.0"] in [entry["names"] for entry in structure["modules"]]


def test_flags_dtype_and_mode_come_from_the_model_at_hand(residual, image):
    _, structure = compressed(residual, image)
    target = reseeded(residual).double().train()
    target.layers[0].requires_grad_(False)
    target.layers[1].norm1.eval()
    apply_structure_(target, structure)
    assert {p.dtype for p in target.parameters()} == {torch.float64}
    assert not any(p.requires_grad for p in target.layers[0].parameters())
    assert all(p.requires_grad for p in target.layers[1].parameters())
    assert target.layers[1].conv1.training and not target.layers[1].norm1.training


def test_a_frozen_weight_with_a_trainable_bias_stays_so(image):
    model = Grouped().eval()
    model.grouped.weight.requires_grad_(False)
    _, structure = compressed(model, image)
    apply_structure_(model, structure)
    block = model.grouped
    assert [block.head.requires_grad, block.horizontal.requires_grad, block.bias.requires_grad] == [False, False, True]


def test_a_compressed_model_can_be_compressed_again(residual, image):
    once, _ = compressed(residual, image)
    twice = copy.deepcopy(once)
    prune_(twice, image, Pruning(keep=0.5, round_to=1))
    structure = diff(geometry(once), geometry(twice))
    rebuilt = reseeded(once)
    apply_structure_(rebuilt, structure)
    rebuilt.load_state_dict(twice.state_dict())
    assert torch.equal(rebuilt(image), twice(image)) and repr(twice) != repr(once)
    with pytest.raises(ArtifactError, match="not the one that was compressed"):
        apply_structure_(copy.deepcopy(residual), structure)


def test_the_hash_changes_with_anything(residual, image):
    _, structure = compressed(residual, image)
    reordered = json.loads(json.dumps(structure, sort_keys=True))
    assert structure_hash(reordered) == structure_hash(structure)
    changes = [
        lambda s: s.update(version=2),
        lambda s: s["source"].update({"stem.weight": [16, 3, 3, 4]}),
        lambda s: s["modules"].pop(),
        lambda s: s["modules"].reverse(),
        lambda s: s["modules"][0]["names"].append("x"),
        lambda s: next(e for e in s["modules"] if "block" in e)["block"].update(rank=2),
        lambda s: next(e for e in s["modules"] if "resize" in e)["attributes"].update(in_features=1),
    ]
    hashes = {structure_hash(structure)}
    for change in changes:
        edited = copy.deepcopy(structure)
        change(edited)
        hashes.add(structure_hash(edited))
    assert len(hashes) == 1 + len(changes)


def _restride(model: nn.Module) -> None:
    model.stem.stride = (2, 2)


def _shrink(model: nn.Module) -> None:
    model.head = nn.Linear(16, 7)


def _extend(model: nn.Module) -> None:
    model.extra = nn.Linear(2, 2)


def _remove(model: nn.Module) -> None:
    model.layers[1].norm2 = nn.Identity()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_restride, r"stem.stride is \(2, 2\), the structure was made from \(1, 1\)"),
        (_shrink, r"head.weight is \[7, 16\], the structure was made from \[10, 16\]"),
        (_extend, r"extra.weight is \[2, 2\], the structure was made from absent"),
        (_remove, r"layers.1.norm2.weight is absent, the structure was made from \[16\]"),
    ],
)
def test_a_foreign_model_is_named_by_the_first_difference(residual, image, change, message):
    _, structure = compressed(residual, image)
    foreign = copy.deepcopy(residual)
    change(foreign)
    text = repr(foreign)
    with pytest.raises(ArtifactError, match=message):
        apply_structure_(foreign, structure)
    assert repr(foreign) == text


def _entry(structure: dict, kind: str) -> dict:
    return [entry for entry in structure["modules"] if kind in entry][-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.update(version=99), "version 99, this package reads version 1"),
        (lambda s: s.pop("version"), "version None"),
        (lambda s: s.update(version=True), "version True"),
        (lambda s: s.update(version=1.0), "version 1.0"),
        (lambda s: s.pop("source"), "does not say which model"),
        (lambda s: s.pop("modules"), "'modules' is None, expected a list"),
        (lambda s: _entry(s, "block").update(names=["layers.9"]), "a name is 'layers.9'"),
        (lambda s: _entry(s, "block").update(names=["layers.0", "layers.1"]), "expected names of one module"),
        (lambda s: _entry(s, "block")["block"].update(rank=0), "rank of 'block' of .* is 0"),
        (lambda s: _entry(s, "block")["block"].update(command="rm"), "'block' of .* is .*'command'"),
        (lambda s: _entry(s, "resize")["resize"].update(missing=[3]), "a tensor of .* is 'missing'"),
        (lambda s: _entry(s, "resize")["resize"].update(weight=["a"]), r"the shape of 'weight' .* is \['a'\]"),
        (lambda s: _entry(s, "resize").pop("attributes"), "expected names with block, spatial, linear, or resize and"),
    ],
)
def test_a_damaged_structure_changes_nothing(residual, image, damage, message):
    _, structure = compressed(residual, image)
    damage(structure)
    model = copy.deepcopy(residual)
    text, expected = repr(model), model(image)
    with pytest.raises(ArtifactError, match=message):
        apply_structure_(model, structure)
    assert repr(model) == text and torch.equal(model(image), expected)


def test_two_entries_about_one_shared_module_are_refused(image):
    _, structure = compressed(Scaled().eval(), image)
    [entry] = [entry for entry in structure["modules"] if entry["names"] == ["shared", "again.0"]]
    structure["modules"].append({**entry, "names": ["again.0"]})
    entry["names"] = ["shared"]
    model = Scaled().eval()
    text = repr(model)
    with pytest.raises(ArtifactError, match=r"'again.0' is .*another name of 'shared'"):
        apply_structure_(model, structure)
    assert repr(model) == text


def test_models_of_other_modules_have_no_structure(residual):
    other = copy.deepcopy(residual)
    other.extra = nn.ReLU()
    with pytest.raises(ArtifactError, match="has a module 'extra' which the original does not have"):
        diff(geometry(residual), geometry(other))
    block, conv = nn.Sequential(CPDBlock(4, 4, 3, 1)), nn.Sequential(nn.Conv2d(4, 4, 3))
    with pytest.raises(ArtifactError, match="'0' is decomposed in the original and not"):
        diff(geometry(block), geometry(conv))


def test_what_a_run_leaves_behind_is_no_part_of_the_structure(image):
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            self.register_buffer("grid", torch.ones(x.shape[-2:]), persistent=False)
            self.size = tuple(x.shape)
            return self.head(torch.relu(self.conv(x))) * self.grid

    model = Caching().eval()
    changed, structure = compressed(model, image)
    assert not hasattr(changed, "size") and not hasattr(changed, "grid")
    assert {entry["names"][0] for entry in structure["modules"]} == {"conv", "head"}
    fresh = Caching().eval()
    fresh(torch.zeros(1, 3, 5, 5))
    apply_structure_(fresh, structure)
    fresh.load_state_dict(changed.state_dict())
    assert torch.equal(fresh(image), changed(image))
