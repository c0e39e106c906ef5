"""A compressed network learns from its dense original on images without labels."""

import copy

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import compress
from norton_plugin.blocks import CPDBlock
from norton_plugin.calibration import divergence, outputs_of
from norton_plugin.distillation import distill_
from norton_plugin.distillation.objective import Objective
from norton_plugin.distillation.places import blocks_of
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.recipe import Decomposition, Distillation, Pruning, Recipe, Scope
from norton_plugin.surgery import decompose_
from tests.networks import Residual, settle

BLOCKS = ("stem", "layers.0", "layers.1", "head")


def call(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def images(count: int = 64, *, seed: int = 0) -> list[Tensor]:
    """Smooth images in batches of 8, in one of four colours each: something to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 4, 4, generator=generator)
    noise += 2 * torch.eye(3)[torch.randint(3, (count,), generator=generator)][:, :, None, None]
    return list(nn.functional.interpolate(noise, scale_factor=2, mode="bilinear").split(8))


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """A network that was trained to name the colour of an image."""
    torch.manual_seed(3)
    model = settle(Residual(8)).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for x in images(128, seed=5):
            loss = nn.functional.cross_entropy(model(x), x.mean((2, 3)).argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def compressed(model: nn.Module, components: int = 5) -> nn.Module:
    found = copy.deepcopy(model)
    decompose_(found, Decomposition(level="layer", components=components), scope=Scope(include=("layers.*",)))
    return found


def error(model: nn.Module, other: nn.Module, batches: list[Tensor]) -> float:
    return divergence(*(outputs_of(m, batches, call) for m in (model, other)))


def same(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_new_images_are_nearer_to_the_dense_model(dense):
    own = compressed(dense)
    before = copy.deepcopy(own)
    steps: list[tuple[int, int]] = []
    report = distill_(dense, own, images(), call=call, passes=5, lr=3e-3, on_step=lambda *done: steps.append(done))
    others = images(seed=9)
    assert error(dense, own, others) < 0.5 * error(dense, before, others)
    assert (report.images, report.held_back, report.steps) == (56, 8, 35)
    assert steps == [(done, 35) for done in range(1, 36)]
    assert report.kept == "after" and report.divergence["after"] < report.divergence["before"]
    held = images()[-1:]
    assert report.divergence == {"before": error(dense, before, held), "after": error(dense, own, held)}


def test_norms_keep_their_statistics_and_learn_their_scales(dense):
    own = compressed(dense)
    start = copy.deepcopy(own)
    modes = [module.training for module in own.modules()]
    distill_(dense, own, images(), call=call)
    for name, buffer in own.named_buffers():
        assert torch.equal(buffer, start.get_buffer(name)), name
    for name, parameter in own.named_parameters():
        assert not torch.equal(parameter, start.get_parameter(name)), name
        assert parameter.grad is None and parameter.requires_grad
    assert [module.training for module in own.modules()] == modes
    assert all(module.form == "auto" for module in own.modules() if isinstance(module, CPDBlock))


def test_the_dense_model_stays_and_equal_seeds_give_equal_weights(dense):
    state = copy.deepcopy(dense.state_dict())
    found = []
    for seed in (4, 4, 5):
        own = compressed(dense)
        distill_(dense, own, images(), call=call, seed=seed)
        found.append(own)
        torch.rand(7)  # what others draw does not matter
    assert same(found[0], found[1]) and not same(found[0], found[2])
    assert all(torch.equal(value, state[name]) for name, value in dense.state_dict().items())


def test_what_does_not_help_is_undone(dense):
    """At a rate of 1 the model is destroyed; what is kept is bit for bit that of before."""
    own = compressed(dense)
    start = copy.deepcopy(own)
    report = distill_(dense, own, images(), call=call, lr=1.0)
    assert report.kept == "before" and not report.divergence["after"] < report.divergence["before"]
    assert report.lr == pytest.approx(0.09) and same(own, start)


def test_a_lower_rate_is_tried_from_the_same_start(dense):
    own, other = compressed(dense), compressed(dense)
    report = distill_(dense, own, images(), call=call, passes=3, lr=0.1)
    assert report.kept == "after" and report.lr == 0.1 * 0.3  # 0.1 does not help
    assert distill_(dense, other, images(), call=call, passes=3, lr=0.1 * 0.3).lr == report.lr
    assert same(own, other)


def test_a_loss_that_is_not_finite_ends_it(dense, caplog):
    own = compressed(dense)
    start = copy.deepcopy(own)
    batches = images()
    batches[2] = batches[2] * float("inf")
    report = distill_(dense, own, batches, call=call, passes=1, seed=1)
    assert report.steps < 7 and "the loss is not finite" in caplog.text
    assert report.kept == "after" or same(own, start)


def test_what_may_not_change_does_not(dense):
    own = compressed(dense)
    own.head.requires_grad_(False)
    start = copy.deepcopy(own)
    distill_(dense, own, images(), call=call, admits=lambda name: name.startswith(("layers.0", "head")))
    changed = {n for n, p in own.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    expected = {n for n, _ in own.named_parameters() if n.startswith("layers.0")}
    expected |= {n for n, _ in own.named_parameters() if n.startswith("layers.1.conv")}  # blocks, in any case
    assert changed == expected


@pytest.mark.parametrize(
    ("change", "batches", "message"),
    [
        (lambda model: model.requires_grad_(False), images(), "no parameter that may be changed needs a gradient"),
        (lambda model: model, [], "there is no image to learn from"),
        (lambda model: model, [torch.randn(2, 5, 8, 8)], "does not run on a calibration batch"),
    ],
)
def test_what_cannot_be_done_changes_nothing(dense, change, batches, message):
    own = change(compressed(dense))
    start = copy.deepcopy(own)
    with pytest.raises(SurgeryError, match=message):
        distill_(dense, own, batches, call=call)
    assert same(own, start)


def test_stopped_half_way_it_changes_nothing(dense):
    own = compressed(dense)
    start = copy.deepcopy(own)

    def stop(done: int, count: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill_(dense, own, images(), call=call, on_step=stop)
    assert same(own, start)


def test_the_objective_by_hand(dense):
    """KL at the temperature, and the relative squared error of blocks; the head is the output, and counts once."""
    own, x = compressed(dense), images()[0]
    with torch.no_grad():
        found = Objective(dense, own, call, temperature=2.0, block_weight=0.5)
        loss = found(x)
        assert found.compared == BLOCKS[:-1]
        a, b = (model(x).div(2).log_softmax(1) for model in (dense, own))
        expected = 4 * (a.exp() * (a - b)).sum(1).mean()
        maps = [(model.stem(x), model.layers[0](model.stem(x)), model.layers(model.stem(x))) for model in (dense, own)]
        errors = [(s - t).square().sum() / t.square().sum() for t, s in zip(*maps, strict=True)]
    assert float(loss) == pytest.approx(float(expected + 0.5 * sum(errors) / 3), rel=1e-5)
    alone = Objective(dense, own, call, temperature=2.0, block_weight=0.0)
    with torch.no_grad():
        assert float(alone(x)) == pytest.approx(float(expected), rel=1e-5) and alone.compared == ()


def test_maps_as_outputs_and_blocks_of_other_widths(dense):
    """A detector's outputs have no classes along axis 1; blocks that pruning made narrower are left out."""

    def maps(model: nn.Module, x: Tensor) -> list[Tensor]:
        stem = model.stem(x)
        return [model.layers(stem), model.layers[0].conv1(stem)]

    own, x = copy.deepcopy(dense), images()[0]
    own.layers[0].conv1 = nn.Conv2d(8, 6, 3, padding=1)
    own.layers[0].norm1 = nn.BatchNorm2d(6)
    own.layers[0].conv2 = nn.Conv2d(6, 8, 3, padding=1)
    own.eval()
    objective = Objective(dense, own, maps, temperature=2.0, block_weight=1.0)
    with torch.no_grad():
        loss = objective(x)
        wanted, found = maps(dense, x)[0], maps(own, x)[0]
        first, second = dense.layers[0](dense.stem(x)), own.layers[0](own.stem(x))
    assert objective.compared == ("stem", "layers.0")  # layers.1 is the output, the stem is the same
    expected = (wanted - found).square().sum() / wanted.square().sum()
    expected += (first - second).square().sum() / first.square().sum() / 2
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_blocks_are_what_is_more_than_a_container():
    assert blocks_of(Residual(8)) == BLOCKS
    plain = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(4, 2))
    assert blocks_of(plain) == ("0.0", "2")


