"""What a long compression says while it runs: the step, its time, how many layers are done of how many."""

import logging

import pytest
import torch
import torchvision
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.cpd import decompose_coupled, decompose_layers
from norton_plugin.pipeline import StepLog
from norton_plugin.recipe import Budget, Decomposition


def test_a_line_has_the_step_its_time_and_how_far_it_is() -> None:
    now, said = [100.0], []
    log = StepLog(said.append, clock=lambda: now[0])
    log.goes_on()
    assert said == []  # nothing runs yet
    log("decompose")
    now[0] = 110.2
    log.goes_on()
    log.detail("3 of 16 layers")
    now[0] = 120.4
    log.goes_on()
    log("prune")
    log.goes_on()
    assert said == [
        "decomposing the filters",
        "still decomposing the filters: 10 s",
        "still decomposing the filters: 20 s, 3 of 16 layers",
        "following the channels and removing redundant ones",
        "still following the channels and removing redundant ones: 0 s",
    ]


def test_the_watch_speaks_again_and_again_and_ends() -> None:
    class Ticks:
        """In place of waiting: three rounds, then the end."""

        left = 3

        def wait(self, seconds: float) -> bool:
            asked.append(seconds)
            self.left -= 1
            return self.left < 0

        def set(self) -> None:
            ended.append(True)

    asked: list[float] = []
    ended: list[bool] = []
    said: list[str] = []
    log = StepLog(said.append, begins=lambda words: None, every=10.0, clock=lambda: 0.0)
    log._ended = Ticks()
    log("measure")
    with log.running():
        pass
    assert said == ["still counting MACs: 0 s"] * 3
    assert asked == [10.0] * 4 and ended == [True]


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [(8, 8), (8, 16), (16, 16), (16, 16)]
    return nn.Sequential(*(nn.Conv2d(c, n, 3, padding=1) for c, n in sizes))


@pytest.mark.parametrize(
    ("settings", "of"),
    [
        ({"rank": 1}, "4 layers"),
        ({"level": "layer", "share": 0.3}, "4 layers"),
        ({"level": "cluster", "share": 0.4, "clusters": 2}, "4 layers"),
        ({"level": "auto", "share": 0.3}, "decompositions of 4 layers"),
    ],
    ids=["filter", "layer", "cluster", "auto"],
)
def test_every_layer_is_counted_as_it_is_done(settings: dict[str, object], of: str) -> None:
    said: list[str] = []
    recipe = Recipe.from_dict({"decomposition": {"sweeps": 3, **settings}})
    compress(convolutions(), torch.randn(1, 8, 9, 9), recipe, on_detail=said.append)
    count = int(said[-1].split(" of ")[1].split()[0])
    assert [int(words.split()[0]) for words in said] == list(range(1, count + 1))
    assert said[-1].startswith(f"{count} of ") and said[-1].endswith(of)
    assert count == 4 if of == "4 layers" else count > 4


def test_a_layer_of_clusters_of_several_sizes_counts_once() -> None:
    said: list[int] = []
    weight = torch.randn(7, 6, 3, 3)
    cluster = torch.tensor([0, 0, 0, 1, 1, 1, 2])  # two of three filters, one of one
    decompose_coupled(
        [weight, weight[:, :, :1, :1], weight],
        [6, 2, 9],
        clusters=[cluster, None, cluster],
        sweeps=2,
        on_layer=lambda: said.append(1),
    )
    assert len(said) == 3
    said.clear()
    decompose_layers([weight, weight], [1, 9], sweeps=2, on_layer=lambda: said.append(1))
    assert len(said) == 2


def test_compress_logs_its_steps_where_nobody_else_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model, image = torchvision.models.resnet18(num_classes=3).eval(), torch.randn(1, 3, 64, 64)
    recipe = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 2}})
    with caplog.at_level(logging.INFO, "norton_plugin.pipeline"):
        compress(model, image, recipe)
        told = [record.getMessage() for record in caplog.records if record.name == "norton_plugin.pipeline.compression"]
        assert told == ["counting MACs", "decomposing the filters"]
        caplog.clear()
        compress(model, image, recipe, on_step=lambda name: None)
    assert not [record for record in caplog.records if record.name == "norton_plugin.pipeline.compression"]


def test_finding_sizes_tells_how_many_images_ran():
    said: list[str] = []
    recipe = Recipe(decomposition=Decomposition(level="layer"), budget=Budget(macs=0.6))
    batches = [torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    compress(convolutions(), torch.randn(1, 8, 9, 9), recipe, calibration=batches, on_detail=said.append)
    counts = [int(words.split()[0]) for words in said if words.endswith(" images run")]
    # All images twice, for the sensitivities and for the moments, and a first batch to see what the model returns.
    assert counts == list(range(4, counts[-1] + 1, 4)) and counts[-1] == 2 * 12 + 4
