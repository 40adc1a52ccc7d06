"""Official multilingual files become records: Multi30K, COCO in three languages, WikiMatrix and WIT. Mistakes are reported in one
line."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dataset.config import CaptionedSplitConfig
from dataset.formats.captioned import read_captioned_images
from dataset.prepare import split_files
from dataset.prepare.sets import multilingual_coco
from run import main
from tests.dataset.prepare.official import contents, counted, prepared, write
from tests.dataset.prepare.set_errors import one_line
from tests.messages import OneLine, naming
from utils.errors import UserError

TRANSLATED = {"train": 3, "val": 2, "test_2016_flickr": 2}


@pytest.fixture
def repository(tmp_path):
    """A small copy of multi30k/dataset, with compressed translations, and descriptions in another order of images."""
    tasks = tmp_path / "dataset" / "data"
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
    return tmp_path / "dataset"


def test_multi30k_has_five_captions_in_english_and_german_and_one_in_french_and_czech(repository, tmp_path):
    prepared("multi30k", repository, tmp_path)
    rows = lines_of(tmp_path / "multi30k/test.jsonl")
    assert [row["image"] for row in rows] == ["test_2016_flickr0.jpg", "test_2016_flickr1.jpg"]
    message = rows[1]["caption"]
    assert {language: len(captions) for language, captions in message.items()} == {"en": 5, "de": 5, "fr": 1, "cs": 1}
    assert message["de"][4] == "de 5 test_2016_flickr1.jpg"
    assert message["cs"] == ["cs one test_2016_flickr1.jpg"]


def test_retrieval_reads_multi30k_in_one_language_or_all(repository, tmp_path, capsys):
    argv = ["prepare", "multi30k", "--raw", str(repository), "--out", str(tmp_path)]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/multi30k: 7 records")
    assert main(argv) == 0
    assert OneLine("nothing to do") in capsys.readouterr().out.splitlines()
    assert main(["prepare", "--check", str(tmp_path)]) == 0
    out = tmp_path / "multi30k"
    for split, count in TRANSLATED.items():
        for number in range(count):
            Image.new("RGB", (4, 4)).save(out / f"{split}{number}.jpg")
    counts = {}
    for language in ("en", "cs", None):
        config = CaptionedSplitConfig(annotations=str(out / "test.jsonl"), language=language)
        counts[language] = len(read_captioned_images(config, "evaluation.test.a", 0.0).captions)
    assert counts == {"en": 10, "cs": 2, None: 24}


def test_multi30k_without_task_2_has_one_caption_in_each_language(repository, tmp_path):
    shutil.rmtree(repository / "data/task2")
    prepared("multi30k", repository, tmp_path)
    [first, *_] = lines_of(tmp_path / "multi30k/train.jsonl")
    assert first["caption"]["de"] == ["de one train0.jpg"]


def test_truncated_or_missing_multi30k_files_are_reported_in_one_line(repository, tmp_path, capsys):
    raw = repository / "data/task1/raw/train.fr.gz"
    raw.write_bytes(gzip.compress(b"une\ndeux\n"))
    assert one_line("multi30k", repository, tmp_path / "out") == OneLine("train.fr.gz has 2 lines for 3 images")
    raw.write_bytes(gzip.compress(b"une\n\ndeux\n"))
    assert one_line("multi30k", repository, tmp_path / "out") == OneLine("train.fr.gz:2", "empty caption")
    raw.unlink()
    assert one_line("multi30k", repository, tmp_path / "out") == OneLine("task1/train.fr", "multi30k/dataset")
    assert main(["prepare", "multi30k", "--raw", str(repository), "--verify"]) == 2
    assert OneLine("--verify", "its own splits") in capsys.readouterr().err.splitlines()


def coco_name(number: int, split: str = "val2014") -> str:
    return f"COCO_{split}_{number:012d}"


@pytest.fixture
def coco(tmp_path):
    """Karpathy's splits: images 1 and 2 train, 3 restval, 4 val, 5 test. COCO-CN trains on 1 and 4, validates on 3 and tests on
    2."""
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
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    for split, numbers in (("train", ()), ("val", splits)):
        stair = {
            "images": [{"id": n, "file_name": f"{coco_name(n)}.jpg"} for n in numbers],
            "annotations": [{"id": 10 * n, "image_id": n, "caption": f"日本 {n}"} for n in numbers],
        }
        (tmp_path / f"stair_captions_v1.2_{split}.json").write_text(json.dumps(stair))
    chinese = tmp_path / "cn"
    chinese.mkdir()
    lines = "".join(f"{coco_name(n)}#0\t中 文{n}\n" for n in (1, 2, 3, 4))
    (chinese / "imageid.human-written-caption.txt").write_text(lines, encoding="utf-8")
    for split, numbers in (("train", (1, 4)), ("val", (3,)), ("test", (2,))):
        (chinese / f"coco-cn_{split}.txt").write_text("".join(f"{coco_name(n)}\n" for n in numbers))
    return tmp_path


def test_coco_keeps_the_splits_of_karpathy_and_coco_cn_without_adding_held_out_images(coco, tmp_path):
    prepared("multilingual_coco", coco, tmp_path / "out")

    def read(name: str) -> dict[int, dict]:
        rows = lines_of(tmp_path / f"out/coco_multilingual/{name}.jsonl")
        return {row["image_id"]: row["caption"] for row in rows}

    assert sorted(read("karpathy_train")) == [1, 2, 3]
    assert read("karpathy_test") == read("karpathy_test_1k") == {5: {"en": ["en 5"], "ja": ["日本 5"]}}
    assert read("coco_cn_test") == {2: {"zh": ["中文2"]}}
    assert read("joint_train") == {1: {"en": ["en 1"], "ja": ["日本 1"], "zh": ["中文1"]}}


def test_the_small_test_split_of_coco_has_the_first_test_images(coco, tmp_path, monkeypatch):
    file = coco / "dataset_coco.json"
    content = json.loads(file.read_text())
    content["images"][3]["split"] = "test"
    file.write_text(json.dumps(content))
    monkeypatch.setattr(multilingual_coco, "SMALL_TEST", 1)
    prepared("multilingual_coco", coco, tmp_path / "out")
    images = [
        [row["image_id"] for row in lines_of(tmp_path / f"out/coco_multilingual/{name}.jsonl")]
        for name in ("karpathy_test", "karpathy_test_1k")
    ]
    assert images == [[4, 5], [4]]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_coco.json", json.dumps({"images": [{"filename": "a"}]}), ("images[0]", "Karpathy's")),
        ("stair_captions_v1.2_val.json", json.dumps({"annotations": [{"image_id": 1}]}), ("annotations[0]", "STAIR's")),
        (
            "stair_captions_v1.2_val.json",
            json.dumps({"annotations": [{"image_id": 9, "caption": "a"}]}),
            ("annotations[0]", "STAIR's"),
        ),
        (
            "cn/coco-cn_test.txt",
            f"{coco_name(9)}\n",
            ("coco-cn_test.txt:1", "'COCO_val2014_000000000009' has no caption"),
        ),
        ("cn/imageid.human-written-caption.txt", "a caption\n", ("imageid.human-written-caption.txt:1", "no tab")),
    ],
)
def test_other_files_in_place_of_coco_are_reported_in_one_line(coco, tmp_path, file, content, message):
    (coco / file).write_text(content)
    assert one_line("multilingual_coco", coco, tmp_path / "out") == OneLine(*message)


def test_records_without_the_language_are_skipped_and_a_missing_language_is_named(tmp_path):
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

    assert list(captions("de")) == ["ein Hund"]
    assert list(captions("en")) == ["a dog", "a cat"]
    with pytest.raises(UserError, match=naming("data.train", "rows.jsonl", "fr", "en, de")):
        captions("fr")


def test_wikimatrix_keeps_only_good_translations(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    path = raw / "WikiMatrix.de-en.tsv.gz"
    path.write_bytes(gzip.compress(b"1.2\tein Hund\ta dog\n1.01\tx\ty\n1.3\t\tz\n"))
    prepared("wikimatrix", raw, tmp_path)
    assert lines_of(tmp_path / "wikimatrix/WikiMatrix.de-en.jsonl") == [
        {"source_text": "ein Hund", "target_text": "a dog"}
    ]
    assert counted(tmp_path / "wikimatrix")["skipped"] == {"low score": 1, "empty text": 1}
    assert "min_score" in one_line("wikimatrix", raw, tmp_path, min_score=1.0)
    prepared("wikimatrix", raw, tmp_path, min_score=1.0, overwrite=True)
    assert len(lines_of(tmp_path / "wikimatrix/WikiMatrix.de-en.jsonl")) == 2
    path.write_bytes(gzip.compress(b"1.2\tein Hund\n"))
    assert one_line("wikimatrix", raw, tmp_path / "out") == OneLine("WikiMatrix.de-en.tsv.gz:1", "score")
    path.write_bytes(b"no archive")
    assert "download it again" in one_line("wikimatrix", raw, tmp_path / "out")
    path.unlink()
    assert "no WikiMatrix." in one_line("wikimatrix", raw, tmp_path / "out")


@pytest.fixture
def wit_rows(tmp_path) -> list[dict]:
    """Two captions of one image, and an empty caption."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "JPEG")
    content = base64.b64encode(stream.getvalue()).decode()
    return [
        {"image_url": f"http://{image}", "caption_reference_description": text, "image_content": content}
        for image, text in (("a", "犬"), ("a", "猫"), ("b", " "))
    ]


