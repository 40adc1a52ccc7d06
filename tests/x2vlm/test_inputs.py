"""An image gives the same result in every form of input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.config import VideoReadingConfig
from dataset.media.video import FrameSampler
from tests.messages import naming
from x2vlm import UserError
from x2vlm.inputs import Reader, as_list


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)


@pytest.fixture
def read() -> Reader:
    return Reader(16, 10_000, None)


def videos(frames: int = 2) -> Reader:
    return Reader(16, 10_000, FrameSampler(frames, VideoReadingConfig(), 10_000))


def test_a_path_a_pillow_image_an_array_and_a_tensor_give_the_same_view(read, pixels, tmp_path):
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), image, pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    views = [read(form) for form in forms]
    assert all(torch.equal(view.pixels, views[0].pixels) and view.size == (40, 30) for view in views)
    assert views[0].pixels.shape == (3, 16, 16) and read(views[0]) is views[0]


def test_an_image_is_rotated_as_it_is_shown(read, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    shown = Image.fromarray(np.rot90(pixels, -1).copy())
    for form in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        view = read(form)
        assert view.size == (30, 40) and torch.equal(view.pixels, read(shown).pixels)


def test_transparency_is_blended_on_white_and_grey_has_three_channels(read, pixels, tmp_path):
    layer = Image.fromarray(np.dstack([pixels, np.zeros((30, 40), np.uint8)]))
    layer.save(tmp_path / "a.png")
    assert (read(layer).pixels == 255).all() and (read(tmp_path / "a.png").pixels == 255).all()
    grey = read(pixels[:, :, 0]).pixels
    assert torch.equal(grey[0], grey[2])


@pytest.mark.parametrize(
    ("image", "reported"),
    [
        (np.zeros((4, 4, 3), np.float32), ("float32", "uint8")),
        (np.zeros((4, 4, 4), np.uint8), ("(4, 4, 4)",)),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ("is not an image: an array is",)),
        (np.zeros((0, 4, 3), np.uint8), ("is not an image",)),
        (np.zeros((0, 0, 3), np.uint8), ("is not an image",)),
        (torch.zeros(3, 0, 0, dtype=torch.uint8), ("is not an image",)),
        (Image.new("RGB", (0, 0)), ("a Pillow image", "0 x 0 pixels", "at least one pixel")),
        (Image.new("L", (4, 0)), ("a Pillow image", "4 x 0 pixels", "at least one pixel")),
        (np.zeros((2, 4, 4, 3), np.uint8), ("video", "images")),
        ("clip.mp4", ("video", "images")),
        ("nowhere.png", ("nowhere.png", "missing image")),
        (b"abc", ("not bytes",)),
    ],
)
def test_inputs_that_are_not_images_are_reported_in_one_line(read, image, reported):
    with pytest.raises(UserError, match=naming(*reported)) as raised:
        read(image)
    assert "\n" not in str(raised.value)


def test_a_missing_image_is_named_once(read):
    with pytest.raises(UserError) as raised:
        read("photos/nowhere.png")
    assert str(raised.value) == "photos/nowhere.png: missing image: No such file or directory"


def test_a_large_image_is_rejected_before_it_is_decoded(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than max_pixels"):
        Reader(16, 100, None)(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_a_read_only_array_causes_no_warning(read, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    array = np.asarray(Image.open(tmp_path / "a.png"))
    assert not array.flags.writeable
    assert torch.equal(read(array).pixels, read(pixels).pixels)


def test_a_video_is_a_folder_of_frames_an_array_or_a_tensor(pixels, tmp_path):
    frames = np.stack([pixels, 255 - pixels, pixels // 2, pixels // 3])
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    views = [videos()(form) for form in (tmp_path, frames, torch.from_numpy(frames).permute(0, 3, 1, 2))]
    assert all(torch.equal(view.pixels, views[0].pixels) and view.size == (40, 30) for view in views)
    assert views[0].pixels.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match=naming("image", "videos")):
        videos()(pixels)


def test_images_keep_their_aspect_ratio(read, pixels):
    assert read.picture(pixels, 20).shape == (15, 20, 3)
    assert read.picture(read(pixels), 16).shape[2] == 3
    frames = np.stack([pixels, pixels])
    assert videos().picture(frames, 20).shape == (15, 42, 3)


def test_a_single_image_is_a_list_of_one(pixels):
    assert as_list("a.png") == ["a.png"] and as_list(("a.png", "b.png")) == ["a.png", "b.png"]
    assert as_list(pixels)[0] is pixels


def test_a_16_bit_pillow_image_is_read_like_its_file(read, tmp_path):
    grey = np.random.default_rng(1).integers(65536, size=(20, 20), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert torch.equal(read(Image.open(tmp_path / "a.png")).pixels, read(tmp_path / "a.png").pixels)


def test_closed_truncated_and_too_large_pillow_images_are_reported_in_one_line(read, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:500])
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    for image in (closed, Image.open(tmp_path / "cut.png")):
        with pytest.raises(UserError, match=naming("Pillow image")):
            read(image)
    with pytest.raises(UserError, match=naming("200 x 100", "max_pixels")):
        read(Image.new("RGB", (200, 100)))
