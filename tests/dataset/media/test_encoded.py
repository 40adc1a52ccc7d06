"""Decoding of all kinds of images, image sizes read from headers, and the JPEG rows that a crop needs."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.broken import BrokenRecordError
from dataset.media.encoded import EncodedImage, JPEGFrame, crop, decode, encode_jpeg, jpeg_frame
from tests.messages import naming

MANY = 10**6


def encode(picture: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def picture() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK", "LA"])
def test_images_of_every_kind_become_8_bit_rgb(form, mode):
    try:
        content = encode(picture().convert(mode), form)
    except (OSError, ValueError):
        pytest.skip(f"{form} does not hold {mode}")
    image = decode(content, MANY)
    assert image.dtype == torch.uint8
    assert torch.equal(image, as_tensor(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_images_keep_their_upper_byte(form):
    deep = np.random.default_rng(0).integers(0, 65536, (48, 64)).astype(np.uint16)
    image = decode(encode(Image.fromarray(deep), form), MANY)
    assert np.array_equal(image[0].numpy(), (deep >> 8).astype(np.uint8))
    assert torch.equal(image[0], image[2])


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_the_first_frame_of_an_animation_is_used(form):
    frames = [picture(), picture().rotate(180)]
    content = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert torch.equal(decode(content, MANY), as_tensor(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"comment": b"x" * 999}, {"dpi": (72, 72)}, {"exif": b"x"}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_is_decoded_without_pillow(monkeypatch, mode, options):
    content = encode(picture().convert(mode), "JPEG", **options)
    assert jpeg_frame(content)[1:] == (64, 48, len(mode))
    assert jpeg_frame(encode(picture().convert("CMYK"), "JPEG", **options))[1:] == (64, 48, 4)
    expected = as_tensor(Image.open(io.BytesIO(content)))
    monkeypatch.setattr("dataset.media.encoded.Image.open", lambda *args, **more: pytest.fail("opened by Pillow"))
    assert torch.equal(decode(content, MANY), expected)
    with pytest.raises(BrokenRecordError, match=naming("image too large", "64 x 48", "max_pixels = 3071")):
        decode(content, 64 * 48 - 1)


def test_anything_but_a_plain_jpeg_is_decoded_by_pillow():
    frames = [picture(), picture().rotate(180)]
    several = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert jpeg_frame(several) is None
    assert torch.equal(decode(several, MANY), as_tensor(Image.open(io.BytesIO(several))))
    plain = encode(picture(), "JPEG")
    for other in (b"", b"\xff\xd8", encode(picture(), "PNG"), plain[:100], b"\xff\xd8" + bytes(100)):
        assert jpeg_frame(other) is None


def test_a_jpeg_truncated_at_any_byte_is_unreadable():
    plain = encode(picture(), "JPEG")
    for end in range(0, len(plain) - 2, 7):
        with pytest.raises(BrokenRecordError, match=f"unreadable image: {end} bytes: "):
            decode(plain[:end], MANY)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_truncated_image_is_unreadable(form):
    content = encode(picture(), form)
    with pytest.raises(BrokenRecordError, match="unreadable image"):
        decode(content[: len(content) * 2 // 3], MANY)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"not a picture" * 20])
def test_a_file_that_is_not_an_image_is_unreadable(content):
    with pytest.raises(BrokenRecordError, match=naming("unreadable image", f"{len(content)} bytes")):
        decode(content, MANY)


def test_an_image_that_is_too_large_is_never_decoded(monkeypatch):
    small = encode(picture(), "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *args, **more: pytest.fail("decoded"))
    with pytest.raises(BrokenRecordError, match="image too large: 64 x 48 pixels, more than max_pixels = 3071"):
        decode(small, 64 * 48 - 1)
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small[24:29]
    huge = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(BrokenRecordError, match="image too large"):
        decode(huge, 10**8)


def photo(width: int = 120, height: int = 100) -> Image.Image:
    """An image with smooth and noisy areas in all colours, so that neighbouring blocks of its JPEG file differ."""
    noise = np.random.default_rng(1).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


JPEG_KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "thumbnail": {"exif": b"Exif\0\0" + encode(photo(20, 20), "JPEG")},
}


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", kind) for kind in JPEG_KINDS]
    + [(mode, kind) for mode in ("L", "CMYK") for kind in ("progressive", "restarts", "thumbnail")],
)
def test_a_crop_of_a_jpeg_equals_the_same_part_of_the_whole(capfd, mode, kind):
    options = JPEG_KINDS[kind]
    content = encode(photo().convert(mode), "JPEG", **options)
    whole = as_tensor(Image.open(io.BytesIO(content)))
    for bottom in (1, 15, 16, 17, 31, 32, 33, 47, 48, 79, 80, 81, 95, 96, 97, 99, 100):
        top, left = bottom // 3, bottom // 2
        part = crop(EncodedImage(content, MANY), top, left, bottom - top, 40)
        assert torch.equal(part, whole[:, top:bottom, left : left + 40]), bottom
    assert capfd.readouterr() == ("", ""), "libjpeg's warnings"


def test_rows_below_a_crop_are_not_decoded():
    picture = EncodedImage(encode(photo(), "JPEG"), MANY)
    assert [picture.rows(count).shape[1] for count in (1, 15, 16, 40, 90, 96, 100)] == [16, 16, 32, 48, 96, 100, 100]
    assert picture.pixels().shape == picture.shape


def test_a_crop_of_another_format_equals_the_same_part_of_the_whole():
    whole = as_tensor(photo())
    for image in (EncodedImage(encode(photo(), "PNG"), MANY), whole):
        assert torch.equal(crop(image, 10, 20, 30, 40), whole[:, 10:40, 20:60])


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "thumbnail"])
def test_a_jpeg_that_is_truncated_below_the_crop_is_unreadable(kind):
    content = encode(photo(), "JPEG", **JPEG_KINDS[kind])
    with pytest.raises(BrokenRecordError, match=naming("unreadable image", "end of the JPEG")):
        crop(EncodedImage(content[:-20], MANY), 0, 0, 16, 16)


def test_images_with_faults_that_libjpeg_repairs_are_kept(capfd):
    content = encode(photo(), "JPEG")
    stuffed = content[:-2] + bytes(50) + content[-2:] + b"appended"
    assert torch.equal(decode(stuffed, MANY), decode(content, MANY))
    assert capfd.readouterr() == ("", "")


def test_a_subsampling_that_turbojpeg_does_not_know_is_decoded_by_pillow(monkeypatch):
    def unknown(*args, **options):
        raise ValueError("unknown subsampling")

    content = encode(photo(), "JPEG")
    whole = as_tensor(Image.open(io.BytesIO(content)))
    monkeypatch.setattr("dataset.media.encoded.simplejpeg.decode_jpeg", unknown)
    assert torch.equal(crop(EncodedImage(content, MANY), 10, 20, 30, 40), whole[:, 10:40, 20:60])


def test_the_frame_header_is_found_after_the_one_of_a_thumbnail():
    content = encode(photo(), "JPEG", **JPEG_KINDS["thumbnail"])
    frame = jpeg_frame(content)
    assert frame == JPEGFrame(content.rfind(b"\xff\xc0"), 120, 100, 3)


@pytest.mark.parametrize("laid", ["channels last", "planes"])
def test_a_decoded_image_has_the_right_orientation_and_colours(laid):
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    image[0, :16, :32], image[1, :16, 32:], image[2, 16:, :32] = 200, 150, 250  # red, green; blue, black
    image = image.contiguous() if laid == "planes" else image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    content = encode_jpeg(image, 90)
    for found in (decode(content, MANY), as_tensor(Image.open(io.BytesIO(content)))):
        assert found.shape == image.shape
        apart = (found.int() - image.int()).abs()
        assert apart[:, [4, 11, 20, 27]][:, :, [4, 27, 36, 59]].max() < 12  # colours blend at the borders
    frame = jpeg_frame(content)
    assert frame is not None
    assert content[frame.at + 11] == 0x22  # two samples in each direction for one of the other components
    assert len(encode_jpeg(as_tensor(picture()), 30)) < len(encode_jpeg(as_tensor(picture()), 90))


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 3\n%%EndComments\nshowpage\n", b"%PDF-1.4\n"]
)
def test_no_program_is_started_to_decode_an_image(monkeypatch, content):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **more: pytest.fail("Ghostscript was started"))
    with pytest.raises(BrokenRecordError, match=naming("JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM")):
        decode(content, MANY)


def test_a_portable_map_is_read():
    assert torch.equal(decode(encode(picture(), "PPM"), MANY), as_tensor(picture()))
