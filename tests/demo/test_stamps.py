"""Stamps become records. The tests create a small folder of stamps."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from demo.cutouts import joined_captions, place_cutouts
from demo.folder import FolderFlags
from demo.stamps import caption_key, find_stamps, read_captions, split_stamps, stamps
from tests.demo.scene_texts import read
from tests.messages import naming
from utils.commands import call
from utils.errors import UserError

NAMES = [
    f"{colour} {thing}" for colour in ("red", "blue", "green", "grey") for thing in ["bus", "cat", "cup", "fox", "key"]
]
TONES = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 160, 20), "grey": (120, 120, 120)}


def _cutout(path, rgb, size=(40, 30), alpha=255):
    pixels = np.zeros((size[1], size[0], 4), dtype=np.uint8)
    pixels[4:-4, 6:-6] = (*rgb, alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    for number, name in enumerate(NAMES):
        path = folder / "things" / f"{number:02d}.png"
        _cutout(path, TONES[name.split()[0]])
        text = f"A {name}.\nde.utf8=Das {name}.\nzh_CN.utf8=东西{number}。\npt.utf8=x\nja.utf8=\n"
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    for number, name in enumerate(NAMES):  # a second cut-out of each name, spelled with other letter case
        path = folder / "variants" / f"{number:02d}.png"
        _cutout(path, TONES[name.split()[0]], size=(44, 60))
        path.with_suffix(".txt").write_text(f"a {name.upper()}!\n", encoding="utf-8")
    _cutout(folder / "symbols" / "letter.png", (0, 0, 0))
    _cutout(folder / "broken" / "no_text.png", (0, 0, 0))
    _cutout(folder / "broken" / "empty.png", (0, 0, 0))
    (folder / "broken" / "empty.txt").write_text("\nde.utf8=Etwas\n", encoding="utf-8")
    _cutout(folder / "broken" / "invisible.png", (0, 0, 0), alpha=3)
    (folder / "broken" / "invisible.txt").write_text("A ghost.\n", encoding="utf-8")
    (folder / "broken" / "cut.png").write_bytes((folder / "things" / "00.png").read_bytes()[:60])
    (folder / "broken" / "cut.txt").write_text("A half.\n", encoding="utf-8")
    Image.new("1", (4097, 4097)).save(folder / "broken" / "huge.png")
    (folder / "broken" / "huge.txt").write_text("A giant.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def built(package, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    stamps(output=FolderFlags(out=out), stamps=package, regions=30, side=96, vocab_size=200)
    return out


def test_captions_are_read_by_language_and_a_missing_one_has_no_key(package):
    assert read_captions(package / "things" / "03.txt") == {"en": "A red fox.", "de": "Das red fox.", "zh": "东西3。"}


def test_skipped_stamps_are_counted_by_reason(package):
    usable, skipped = find_stamps(package)
    assert len(usable) == 2 * len(NAMES)
    assert skipped == {
        "symbol": 1,
        "no text": 1,
        "empty caption": 1,
        "invisible picture": 1,
        "unreadable picture": 1,
        "picture too large": 1,
    }


def test_variants_of_a_caption_share_a_split_and_held_out_captions_are_distinct(package):
    usable, _ = find_stamps(package)
    skipped = Counter()
    splits = split_stamps(usable, skipped)
    keys = {split: [stamp.key for stamp in members] for split, members in splits.items()}
    assert all(keys.values())
    assert not set(keys["train"]) & set(keys["val"] + keys["test"])
    assert not set(keys["val"]) & set(keys["test"])
    for split in ("val", "test"):
        assert len(set(keys[split])) == len(keys[split]) == skipped[f"same caption in {split}"]
    assert len(keys["train"]) == 2 * len(set(keys["train"]))
    none = Counter()
    split_stamps([stamp for stamp in usable if stamp.name.startswith("things")], none)
    assert not none.keys()


def test_caption_keys_ignore_case_and_punctuation():
    assert caption_key("A “Fuji” apple.") == caption_key("a  Fuji apple!") == "a fuji apple"
    assert caption_key("…") == ""


def test_images_of_both_kinds_stay_in_their_split(built):
    names = {}
    for split in ("train", "val", "test"):
        images = read(built, f"{split}")
        assert images
        names[split] = {caption_key(record["caption"]["en"]) for record in images}
        for record in images:
            with Image.open(built / record["image"]) as image:
                assert max(image.size) <= 96
        regions = read(built, f"regions_{split}")
        assert len(regions) == (30 if split == "train" else 3)
        assert {caption_key(elem["caption"]["en"]) for record in regions for elem in record["elems"]} <= names[split]
    assert not names["train"] & names["test"]


def test_region_boxes_are_exact_and_do_not_overlap(built):
    counts = set()
    for record in read(built, "regions_train"):
        with Image.open(built / record["image"]) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        covered = np.zeros(pixels.shape[:2], dtype=int)
        for elem in record["elems"]:
            x, y, w, h = elem["bb"]
            assert min(x, y) >= 0
            assert min(w, h) > 0
            assert x + w <= 96
            assert y + h <= 96
            covered[y : y + h, x : x + w] += 1
            # The cut-outs are filled rectangles, so the box has a single colour (up to JPEG artefacts), which the text names.
            tone = TONES[elem["caption"]["en"].lower().split()[1]]
            distance = np.abs(pixels[y : y + h, x : x + w] - tone).max(axis=2)
            assert np.mean(distance < 60) > 0.8
        assert covered.max() == 1
        counts.add(len(record["elems"]))
    assert counts == {1, 2, 3, 4}


def test_a_placed_cutout_fills_its_box(package):
    usable, _ = find_stamps(package)
    for seed in range(10):
        placed = place_cutouts(np.random.default_rng(seed), usable, 96)
        assert len({stamp.key for stamp, _, _ in placed}) == len(placed)
        for _, cutout, (_, _, w, h) in placed:
            assert cutout.getchannel("A").getbbox() == (0, 0, w, h)


def test_captions_are_joined_in_the_languages_that_all_of_them_have():
    joined = joined_captions([{"en": "A cat", "de": "Eine Katze", "ja": "ねこ"}, {"en": "Boom!", "ja": "どかん！"}])
    assert joined == {"en": "A cat. Boom!", "ja": "ねこ。どかん！"}
    assert joined_captions([{"en": "word " * 40}]) == {}


def test_the_same_arguments_give_the_same_records_and_another_seed_does_not_move_a_split(package, built, tmp_path):
    stamps(output=FolderFlags(out=tmp_path / "again"), stamps=package, regions=30, side=96, vocab_size=200)
    stamps(output=FolderFlags(out=tmp_path / "other"), stamps=package, regions=30, side=96, vocab_size=200, seed=1)
    for name in ("train.jsonl", "regions_test.jsonl", "tokenizer/tokenizer.json"):
        assert (built / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (built / "test.jsonl").read_bytes() == (tmp_path / "other" / "test.jsonl").read_bytes()
    assert (built / "regions_train.jsonl").read_bytes() != (tmp_path / "other" / "regions_train.jsonl").read_bytes()


def test_other_arguments_are_rejected(package, built):
    with pytest.raises(UserError, match=naming("side=96", "64")):
        stamps(output=FolderFlags(out=built), stamps=package, regions=30, side=64, vocab_size=200)


def test_a_missing_package_is_reported_in_one_line_with_the_remedy(tmp_path, monkeypatch, capsys):
    argv = ["--out", str(tmp_path / "out"), "--stamps", str(tmp_path / "none")]
    assert call(stamps, argv, "python -m demo.stamps") == 2
    error = capsys.readouterr().err
    assert "apt install tuxpaint-stamps-default" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_last_line_reports_skipped_stamps(package, tmp_path, monkeypatch, capsys):
    flags = ["--stamps", str(package), "--regions", "2", "--side", "64", "--vocab-size", "200"]
    argv = ["--out", str(tmp_path / "out"), *flags]
    assert call(stamps, argv, "python -m demo.stamps") == 0
    closing = capsys.readouterr().out
    assert closing.count("\n") == 1
    assert "1 no text" in closing
    assert "1 unreadable picture" in closing
    assert call(stamps, argv, "python -m demo.stamps") == 0
    assert "nothing to do" in capsys.readouterr().out
