"""What is recorded at one size computes the same at others: by torch.jit.trace, torch.jit.script and torch.export."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.deploy import lower_, prepare
from norton_plugin.errors import SurgeryError

timm = pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")

RECIPES = {
    "filter": {"rank": 1, "sweeps": 2, "restarts": 1, "allow_more_macs": True},
    "spatial": {"level": "spatial", "rank": 2, "allow_more_macs": True},
}
SIZES = ((64, 64), (97, 95), (33, 70))


class Net(nn.Module):
    """Padding of every rule: by the size of the map, by "same", mirrored, and in pixels."""

    def __init__(self):
        super().__init__()
        conv = timm.layers.create_conv2d
        self.layers = nn.Sequential(
            conv(3, 8, 3, stride=2, padding="same"),
            nn.ReLU(),
            conv(8, 8, 5, stride=3, padding="same"),
            nn.Conv2d(8, 8, 3, padding="same", dilation=2),
            nn.Conv2d(8, 8, (4, 3), padding="same"),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate"),
            nn.Conv2d(8, 8, 3, padding=1),
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module", params=RECIPES)
def nets(request):
    """The compressed model, and what it is lowered to."""
    torch.manual_seed(0)
    recipe = Recipe.from_dict({"decomposition": RECIPES[request.param]})
    small = compress(Net().eval(), torch.randn(1, 3, 64, 64), recipe)
    assert len(small.report.decomposition.layers) == 6
    lowered = copy.deepcopy(small.model.eval())
    lower_(lowered)
    return {"blocks": small.model.eval(), "lowered": lowered}


def agree(recorded, model):
    with torch.no_grad():
        for height, width in SIZES:
            x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
            torch.testing.assert_close(recorded(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["blocks", "lowered"])
def test_a_trace_holds_for_every_size(nets, kind):
    agree(torch.jit.trace(nets[kind], torch.randn(1, 3, 64, 64)), nets[kind])


@pytest.mark.parametrize("kind", ["blocks", "lowered"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_program_of_torch_export_holds_for_every_size(nets, kind, strict):
    sides = {2: torch.export.Dim("height", min=32, max=512), 3: torch.export.Dim("width", min=32, max=512)}
    model = copy.deepcopy(nets[kind])
    for block in model.modules():
        if isinstance(block, ConvBlock) and strict:
            block.form = "separable"  # the choice of "auto" is Python that Dynamo does not read
    program = torch.export.export(model, (torch.randn(1, 3, 64, 64),), dynamic_shapes=(sides,), strict=strict)
    agree(program.module(), nets[kind])


def test_a_lowered_model_is_scripted(nets):
    agree(torch.jit.script(nets["lowered"]), nets["lowered"])


def test_layers_of_factors_are_not_scripted_and_say_what_to_do(nets):
    for model in (nets["blocks"], nn.Sequential(CPDLinear(8, 8, 2))):
        with pytest.raises(SurgeryError, match=r"torch.jit.script cannot compile a .*: norton_plugin.deploy.lower_"):
            torch.jit.script(model)


def test_a_prepared_network_of_timm_is_right_at_another_size():
    """Its sizes are those of TensorFlow: what is padded depends on the size of each map."""
    torch.manual_seed(0)
    dense = timm.create_model("tf_efficientnet_lite0", num_classes=10).eval()
    x, y = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 90, 97)
    scope = {"include": ["conv_stem"]}
    recipe = Recipe.from_dict({"scope": scope, "decomposition": {**RECIPES["filter"], "rank": 3}})
    model = compress(dense, x, recipe).model.eval()
    ready = prepare(model, x).model
    with torch.no_grad():
        expected = model(y)
        for recorded in (torch.jit.trace(ready, x), torch.jit.trace(model, x)):
            assert float((recorded(y) - expected).abs().max()) < 1e-3 * float(expected.abs().max())
