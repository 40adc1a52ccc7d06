"""Writes synthetic images, videos, captions and boxes of realistic sizes. Their contents are noise."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageFilter

from dataset.prepare.tokenizer import train_wordpiece

SIZES = ((640, 480), (640, 480), (640, 480), (640, 427), (640, 427), (480, 640), (427, 640), (500, 375))
"""Width and height of images, roughly in COCO's proportions."""
_TEXTURE = ((3, 70), (8, 40), (24, 24), (80, 14), (240, 9))
"""Number of cells across, and amplitude in grey levels, of each layer of smooth noise."""
_GRAIN = 22
VIDEO_SIZE = (596, 336)
"""Width and height of WebVid's small files."""
_FPS = 25
_VIDEO_GRAIN = 4
_SHORT_SIDE = 256
"""Short side in pixels of the images in a list of frames."""
_WORDS = 4000
_SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvw" for vowel in "aeio"]


def write_records(folder: Path, images: int, records: int, *, divide: int = 1, quality: int = 90) -> float:
    """Writes ``images`` JPEG files, ``pairs.jsonl`` and ``regions.jsonl`` with ``records`` records each, and a ``tokenizer``.

    The sides of the images are divided by ``divide``. Returns the mean size of a JPEG file in bytes.
    """
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(_SYLLABLES, int(rng.integers(1, 5)))) for _ in range(_WORDS)]
    sizes = [(width // divide, height // divide) for width, height in (SIZES[n % len(SIZES)] for n in range(images))]
    for number, (width, height) in enumerate(sizes):
        noise_image(width, height, rng).save(folder / f"{number}.jpg", "JPEG", quality=quality)
    pairs: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    for number in range(records):
        image, size = f"{number % images}.jpg", sizes[number % images]
        pairs.append({"image": image, "caption": caption(words, 10.5, 2.5, rng)})
        elems = [{"bb": box(*size, rng), "caption": caption(words, 3.5, 1.5, rng)} for _ in range(8)]
        regions.append({"image": image, "caption": caption(words, 10.5, 2.5, rng), "elems": elems})
    for name, lines in (("pairs", pairs), ("regions", regions)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    # Trained on all texts, so that most words are in its vocabulary, as most words of captions are in BERT's.
    texts = [str(item["caption"]) for line in (*pairs, *regions) for item in (line, *line.get("elems", ()))]
    train_wordpiece(texts, folder / "tokenizer", vocab_size=30522)
    return sum(path.stat().st_size for path in folder.glob("*.jpg")) / images


def write_videos(folder: Path, videos: int, records: int, *, seconds: int = 16, divide: int = 1) -> tuple[float, float]:
    """Writes ``videos`` H.264 files, in which one image pans and another moves, and the same videos as lists of JPEG frames.

    ``files.jsonl`` and ``lists.jsonl`` have ``records`` records each, which refer to the files and contain the lists (one frame
    per second). Returns the mean size of a file and of a frame in bytes.
    """
    rng = np.random.default_rng(0)
    width, height = (side // divide // 4 * 4 for side in VIDEO_SIZE)
    lists = [_write_video(folder / f"{number}.mp4", width, height, seconds, rng) for number in range(videos)]
    texts = [f"video {number}" for number in range(records)]
    for name, values in (("files", [f"{number}.mp4" for number in range(videos)]), ("lists", lists)):
        lines = [{"video": values[number % videos], "caption": text} for number, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    frame_bytes = [3 * len(frame) / 4 for frames in lists for frame in frames]
    return sum(path.stat().st_size for path in folder.glob("*.mp4")) / videos, sum(frame_bytes) / len(frame_bytes)


def _write_video(path: Path, width: int, height: int, seconds: int, rng: np.random.Generator) -> list[str]:
    """Writes a file, with the encoder's default key frames. Returns one frame per second as JPEG in base64."""
    wide = noise_image(width + 20 * seconds, height, rng).filter(ImageFilter.GaussianBlur(1.5))
    moving, frames = noise_image(height // 3, height // 3, rng), []
    grain = _VIDEO_GRAIN * rng.standard_normal((height + _FPS, width, 1), dtype=np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * _FPS):
            left = 20 * number // _FPS
            frame = wide.crop((left, 0, left + width, height))
            frame.paste(moving, (int((width - height / 3) * (0.5 + 0.5 * np.sin(number / 40))), height // 3))
            shift = int(rng.integers(_FPS))
            pixels = (np.asarray(frame) + grain[shift : shift + height]).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            if number % _FPS == 0:
                frames.append(_as_base64(frame))
        container.mux(stream.encode())
    return frames


def _as_base64(frame: Image.Image) -> str:
    scale, stream = min(1.0, _SHORT_SIDE / min(frame.size)), io.BytesIO()
    frame.resize((round(frame.width * scale), round(frame.height * scale))).save(stream, "JPEG", quality=90)
    return base64.b64encode(stream.getvalue()).decode()


def noise_image(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Returns an image of smooth noise at several scales, with grain."""
    planes = np.full((height, width, 3), 128, np.float32)
    for cells, strength in _TEXTURE:
        coarse = rng.standard_normal((max(2, cells * height // width), cells, 3))
        coarse = 0.5 * coarse + 0.9 * coarse.mean(axis=2, keepdims=True)  # colours differ less than brightness
        for channel in range(3):
            plane = Image.fromarray(coarse[..., channel].astype(np.float32))
            planes[..., channel] += strength * np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    planes += _GRAIN * rng.standard_normal((height, width, 1))
    return Image.fromarray(planes.clip(0, 255).astype(np.uint8))


def caption(words: list[str], mean: float, spread: float, rng: np.random.Generator) -> str:
    """Returns a sentence of random words with realistic frequencies. The number of words has this ``mean`` and standard deviation
    ``spread``."""
    count = max(1, round(rng.normal(mean, spread)))
    indices = (len(words) ** rng.random(count)).astype(int) - 1
    return " ".join(words[index] for index in indices).capitalize() + "."


def box(width: int, height: int, rng: np.random.Generator) -> list[int]:
    """Returns a random box, [x, y, width, height] in pixels, in an image of size ``width`` x ``height``."""
    w, h = int(rng.integers(8, width // 2)), int(rng.integers(8, height // 2))
    return [int(rng.integers(width - w)), int(rng.integers(height - h)), w, h]
