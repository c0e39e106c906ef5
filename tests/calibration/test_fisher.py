"""Fisher weights against closed forms."""

import pytest
import torch
from torch import nn

from norton_plugin.calibration.fisher import fisher_weights
from norton_plugin.errors import SurgeryError


def call(model, batch):
    return model(batch)


def test_of_logits_it_is_the_variance_of_the_prediction():
    """d log p(y) / d logits = onehot(y) - p, whose mean square over y is p (1 - p)."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    x = torch.randn(1, 3)
    p = model(x).softmax(1)[0].double()
    found = fisher_weights(model, {"linear": model}, [x.expand(4000, 3)], call=call)["linear"]
    torch.testing.assert_close(found, (p * (1 - p)).detach(), rtol=0.1, atol=0.005)


def test_of_other_outputs_it_is_the_squared_jacobian():
    """With y = A h and unit noise, the information of h_n is the squared norm of column n of A; positions add up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 5, 1))
    with torch.no_grad():
        model[0].bias.fill_(100.0)  # no ReLU is closed
    x = torch.randn(3000, 2, 2, 2)
    found = fisher_weights(model, {"first": model[0], "last": model[2]}, [x[:1000], x[1000:]], call=call)
    expected = 4 * model[2].weight.detach().double().flatten(1).square().sum(0)
    torch.testing.assert_close(found["first"], expected, rtol=0.1, atol=0)
    torch.testing.assert_close(found["last"], torch.full((5,), 4.0, dtype=torch.float64), rtol=0.1, atol=0)


def test_closed_units_count_for_nothing_and_nothing_is_left_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).train()
    with torch.no_grad():
        model[0].bias[2] = -100.0
    model[0].weight.requires_grad_(False)
    state = torch.get_rng_state()
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(2))
    first = fisher_weights(model, {"a": model[0]}, [x], call=call, seed=1)["a"]
    assert float(first[2]) == 0 and float(first.sum()) > 0
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model[0]._forward_hooks and not model[0].weight.requires_grad


def test_calls_of_a_shared_layer_add_up_and_the_seed_decides():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    model = nn.Sequential(layer, nn.Identity(), layer, nn.Unflatten(1, (2, 2)))
    x = torch.randn(2000, 4)
    found = fisher_weights(model, {"shared": layer}, [x], call=call)["shared"]
    torch.testing.assert_close(found, torch.full((4,), 2.0, dtype=torch.float64), rtol=0.1, atol=0)
    again = [fisher_weights(model, {"shared": layer}, [x], call=call, seed=seed)["shared"] for seed in (0, 1)]
    assert torch.equal(found, again[0]) and not torch.equal(found, again[1])


def test_bad_input_is_named():
    layer = nn.Linear(2, 3)
    with pytest.raises(SurgeryError, match="no image"):
        fisher_weights(layer, {"fc": layer}, [], call=call)
    model = nn.Sequential(layer, nn.Unflatten(1, (3, 1)))
    with pytest.raises(SurgeryError, match="outputs of fc are not finite"):
        fisher_weights(model, {"fc": layer}, [torch.ones(1, 2)], call=lambda m, x: m(x) * float("inf"))
    with pytest.raises(SurgeryError, match=r"does not run on a calibration batch .* give batches like the example"):
        fisher_weights(model, {"fc": layer}, [torch.ones(1, 5)], call=call)
    chain = nn.Sequential(nn.Linear(2, 2), nn.Threshold(0, float("nan")), nn.Linear(2, 2), nn.Linear(2, 2))
    chain[0].bias.data.fill_(-9.0)
    layers = {name: chain[int(name)] for name in ("3", "2", "0")}
    with pytest.raises(SurgeryError, match=r"^2 reads or gives values that are not finite"):
        fisher_weights(chain, layers, [torch.ones(4, 2)], call=call)