RECIPE = {"decomposition": {"level": "layer", "components": 5}, "scope": {"include": ["layers.*"]}}


def test_compress_distils_last_and_no_pass_is_bit_equal(dense):
    example, batches = images()[0], images()
    plain = compress(dense, example, Recipe.from_dict(RECIPE), calibration=batches)
    none = compress(dense, example, Recipe.from_dict(RECIPE | {"distillation": {"passes": 0}}), calibration=batches)
    assert same(plain.model, none.model) and none.report.distillation is None
    steps: list[str] = []
    details: list[str] = []
    asked = Recipe.from_dict(RECIPE | {"distillation": {"passes": 3, "lr": 3e-3, "seed": 2}})
    taught = compress(dense, example, asked, calibration=batches, on_step=steps.append, on_detail=details.append)
    assert steps == ["measure", "decompose", "calibrate", "distill"]
    assert details[-1] == "21 of 21 steps"
    by_hand = copy.deepcopy(plain.model)
    distill_(dense, by_hand, batches, call=call, passes=3, lr=3e-3, seed=2, admits=asked.scope.admits)
    assert same(taught.model, by_hand)
    assert torch.equal(taught.model.stem.weight, dense.stem.weight)  # outside of the scope
    assert taught.report.to_dict()["distillation"]["kept"] == "after"
    assert taught.report.distillation.blocks == BLOCKS[:-1]
    assert error(dense, taught.model, images(seed=9)) < error(dense, plain.model, images(seed=9))


