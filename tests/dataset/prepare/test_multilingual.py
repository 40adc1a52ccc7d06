"""Official multilingual files become records: Multi30K, COCO in three languages, WikiMatrix, WIT; each mistake is one line."""

from __future__ import annotations

import base64
import gzip
import io
import json

import pytest
from PIL import Image

from dataset.formats.captioned import CaptionedSplitConfig, read_captioned_images
from dataset.prepare import multi30k, multilingual_coco, wikimatrix, wit
from run import main
from tests.messages import OneLine, naming
from utils.errors import UserError

TRANSLATED = {"train": 3, "val": 2, "test_2016_flickr": 2}


@pytest.fixture
def repository(tmp_path):
    """A copy of multi30k/dataset in small: translations packed, descriptions in another order of images."""
    tasks = tmp_path / "multi30k" / "data"
    for folder in ("task1/raw", "task1/image_splits", "task2/raw", "task2/image_splits"):
        (tasks / folder).mkdir(parents=True)
    for split, count in TRANSLATED.items():
        images = [f"{split}{n}.jpg" for n in range(count)]
        (tasks / f"task1/image_splits/{split}.txt").write_text("\n".join(images) + "\n")
        for language in ("en", "de", "fr", "cs"):
            lines = "".join(f"{language} one {image}\n" for image in images)
            (tasks / f"task1/raw/{split}.{language}.gz").write_bytes(gzip.compress(lines.encode()))
        described = "test_2016" if split.startswith("test") else split
        (tasks / f"task2/image_splits/{described}_images.txt").write_text("\n".join(images[::-1]) + "\n")
        for language in ("en", "de"):
            for number in range(1, 6):
                lines = "".join(f"{language} {number} {image}\n" for image in images[::-1])
                (tasks / f"task2/raw/{described}.{number}.{language}").write_text(lines)
    return tmp_path / "multi30k"


def test_multi30k_has_five_captions_in_english_and_german_and_one_in_french_and_czech(repository):
    rows = list(multi30k.records(repository, "test"))
    assert [row["image"] for row in rows] == ["test_2016_flickr0.jpg", "test_2016_flickr1.jpg"]
    said = rows[1]["caption"]
    assert {language: len(captions) for language, captions in said.items()} == {"en": 5, "de": 5, "fr": 1, "cs": 1}
    assert said["de"][4] == "de 5 test_2016_flickr1.jpg"
    assert said["cs"] == ["cs one test_2016_flickr1.jpg"]


