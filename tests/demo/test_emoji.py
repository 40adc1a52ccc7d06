"""Animated emoji: clips with their CLDR names, from packages that the tests create."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset.config import CaptionedSplitConfig, VideoReadingConfig
from dataset.formats.captioned import read_captioned_images
from dataset.media.encoded import pixels_of
from dataset.media.video import read_frames
from dataset.prepare.folders import split_by_hash
from demo import emoji
from demo.folder import LANGUAGES, FolderFlags
from tests.demo.scene_texts import read
from tests.messages import naming
from utils.errors import UserError

COUNT = 30


def webp(number: int, frames: int = 5) -> bytes:
    """A grey that becomes lighter, with a transparent half."""
    images = []
    for frame in range(frames):
        pixels = np.zeros((16, 16, 4), dtype=np.uint8)
        pixels[:, :8] = (40 * frame, number, 0, 255)
        images.append(Image.fromarray(pixels))
    stream = io.BytesIO()
    images[0].save(stream, "WEBP", save_all=frames > 1, append_images=images[1:], duration=40, lossless=True)
    return stream.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def signs() -> dict[str, str]:
    return {f"1f{600 + n}": f"face number {n}" for n in range(COUNT)}


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    files = {f"assets/{code}.webp": webp(n) for n, code in enumerate(signs())}
    files |= {
        "assets/1f0cf.webp": webp(1, frames=1),
        "assets/1faff.webp": webp(2),
        "assets/logo-abcdef012345.webp": webp(3),
    }
    files |= {"assets/1f700-fe0f.webp": webp(4), "assets/1f701.webp": b"RIFF....WEBPVP8X....\x02 cut"}
    pack(folder / "lobehub-fluent-emoji-anim-1-1.0.0.tgz", files)
    names = {chr(int(code, 16)): name for code, name in signs().items()}
    own = {**names, chr(0x1F700): "sign with a variation", chr(0x1F701): "damaged"}
    for package, inside, signs_of_package in (
        ("cldr-annotations-full-48.2.0", "annotations", own),
        ("cldr-annotations-derived-full-48.2.0", "annotationsDerived", {"x": "unused"}),
    ):
        tables = {}
        for language in LANGUAGES:
            table = {sign: {"default": ["a"], "tts": [f"{name} {language}"]} for sign, name in signs_of_package.items()}
            if language == "ja":
                table.pop(chr(0x1F700), None)
            content = json.dumps({inside: {"identity": {}, "annotations": table}})
            tables[f"{inside}/{language}/annotations.json"] = content.encode()
        pack(folder / f"{package}.tgz", tables)
    return folder


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "emoji"
    emoji.emoji(output=FolderFlags(out=out), packages=packages, side=24, frames=3, vocab_size=200)
    return out


def test_named_animated_emoji_become_clips_in_the_split_of_their_name(built):
    everything = {split: read(built, split) for split in ("train", "val", "test")}
    assert sum(map(len, everything.values())) == COUNT + 1
    for split, records in everything.items():
        assert all(split_by_hash(row["caption"]["en"]) == split for row in records)
    facts = json.loads((built / "emoji.json").read_text())
    assert facts["skipped"] == {"no name": 2, "still picture": 1, "unreadable picture": 1}
    assert facts["clips"] == {split: len(records) for split, records in everything.items()}
    varied = next(row for records in everything.values() for row in records if row["image_id"] == "1f700-fe0f")
    assert varied["caption"].keys() == {"en", "de", "fr", "cs", "zh"}


def test_a_clip_has_evenly_spaced_frames(built):
    row = read(built, "train")[0]
    config = CaptionedSplitConfig(annotations=str(built / "train.jsonl"), language="en")
    items = read_captioned_images(config, "data.train", 0.0)
    frames = read_frames(items.images[0], VideoReadingConfig(), range, pixels_of, 10**6)
    assert items.captions[0] == row["caption"]["en"]
    assert len(frames) == 3
    assert all(frame.shape == (3, 24, 24) for frame in frames)
    red = [frame[0, 12, 4].item() for frame in frames]
    assert red[0] < 20 and 60 < red[1] < 100 and 140 < red[2] < 180


def test_transparent_pixels_become_white():
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[:, :8, 3] = 255
    stream = io.BytesIO()
    images = [Image.fromarray(pixels), Image.fromarray(pixels[:, ::-1].copy())]
    images[0].save(stream, "PNG", save_all=True, append_images=images[1:])
    first, second = (np.asarray(frame) for frame in emoji.draw_frames(stream.getvalue(), 16, 8))
    assert first[8, 2].max() < 20 and first[8, 13].min() > 235
    assert second[8, 13].max() < 20 and second[8, 2].min() > 235


def test_missing_or_damaged_packages_are_reported_in_one_line(packages, tmp_path):
    with pytest.raises(UserError, match=naming("cldr-annotations-full-*.tgz", "npm pack cldr-annotations-full")):
        emoji.emoji(output=FolderFlags(out=tmp_path / "out"), packages=tmp_path)
    for path in packages.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "lobehub-fluent-emoji-anim-1-1.0.0.tgz"
    (tmp_path / name).write_bytes((packages / name).read_bytes()[:500])
    with pytest.raises(UserError, match=r"anim-1-1.0.0.tgz: not a complete package"):
        emoji.emoji(output=FolderFlags(out=tmp_path / "out"), packages=tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"run `npm pack @lobehub/fluent-emoji-anim-1`"):
        emoji.emoji(output=FolderFlags(out=tmp_path / "out"), packages=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("annotation", [{"tts": [3]}, {"tts": ["face"], "default": [3]}])
def test_annotations_that_are_not_text_are_reported_in_one_line(annotation, packages, tmp_path):
    for path in packages.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = json.dumps({"annotations": {"annotations": {"x": annotation}}}).encode()
    tables = {f"annotations/{language}/annotations.json": table for language in LANGUAGES}
    pack(tmp_path / "cldr-annotations-full-48.2.0.tgz", tables)
    with pytest.raises(UserError, match=naming("cldr-annotations-full-48.2.0.tgz", "'x'", "not text")):
        emoji.emoji(output=FolderFlags(out=tmp_path / "out"), packages=tmp_path)


def test_a_folder_built_with_other_arguments_is_kept(built, packages):
    before = (built / "train.jsonl").stat().st_mtime_ns
    emoji.emoji(output=FolderFlags(out=built), packages=packages, side=24, frames=3, vocab_size=200)
    assert (built / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=naming("frames=3", "4")):
        emoji.emoji(output=FolderFlags(out=built), packages=packages, side=24, frames=4, vocab_size=200)
