"""Images are mirrored and shifted for distillation, and nothing else is."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.distillation.augmentation import Augmentation


def moved(image: Tensor, *, mirror: bool, down: int, right: int) -> Tensor:
    """Oracle, pixel by pixel."""
    channels, height, width = image.shape
    found = torch.zeros_like(image)
    for y, x in itertools.product(range(height), range(width)):
        source_y, source_x = y - down, x - right
        if 0 <= source_y < height and 0 <= source_x < width:
            found[:, y, x] = image[:, source_y, width - 1 - source_x if mirror else source_x]
    return found


def what_happened(image: Tensor, found: Tensor, most: tuple[int, int]) -> tuple[bool, int, int]:
    """Return the one move that turns an image into another."""
    down, right = (range(-m, m + 1) for m in most)
    moves = [
        move
        for move in itertools.product((False, True), down, right)
        if torch.equal(moved(image, mirror=move[0], down=move[1], right=move[2]), found)
    ]
    assert len(moves) == 1, moves
    return moves[0]


def test_every_image_is_mirrored_by_itself_and_all_are_shifted_alike():
    images = torch.rand(6, 2, 16, 24) + 1
    augment, seen = Augmentation(0), set()
    for _ in range(4):
        moves = [what_happened(*pair, most=(2, 3)) for pair in zip(images, augment(images), strict=True)]
        assert len({move[1:] for move in moves}) == 1
        assert {move[0] for move in moves} == {False, True}
        seen.add(tuple(moves))
    assert len(seen) == 4


def test_all_shifts_occur_and_none_is_larger():
    augment, image = Augmentation(1), torch.rand(1, 1, 16, 16) + 1
    moves = {what_happened(image[0], augment(image)[0], most=(3, 3)) for _ in range(300)}
    assert {move[1] for move in moves} == {move[2] for move in moves} == {-2, -1, 0, 1, 2}


def test_equal_seeds_move_alike_and_others_do_not():
    images = torch.rand(8, 3, 32, 32)
    first, second, third = (Augmentation(seed)(images) for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_images_anywhere_in_a_batch_move_together():
    images = torch.rand(4, 3, 16, 16) + 1
    found = Augmentation(0)({"inputs": images, "more": [images.clone(), "text", 3]})
    assert torch.equal(found["inputs"], found["more"][0]) and not torch.equal(found["inputs"], images)
    assert found["more"][1:] == ["text", 3]


@pytest.mark.parametrize(
    "other",
    [torch.rand(4, 3, 15, 16), torch.rand(4, 3, 16), torch.rand(4, 9), torch.randint(9, (4, 3, 16, 16))],
    ids=["small", "no image", "features", "integers"],
)
def test_what_is_no_image_passes(other):
    assert Augmentation(0)(other) is other


def test_distillation_learns_from_moved_images_and_chooses_on_those_held_back():
    from norton_plugin.distillation import distill_

    torch.manual_seed(0)
    dense, held_back = nn.Conv2d(3, 2, 3), []
    batches = [torch.rand(4, 3, 16, 16) for _ in range(8)]
    seen: list[Tensor] = []

    def call(model: nn.Module, x: Tensor) -> Tensor:
        (seen if torch.is_grad_enabled() else held_back).append(x)
        return model(x)

    for augment in (False, True):
        seen.clear()
        held_back.clear()
        torch.manual_seed(1)
        distill_(dense, nn.Conv2d(3, 2, 3), batches, call=call, passes=1, augment=augment)
        own = [any(torch.equal(x, y) for y in batches[:7]) for x in seen]
        assert own and all(own) is not augment
        assert any(x is batches[7] for x in held_back)
