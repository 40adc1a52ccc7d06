"""EXIF orientation and transparency are applied on every decoding path, and boxes follow the image as it is stored."""

from __future__ import annotations

import base64
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dataset.config import DataConfig, RegionAugmentConfig, RegionStreamConfig
from dataset.media.encoded import EncodedImage, crop, decode
from dataset.media.orientation import exif_orientation
from dataset.tasks.pretrain import PretrainBatches

MANY = 10**6
ORIENTATIONS = range(1, 9)


def painted() -> Image.Image:
    """A large grey image with corners of four colours, so that its eight orientations all differ."""
    image = Image.new("RGB", (96, 64), (128, 128, 128))
    for corner, colour in (((0, 0), "red"), ((64, 0), "lime"), ((0, 48), "blue")):
        image.paste(colour, (*corner, corner[0] + 32, corner[1] + 16))
    return image


def encode(image: Image.Image, form: str, orientation: int, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    image.save(stream, form, exif=exif, **options)
    return stream.getvalue()


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def far_apart(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


KINDS = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "MPO": {"quality": 100, "subsampling": 0, "save_all": True, "append_images": [painted()]},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", KINDS)
def test_an_image_is_rotated_according_to_exif(form, orientation):
    content = encode(painted(), form, orientation, **KINDS[form])
    opened = Image.open(io.BytesIO(content))
    shown = as_tensor(ImageOps.exif_transpose(opened))
    found = EncodedImage(content, MANY)
    assert found.shape == found.pixels().shape == shown.shape
    assert torch.equal(found.pixels(), shown)
    for pixels in ("stored", "unturned"):
        assert torch.equal(decode(content, MANY, pixels), as_tensor(opened))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_decoding_paths_agree_and_a_crop_equals_the_same_part_of_the_whole(monkeypatch, orientation):
    content = encode(painted(), "JPEG", orientation, **KINDS["JPEG"])
    whole = decode(content, MANY)
    assert torch.equal(crop(EncodedImage(content, MANY), 9, 5, 40, 50), whole[:, 9:49, 5:55])
    monkeypatch.setattr("dataset.media.encoded.jpeg_frame", lambda content: None)
    assert torch.equal(decode(content, MANY), whole), "by Pillow"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_file_in_each_orientation_is_decoded_upright(orientation):
    """The decoded image is the same, however the camera was held."""
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    carrier = Image.open(io.BytesIO(encode(painted(), "PNG", undo)))
    stored = ImageOps.exif_transpose(carrier)
    content = encode(stored, "JPEG", orientation, **KINDS["JPEG"])
    assert far_apart(decode(content, MANY), as_tensor(painted())) < 30


def box_of(pixels: torch.Tensor) -> list[int]:
    """x, y, w, h of the green part."""
    green = (pixels[1] > 200) & (pixels[0] < 60)
    rows, columns = torch.where(green)
    return [*map(int, (columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1))]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("pixels", ["shown", "stored"])
def test_a_box_stays_around_its_part_in_all_orientations(tokenizer, write_lines, tmp_path, orientation, pixels):
    content = encode(painted(), "JPEG", orientation, **KINDS["JPEG"])
    record = {
        "image": base64.b64encode(content).decode(),
        "elems": [{"bb": [64, 0, 32, 16], "caption": "a star"}],
    }
    plain = RegionAugmentConfig(flip=0, rand_augment_ops=0)
    data = DataConfig(
        cache_index=str(tmp_path / "index"),
        pixels=pixels,
        regions=RegionStreamConfig(
            files=[write_lines("a.jsonl", [record])], batch_size=1, max_images=1, crop=False, augment=plain
        ),
    )
    regions = PretrainBatches(data, tokenizer=tokenizer, image_size=96, patch_size=8, seed=0).make(0).regions
    cx, cy, w, h = (regions.boxes_cxcywh[0] * 96).tolist()
    assert box_of(regions.pixels[0]) == pytest.approx([cx - w / 2, cy - h / 2, w, h], abs=1.5)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_blended_on_white_and_raw_pixels_drop_alpha(form, mode):
    image = painted().convert(mode)
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    stream = io.BytesIO()
    image.save(stream, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    content = stream.getvalue()
    colour, share = as_tensor(image.convert("RGB")).float(), torch.from_numpy(np.array(alpha)).float() / 255
    on_white = colour * share + 255 * (1 - share)
    for pixels in ("shown", "unturned"):
        assert (decode(content, MANY, pixels) - on_white).abs().max() <= 1
    assert torch.equal(decode(content, MANY, "stored"), colour.to(torch.uint8))


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_transparent_palette_colour_becomes_white(form):
    image = painted().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    grey = image.getpixel((48, 32))
    stream = io.BytesIO()
    image.save(stream, form, transparency=grey)
    content = stream.getvalue()
    assert decode(content, MANY)[:, 32, 48].tolist() == [255, 255, 255]
    assert decode(content, MANY)[:, 4, 4].tolist() == [255, 0, 0]
    assert decode(content, MANY, "stored")[:, 32, 48].tolist() != [255, 255, 255]


def test_malformed_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    assert exif_orientation(whole) == 6
    for end in range(len(whole)):
        assert exif_orientation(whole[:end]) in (1, 6)
    big = b"MM\0*" + struct.pack(">IH", 8, 1) + struct.pack(">HHIHH", 0x0112, 3, 1, 8, 0)
    assert exif_orientation(big) == 8
    for bad in (b"", b"II", b"XX" + big[2:], big[:4] + b"\xff\xff\xff\xff", big.replace(b"\0\x08\0\0", b"\0\x09\0\0")):
        assert exif_orientation(bad) == 1
