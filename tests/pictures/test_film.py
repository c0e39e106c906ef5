"""Sheets and films: where tiles are, how many frames there are, and how long they stay."""

import io
import sys

import numpy as np
import pytest

from norton_plugin.errors import ArtifactError, MissingExtraError
from norton_plugin.pictures import film_bytes, find_images, open_image
from norton_plugin.pictures.reading import Unreadable
from norton_plugin.pictures.sheet import Tile, draw_sheet

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'norton-plugin[cam]'")
RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour, width=200, height=30):
    return Image.new("RGB", (width, height), colour)


def test_tiles_of_a_sheet():
    sheet = np.asarray(draw_sheet([[Tile(plain(RED)), Tile(plain(BLUE), "a\nb")]] * 2, ["one", "two"]))
    red, blue = ((sheet == colour).all(2) for colour in (RED, BLUE))
    assert (red.sum(), blue.sum()) == (2 * 200 * 30,) * 2
    rows = np.flatnonzero(red.any(1))
    assert len(rows) == 60 and (rows == np.flatnonzero(blue.any(1))).all()
    assert np.diff(rows).max() - 1 == 2 * 20 + 10  # two lines of a caption, and the gap
    left, right = (np.flatnonzero(mask.any(0)) for mask in (red, blue))
    assert (left[0], right[0], right[0] - left[-1] - 1) == (10, 220, 10)


def test_a_column_is_as_wide_as_its_words():
    words = "a heading that is far wider than the image below it"
    assert draw_sheet([[Tile(plain(RED, 5, 5))]], [words]).width > 300


def test_gif():
    frames = [plain(RED), plain(BLUE, 101, 51)]
    found = Image.open(io.BytesIO(film_bytes(frames, ".gif")))
    assert (found.format, found.n_frames, found.size, found.info["duration"]) == ("GIF", 2, (200, 52), 1500)


def test_png_holds_all_frames():
    found = np.asarray(Image.open(io.BytesIO(film_bytes([plain(RED), plain(BLUE)], ".png"))))
    assert [(found == colour).all(2).sum() for colour in (RED, BLUE)] == [6000, 6000]


def test_mp4(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV, which writes MP4: pip install 'norton-plugin[cam]'")
    path = tmp_path / "a.mp4"
    path.write_bytes(film_bytes([plain(RED), plain(BLUE, 101, 51)], ".mp4"))
    film = cv2.VideoCapture(str(path))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 30 and film.get(cv2.CAP_PROP_FPS) == 10
    shape = (film.get(cv2.CAP_PROP_FRAME_WIDTH), film.get(cv2.CAP_PROP_FRAME_HEIGHT))
    assert shape == (200, 52)
    first = film.read()[1][15, 100]  # blue, green, red
    assert first[2] > 200 and first[0] < 60


def test_mp4_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"ends in \.gif.*norton-plugin\[cam\]"):
        film_bytes([plain(RED)], ".mp4")


def test_another_kind_of_file():
    with pytest.raises(ArtifactError, match=r"should end in one of \.png, \.gif, \.mp4, not in '\.avi'"):
        film_bytes([plain(RED)], ".avi")


def test_images_are_found_and_what_is_none_is_named(tmp_path):
    (tmp_path / "b").mkdir()
    plain(RED).save(tmp_path / "b" / "1.png")
    (tmp_path / "b" / "2.JPG").write_text("no image")
    (tmp_path / "b" / "notes.txt").write_text("text")
    plain(RED).save(tmp_path / "a.png")
    found = find_images([tmp_path / "b", tmp_path / "a.png"])
    assert [path.name for path in found] == ["1.png", "2.JPG", "a.png"]
    assert open_image(found[0]).getpixel((0, 0)) == RED
    assert open_image(found[0], gray=True).mode == "L"
    broken = open_image(found[1])
    assert isinstance(broken, Unreadable) and "cannot identify image file" in broken.reason