def test_a_pruned_model_learns_too(dense):
    recipe = Recipe(pruning=Pruning(keep=0.5, round_to=1), distillation=Distillation(passes=4, lr=3e-3))
    example, batches = images()[0], images(128)
    pruned = compress(dense, example, Recipe(pruning=recipe.pruning), calibration=batches).model
    taught, report = compress(dense, example, recipe, calibration=batches)
    assert report.distillation.kept == "after"
    assert error(dense, taught, images(seed=9)) < error(dense, pruned, images(seed=9))


def test_images_are_needed_and_settings_checked(dense):
    asked = Recipe.from_dict(RECIPE | {"distillation": {"passes": 1}})
    with pytest.raises(RecipeError, match=r"distillation.passes is set, which needs unlabelled images"):
        compress(dense, images()[0], asked)
    for settings, words in (
        ({"passes": -1}, "distillation.passes is -1"),
        ({"passes": 1.5}, "expected a whole number"),
        ({"lr": 0}, "distillation.lr is 0"),
        ({"temperature": 0}, "distillation.temperature is 0"),
        ({"block_weight": -1}, "distillation.block_weight is -1"),
        ({"rate": 1}, "unknown setting distillation.'rate'"),
    ):
        with pytest.raises(RecipeError, match=words):
            Recipe.from_dict({"distillation": settings})


def test_a_model_that_does_not_learn_says_where_it_fails(dense: nn.Module) -> None:
    """Operators may run without gradients alone, and say so by a bare assert."""

    def fails(model: nn.Module, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise AssertionError
        return model(x)

    own = compressed(dense)
    with pytest.raises(SurgeryError, match="AssertionError: no message; raised by `raise AssertionError` in fails"):
        distill_(dense, own, images(16), call=fails, passes=1)
    assert same(own, compressed(dense))
