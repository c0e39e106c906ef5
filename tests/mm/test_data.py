import numpy as np
import pytest
import torch
from PIL import Image

from norton_plugin.errors import RecipeError, SourceError

pytest.importorskip("mmengine", reason="needs mmengine: pip install 'norton-plugin[mmdet]'")

from torch.utils.data import DataLoader

from norton_plugin.mm import ImageFolder, ImagePreprocessor, PackedImages, collate_batch, crop_and_flip, pack_folder
from norton_plugin.mm.classification.datasets import first_batch
from norton_plugin.mm.classification.packed import PackedFolder, cache_folder
from norton_plugin.pictures.reading import open_image
from norton_plugin.zoo import Preprocessing
from norton_plugin.zoo.image_files import list_unlabelled, read_image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes, three 6x4 images each; the pixel value tells the image."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for c, name in enumerate(["cat", "dog"]):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (6, 4), (100 * c + i, 7, 9)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "data"


def test_pack_folder_by_hand(folder):
    packed = pack_folder(folder)
    assert packed.images.shape == (6, 3, 4, 6)
    assert packed.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert packed.images[5, :, 3, 5].tolist() == [102, 7, 9]
    assert packed.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert packed.metainfo == {"classes": ("cat", "dog")}


def test_the_copy_is_read_again_and_renewed_when_a_file_changes(folder):
    pack_folder(folder)
    (stored,) = cache_folder().iterdir()
    with np.load(stored) as archive:
        images = archive["images"]
    np.savez(stored, images=images + 1, labels=np.zeros(6, int))
    assert pack_folder(folder).images[0, 0, 0, 0] == 1
    Image.new("RGB", (6, 4), (50, 7, 9)).save(folder / "cat" / "3.png")
    assert pack_folder(folder).images[:, 0, 0, 0].tolist() == [0, 1, 2, 50, 100, 101, 102]


def test_a_damaged_copy_is_made_again(folder):
    pack_folder(folder)
    (stored,) = cache_folder().iterdir()
    stored.write_bytes(b"broken")
    assert pack_folder(folder).images[3, 0, 0, 0] == 100


def test_resize_and_gray(folder):
    assert pack_folder(folder, size=2, gray=True, cache=False).images.shape == (6, 1, 2, 2)
    assert PackedFolder(folder, size=(8, 2)).images.shape == (6, 3, 8, 2)
    assert list(cache_folder().iterdir())  # the second wrote a copy


def test_without_labels_images_lie_anywhere(folder):
    Image.new("RGB", (6, 4), (200, 7, 9)).save(folder / "top.png")
    (folder / ".hidden").mkdir()
    Image.new("RGB", (6, 4), (9, 7, 9)).save(folder / ".hidden" / "a.png")
    found = list_unlabelled(folder)
    assert [np.asarray(read_image(path))[0, 0, 0] for path in found] == [0, 1, 2, 100, 101, 102, 200]


@pytest.mark.parametrize("gray", [False, True])
def test_sixteen_bits_become_eight(tmp_path, gray):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (read_image, open_image):
        for name in ("a.png", "a.tif"):
            pixels = np.asarray(read(tmp_path / name, gray=gray))
            assert pixels.reshape(4, -1)[:, 0].tolist() == [0, 1, 128, 255]
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(SourceError, match="32 bits"):
        read_image(tmp_path / "b.tif")


def test_a_loader_hands_out_whole_batches(folder):
    loader = DataLoader(pack_folder(folder), batch_size=4, collate_fn=collate_batch)
    batches = list(loader)
    assert [b["inputs"].shape[0] for b in batches] == [4, 2]
    assert batches[1]["data_samples"].tolist() == [1, 1]


def test_image_folder_equals_packed_when_nothing_is_transformed(folder):
    data = ImageFolder(folder, transform=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1))
    loader = DataLoader(data, batch_size=6, collate_fn=collate_batch)
    batch, packed = next(iter(loader)), pack_folder(folder)
    assert torch.equal(batch["inputs"], packed.images)
    assert torch.equal(batch["data_samples"], packed.labels)


def test_image_folder_uses_the_models_transform(folder):
    item = ImageFolder(folder, Preprocessing((3, 3, 3)), training=True)[4]
    assert (item["inputs"].shape, item["inputs"].dtype, item["data_samples"]) == ((3, 3, 3), torch.uint8, 1)


def test_pairs_of_torchvision_are_taken():
    batch = collate_batch([(torch.zeros(1, 2, 2), 3), (torch.ones(1, 2, 2), 4)])
    assert batch["data_samples"].tolist() == [3, 4]