def write_wit(raw: Path, name: str, rows: list[dict]) -> None:
    write(raw / f"wit/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_wit_has_one_image_per_url_and_no_empty_captions(tmp_path, wit_rows):
    raw = tmp_path / "raw"
    write_wit(raw, "test_ja", wit_rows)
    prepared("wit", raw, tmp_path)
    assert counted(tmp_path / "wit")["skipped"] == {"empty text": 1}
    path = str(tmp_path / "wit/test_ja.jsonl")
    items = read_captioned_images(CaptionedSplitConfig(annotations=path), "evaluation.test.ja", 0.0)
    assert list(items.captions) == ["犬", "猫"] and len(items.images) == 1
    del wit_rows[0]["image_content"]
    write_wit(raw, "test_ja", [{**wit_rows[0], "image_url": "http://c"}])
    assert one_line("wit", raw, tmp_path / "out") == OneLine("test_ja.jsonl:1", "image_content", "image_url")


def test_an_interrupted_set_of_splits_resumes_after_its_last_complete_file(tmp_path, wit_rows, monkeypatch):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_wit(raw, "test_en", wit_rows)
    write_wit(raw, "test_ja", wit_rows[:2])
    prepared("wit", raw, tmp_path / "complete")
    read = split_files.write_records

    def interrupted(path, records):
        if "test_ja" in path.name:
            next(iter(records))
            raise KeyboardInterrupt
        return read(path, records)

    with monkeypatch.context() as patched:
        patched.setattr(split_files, "write_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared("wit", raw, out)
    again = []
    monkeypatch.setattr(
        split_files, "write_records", lambda path, records: again.append(path.name) or read(path, records)
    )
    prepared("wit", raw, out)
    assert len(again) == 1 and "test_ja" in again[0]
    assert contents(out / "wit") == contents(tmp_path / "complete/wit")
    assert counted(out / "wit") == counted(tmp_path / "complete/wit")
    assert [path.name for path in (out / "wit/images").iterdir()] == [
        path.name for path in (tmp_path / "complete/wit/images").iterdir()
    ]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
