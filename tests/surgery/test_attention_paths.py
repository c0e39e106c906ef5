"""A module that has several paths, as timm's attention has a fused and a plain one, is right on all of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import norton_plugin
from norton_plugin import Recipe, compress
from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.structure import apply_structure_, structure_hash

HALF = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})


class Attention(nn.Module):
    """One head of attention that runs by PyTorch's function or by itself."""

    def __init__(self, fused=True, after_keys=nn.Identity, words="scale"):
        super().__init__()
        self.head_dim, self.fused, self.words = 16, fused, words
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16)
        self.after_keys = after_keys()
        self.proj = nn.Linear(16, 8)
        self.dropout_rate = 0.25  # of the same value, and nothing of the kind
        setattr(self, words, self.head_dim**-0.5)

    def forward(self, x):
        q, k, v = self.q(x), self.after_keys(self.k(x)), self.v(x)
        if self.fused:
            return self.proj(F.scaled_dot_product_attention(q, k, v))
        return self.proj(((q @ k.transpose(-2, -1)) * getattr(self, self.words)).softmax(-1) @ v)


class OnePath(nn.Module):
    """Has no other path, so that its scale is a constant."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.proj = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = 16**-0.5

    def forward(self, x):
        return self.proj(((self.q(x) * self.scale) @ self.k(x).transpose(-2, -1)).softmax(-1) @ self.v(x))


def outputs(model, x):
    """The output of each path."""
    found = []
    for fused in (True, False):
        again = copy.deepcopy(model)
        for module in again.modules():
            for name in ("fused", "fused_attn"):
                if name in vars(module):
                    vars(module)[name] = fused
        with torch.no_grad():
            found.append(again(x))
    return found


def close(a, b):
    return float((a - b).abs().max()) < 1e-5 * float(b.abs().max())


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("words", ["scale", "softmax_factor"])
def test_both_paths_agree_whichever_was_traced(traced, words):
    torch.manual_seed(0)
    model, x = Attention(traced, words=words).eval(), 3 * torch.randn(2, 5, 8)
    result = compress(model, x, HALF)
    small = result.model
    assert small.k.out_features == 8 and small.v.out_features == 8
    assert getattr(small, words) == 8**-0.5 and small.dropout_rate == 0.25
    fused, plain = outputs(small, x)
    assert close(fused, plain)
    # By hand: the scale is that of the dense model.
    q, k, v = small.q(x), small.k(x) * 8**-0.5 / 16**-0.5, small.v(x)
    assert close(small.proj((q @ k.transpose(1, 2) * 0.25).softmax(-1) @ v), plain)
    again = Attention(not traced, words=words)
    apply_structure_(again, result.report.structure)
    again.load_state_dict(small.state_dict())
    assert close(again.eval()(x), plain)


@pytest.mark.parametrize("traced", [True, False])
def test_keys_that_cannot_be_rescaled_keep_their_width(traced):
    torch.manual_seed(0)
    model, x = Attention(traced, after_keys=nn.GELU).eval(), torch.randn(2, 5, 8)
    small = compress(model, x, HALF).model
    assert (small.k.out_features, small.v.out_features, small.scale) == (16, 8, 0.25)
    assert close(*outputs(small, x))


def test_a_scale_of_a_module_with_one_path_is_left_alone():
    torch.manual_seed(0)
    model, x = OnePath().eval(), torch.randn(2, 5, 8)
    small = compress(model, x, HALF).model
    assert (small.k.out_features, small.scale) == (8, 0.25)
    rows = [i for i, row in enumerate(model.k.weight) if any(torch.equal(row, kept) for kept in small.k.weight)]
    assert len(rows) == 8  # not rescaled


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_an_artefact_of_timm_is_right_under_either_setting(name, tmp_path):
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")
    from timm.layers import set_fused_attn

    from norton_plugin.zoo import load_source

    torch.manual_seed(0)
    source = load_source(f"timm:{name}", num_classes=10)
    result = compress(source.model, source.example_inputs, HALF)
    result.save(tmp_path / "small", source=source.spec)
    x = source.example_inputs[0]
    fused, plain = outputs(result.model.eval(), x)
    assert close(fused, plain)
    used = timm.layers.use_fused_attn()
    try:
        for enabled in (True, False):
            set_fused_attn(enabled)
            loaded = norton_plugin.load(tmp_path / "small").eval()
            kinds = {m.fused_attn for m in loaded.modules() if hasattr(m, "fused_attn")}
            assert kinds == {enabled}
            with torch.no_grad():
                assert close(loaded(x), fused)
    finally:
        set_fused_attn(used)


@pytest.mark.parametrize("value", [0.2, 1.5, -0.25, 1, "0.3", [0.3], True])
def test_a_scale_that_surgery_cannot_have_made_is_refused(value):
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 5, 8)
    structure = copy.deepcopy(compress(model, x, HALF).report.structure)
    [entry] = [e for e in structure["modules"] if "scale" in e.get("attributes", {})]
    entry["attributes"]["scale"] = value
    assert structure_hash(structure)
    with pytest.raises(ArtifactError):
        apply_structure_(Attention(), structure)