def test_bad_folders(folder, tmp_path):
    with pytest.raises(SourceError, match="is not a folder"):
        pack_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no sub-folders"):
        pack_folder(tmp_path / "empty")
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(SourceError, match="no images in its 1 sub-folders"):
        ImageFolder(tmp_path / "empty")
    Image.new("RGB", (5, 5)).save(folder / "dog" / "9.png")
    with pytest.raises(SourceError, match="5x5 but the first image 6x4; give a size"):
        pack_folder(folder)
    for path in folder.rglob("*.png"):
        path.write_text("no picture")
    with pytest.raises(SourceError, match="none of the 7 images .* can be read"):
        pack_folder(folder)
    with pytest.raises(SourceError, match="none of the 7 images of the data set can be read"):
        first_batch(ImageFolder(folder))


def test_images_that_cannot_be_read_are_left_out_and_named(folder, caplog):
    whole = pack_folder(folder)
    paths = sorted(folder.rglob("*.png"))
    (paths[0].parent / "00.png").write_bytes(b"")
    paths[4].write_bytes(paths[4].read_bytes()[:40])
    kept = [0, 1, 2, 3, 5]
    for _ in range(2):  # decoded, then from the cache: the words are the same
        caplog.clear()
        packed = pack_folder(folder)
        assert torch.equal(packed.images, whole.images[kept])
        assert torch.equal(packed.labels, whole.labels[kept])
        assert ["00.png" in caplog.messages[0], paths[4].name in caplog.messages[1]] == [True, True]
        assert len(caplog.messages) == 2

    caplog.clear()
    data = ImageFolder(folder, transform=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1))
    assert torch.equal(first_batch(data)["inputs"], whole.images[:1])
    for _ in range(2):  # epochs: named in the first
        batches = list(DataLoader(data, batch_size=4, collate_fn=collate_batch))
        assert [len(batch["inputs"]) for batch in batches] == [3, 2]
        assert torch.equal(torch.cat([batch["inputs"] for batch in batches]), whole.images[kept])
        assert torch.cat([batch["data_samples"] for batch in batches]).tolist() == whole.labels[kept].tolist()
    assert len(caplog.messages) == 2
    alone = list(DataLoader(data, batch_size=1, collate_fn=collate_batch))
    assert [len(batch.get("inputs", [])) for batch in alone] == [1, 0, 1, 1, 1, 0, 1]


def test_packed_images_must_fit():
    with pytest.raises(SourceError, match="do not fit"):
        PackedImages(torch.zeros(2, 3, 4, 4), torch.zeros(2))
    with pytest.raises(SourceError, match="do not fit"):
        PackedImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3))


def test_subset_is_reproducible():
    data = PackedImages(torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1), torch.arange(50))
    assert data.subset(5).labels.tolist() == data.subset(5).labels.tolist()
    assert data.subset(5, seed=1).labels.tolist() != data.subset(5).labels.tolist()
    assert len(set(data.subset(20).labels.tolist())) == 20


def test_crop_and_flip_are_windows_of_the_padded_image():
    images = torch.arange(1, 4 * 12 + 1, dtype=torch.uint8).view(4, 1, 3, 4)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    out = crop_and_flip(images, padding=1, generator=torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8
    for image, cut in zip(padded, out, strict=True):
        windows = [image[:, r : r + 3, c : c + 4] for r in range(3) for c in range(3)]
        assert any(torch.equal(cut, w) or torch.equal(cut, w.flip(2)) for w in windows)


def test_crops_and_flips_are_all_drawn():
    images = torch.arange(1, 5, dtype=torch.float).view(1, 1, 2, 2).expand(2000, 1, 2, 2)
    kinds, counts = crop_and_flip(images, padding=1).flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18  # 9 windows, mirrored or not, all different
    assert counts.min() > 60  # 111 expected, standard deviation 10


def test_no_padding_and_no_flip_change_nothing():
    images = torch.randn(3, 2, 4, 4)
    assert torch.equal(crop_and_flip(images, padding=0, flip=False), images)


def test_preprocessor_by_hand():
    prepare = ImagePreprocessor((0.5,), (0.25,))
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert prepare({"inputs": images})["inputs"].flatten().tolist() == [-2.0, 2.0]
    assert prepare({"inputs": torch.tensor([[[[0.0, 0.75]]]])})["inputs"].flatten().tolist() == [-2.0, 1.0]
    batch = prepare({"inputs": list(images), "data_samples": [3]})
    assert batch["data_samples"].tolist() == [3]


def test_only_training_augments():
    prepare = ImagePreprocessor(crop_padding=2, flip=True)
    images = torch.rand(8, 1, 4, 4)
    assert torch.equal(prepare({"inputs": images})["inputs"], images)
    assert not torch.equal(prepare({"inputs": images}, True)["inputs"], images)


def test_channels_last():
    out = ImagePreprocessor(channels_last=True)({"inputs": torch.rand(2, 3, 4, 4)})["inputs"]
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.0,)), ((0.5, 0.5), (1.0,))])
def test_impossible_normalisation(mean, std):
    with pytest.raises(RecipeError, match="do not fit"):
        ImagePreprocessor(mean, std)