def test_multi30k_is_read_by_retrieval_in_one_language_or_in_all(repository, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    argv = ["--source", str(repository), "--out", str(out)]
    assert main(["prepare", "multi30k", *argv]) == 0
    assert "3 in train.jsonl, 2 in val.jsonl, 2 in test.jsonl" in capsys.readouterr().out
    assert main(["prepare", "multi30k", *argv]) == 0
    assert OneLine("complete") in capsys.readouterr().out.splitlines()
    for split, count in TRANSLATED.items():
        for number in range(count):
            Image.new("RGB", (4, 4)).save(out / f"{split}{number}.jpg")
    counts = {}
    for language in ("en", "cs", None):
        config = CaptionedSplitConfig(annotations=str(out / "test.jsonl"), language=language)
        counts[language] = len(read_captioned_images(config, "evaluation.test.a", 0.0).captions)
    assert counts == {"en": 10, "cs": 2, None: 24}


def test_multi30k_that_is_cut_or_missing_is_one_line(repository, capsys, monkeypatch, tmp_path):
    raw = repository / "data/task1/raw/train.fr.gz"
    raw.write_bytes(gzip.compress(b"une\ndeux\n"))
    with pytest.raises(UserError, match=r"train.fr has 2 lines for 3 images"):
        list(multi30k.records(repository, "train"))
    raw.unlink()
    with pytest.raises(UserError, match=naming("train.fr", "train.fr.gz")):
        list(multi30k.records(repository, "train"))
    argv = ["--source", str(tmp_path / "no"), "--out", str(tmp_path / "out")]
    assert main(["prepare", "multi30k", *argv]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def coco_name(number: int, split: str = "val2014") -> str:
    return f"COCO_{split}_{number:012d}"


@pytest.fixture
def coco(tmp_path):
    """Images 1, 2 train, 3 restval, 4 val, 5 test of Karpathy; COCO-CN trains on 1 and 4, validates on 3 and tests on 2."""
    splits = {1: "train", 2: "train", 3: "restval", 4: "val", 5: "test"}
    images = [
        {
            "filepath": "val2014",
            "filename": f"{coco_name(n)}.jpg",
            "split": split,
            "cocoid": n,
            "sentences": [{"raw": f"en {n}"}],
        }
        for n, split in splits.items()
    ]
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": images}))
    for split, numbers in (("train", ()), ("val", splits)):
        stair = {
            "images": [{"id": n, "file_name": f"{coco_name(n)}.jpg"} for n in numbers],
            "annotations": [{"id": 10 * n, "image_id": n, "caption": f"日本 {n}"} for n in numbers],
        }
        (tmp_path / f"stair_{split}.json").write_text(json.dumps(stair))
    chinese = tmp_path / "cn"
    chinese.mkdir()
    lines = "".join(f"{coco_name(n)}#0\t中 文{n}\n" for n in (1, 2, 3, 4))
    (chinese / "imageid.human-written-caption.txt").write_text(lines, encoding="utf-8")
    for split, numbers in (("train", (1, 4)), ("val", (3,)), ("test", (2,))):
        (chinese / f"coco-cn_{split}.txt").write_text("".join(f"{coco_name(n)}\n" for n in numbers))
    return tmp_path


def test_coco_keeps_karpathys_splits_and_coco_cns_and_joins_no_held_out_image(coco, monkeypatch, capsys):
    arguments = ["--karpathy", coco / "karpathy.json", "--stair", coco / "stair_train.json", coco / "stair_val.json"]
    arguments += ["--coco-cn", coco / "cn", "--out", coco / "out"]
    argv = [*map(str, arguments)]
    assert main(["prepare", "multilingual_coco", *argv]) == 0, capsys.readouterr().err

    def read(name: str) -> dict[int, dict]:
        lines = (coco / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["image_id"]: row["caption"] for row in map(json.loads, lines)}

    assert sorted(read("karpathy_train")) == [1, 2, 3]
    assert read("karpathy_test") == read("karpathy_test_1k") == {5: {"en": ["en 5"], "ja": ["日本 5"]}}
    assert read("coco_cn_test") == {2: {"zh": ["中文2"]}}
    assert read("joint_train") == {1: {"en": ["en 1"], "ja": ["日本 1"], "zh": ["中文1"]}}


def test_the_small_test_of_coco_has_the_first_images_of_the_test(coco, monkeypatch, capsys):
    file = coco / "karpathy.json"
    content = json.loads(file.read_text())
    content["images"][3]["split"] = "test"
    file.write_text(json.dumps(content))
    arguments = ["--karpathy", file, "--stair", coco / "stair_train.json", coco / "stair_val.json"]
    arguments += ["--coco-cn", coco / "cn", "--out", coco / "out"]
    argv = [*map(str, arguments)]
    monkeypatch.setattr(multilingual_coco, "SMALL_TEST", 1)
    assert main(["prepare", "multilingual_coco", *argv]) == 0, capsys.readouterr().err
    images = [
        [json.loads(line)["image_id"] for line in (coco / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("karpathy_test", "karpathy_test_1k")
    ]
    assert images == [[4, 5], [4]]


def test_coco_files_of_another_kind_are_one_line(coco):
    (coco / "other.json").write_text(json.dumps({"images": [{"filename": "a"}]}))
    with pytest.raises(UserError, match=naming("images[0]", "dataset_coco.json")):
        multilingual_coco.read_karpathy(coco / "other.json")
    with pytest.raises(UserError, match=r"has no list 'annotations'"):
        multilingual_coco.read_stair([coco / "other.json"])
    (coco / "cn" / "coco-cn_test.txt").write_text(f"{coco_name(9)}\n")
    with pytest.raises(UserError, match=r"coco-cn_test.txt:1: 'COCO_val2014_000000000009' has no caption"):
        multilingual_coco.read_coco_cn(coco / "cn")


def test_records_without_the_language_are_left_out_and_a_language_that_none_has_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "image_id": 1, "caption": {"en": "a dog", "de": "ein Hund"}},
        {"image": "a.png", "image_id": 2, "caption": {"en": ["a cat"]}},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def captions(language: str) -> list[str]:
        return read_captioned_images(
            CaptionedSplitConfig(annotations=str(path), language=language), "data.train", 0.0
        ).captions

    assert captions("de") == ["ein Hund"]
    assert captions("en") == ["a dog", "a cat"]
    with pytest.raises(UserError, match=naming("data.train", "rows.jsonl", "fr", "en, de")):
        captions("fr")


def test_wikimatrix_keeps_texts_that_are_translations(tmp_path):
    path = tmp_path / "WikiMatrix.de-en.tsv.gz"
    path.write_bytes(gzip.compress(b"1.2\tein Hund\ta dog\n1.01\tx\ty\n1.3\t\tz\n"))
    assert list(wikimatrix.translations(path)) == [{"source_text": "ein Hund", "target_text": "a dog"}]
    path.write_bytes(gzip.compress(b"1.2\tein Hund\n"))
    with pytest.raises(UserError, match=naming("WikiMatrix.de-en.tsv.gz:1", "score")):
        list(wikimatrix.translations(path))
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read"):
        list(wikimatrix.translations(path))


def test_wikimatrix_makes_only_the_files_that_are_missing(tmp_path, monkeypatch, capsys):
    sources = [tmp_path / f"WikiMatrix.{pair}.tsv" for pair in ("de-en", "en-fr")]
    for source in sources:
        source.write_text("1.2\tein Hund\ta dog\n")
    out = tmp_path / "out"

    def run(*flags) -> int:
        argv = ["--out", str(out), "--source", *map(str, flags)]
        return main(["prepare", "wikimatrix", *argv])

    assert run(sources[0], tmp_path / "none.tsv") == 2
    assert "none.tsv cannot be read" in capsys.readouterr().err
    first = (out / "WikiMatrix.de-en.jsonl").stat()
    assert run(*sources) == 0
    assert capsys.readouterr().out == "".join(f"{out}/{source.stem}.jsonl: 1 translations\n" for source in sources)
    assert (out / "WikiMatrix.de-en.jsonl").stat() == first
    assert run(*sources, "--at-least", 1.1) == 2
    assert OneLine("at_least=1.04", "1.1") in capsys.readouterr().err.splitlines()


def test_wit_gives_an_image_for_each_address_and_leaves_out_empty_captions(tmp_path, monkeypatch):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "JPEG")
    content = base64.b64encode(stream.getvalue()).decode()
    rows = [
        {"image_url": "http://a", "caption_reference_description": "犬", "image_content": content},
        {"image_url": "http://a", "caption_reference_description": "猫", "image_content": content},
        {"image_url": "http://b", "caption_reference_description": " ", "image_content": content},
    ]
    source = tmp_path / "test_ja.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "wit"
    argv = ["--source", str(source), "--out", str(out)]
    assert main(["prepare", "wit", *argv]) == 0
    items = read_captioned_images(
        CaptionedSplitConfig(annotations=str(out / "test_ja.jsonl")), "evaluation.test.ja", 0.0
    )
    assert items.captions == ["犬", "猫"]
    assert len(items.images) == 1
    del rows[0]["image_content"]
    source.write_text(json.dumps({**rows[0], "image_url": "http://c"}))
    with pytest.raises(UserError, match=naming("test_ja.jsonl:1", "image_content", "image_url")):
        list(wit.records(source, out))
