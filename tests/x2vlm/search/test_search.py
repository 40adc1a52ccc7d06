"""An index of images, and its search in two stages."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.pretraining.model import PretrainModel
from run import main
from tests.messages import OneLine, naming
from utils.errors import NotRegularError, UserError
from x2vlm.model import Model
from x2vlm.runtime import TorchRuntime
from x2vlm.search import making
from x2vlm.search.figures import panels_of
from x2vlm.search.files import LOCK, IndexedImage, read_images, read_metadata, write_metadata
from x2vlm.search.index import BLOCK, ImageIndex
from x2vlm.search.making import build_index

TEXT = "a small red circle"


@pytest.fixture
def photos(scenes_folder, tmp_path) -> Path:
    """Eight scenes in two folders, a copy of one, a file that is not an image, and a broken image."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    scenes = sorted((scenes_folder / "images").rglob("*.png"))[:8]
    for number, scene in enumerate(scenes):
        shutil.copy(scene, folder / ("deep" if number % 2 else ".") / f"{number}.png")
    shutil.copy(scenes[2], folder / "deep/copy of 2.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "deep/broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    return folder


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def images_of(index: Path) -> list[IndexedImage]:
    return read_images(read_metadata(index).images_in(index))


def test_equal_images_are_embedded_once_and_broken_files_are_reported(model, photos, tmp_path):
    made = build_index(model("pretrain"), photos, tmp_path / "index")
    assert (made.images, made.copies, made.embedded) == (8, 1, 8)
    [broken] = made.broken
    assert (broken.place, broken.reason) == ("deep/broken.jpg", "unreadable image") and "broken.jpg" in broken.detail
    assert json.loads((tmp_path / "index/broken.jsonl").read_text()) == broken.to_values()
    index = ImageIndex(tmp_path / "index", model("pretrain"))
    images = images_of(tmp_path / "index")
    assert len(index) == 8 and len(images) == 9
    expected = model("pretrain").embed_images([photos / image.path for image in images[:8]])
    np.testing.assert_allclose(index.embeddings, expected, atol=1e-6)
    copies = {images[8].path, images[images[8].row].path}
    assert copies == {"2.png", "deep/copy of 2.png"}


def test_the_first_stage_uses_cosines_and_the_second_the_matching_head(model, photos, tmp_path):
    index = model("pretrain").index(photos, tmp_path / "index")
    paths = [photos / image.path for image in images_of(tmp_path / "index")[:8]]
    cosines = (model("pretrain").embed_images(paths) @ model("pretrain").embed_texts(TEXT).T)[:, 0]
    hits = index.search(TEXT, top=8, rerank=0)
    assert [hit.path for hit in hits] == [paths[index] for index in np.argsort(-cosines)]
    np.testing.assert_allclose([hit.cosine for hit in hits], np.sort(cosines)[::-1], atol=1e-6)
    assert all(hit.score is None and hit.box is None for hit in hits)
    scores = model("pretrain").match(paths, TEXT)[:, 0]
    best = np.argsort(-cosines)[:5]
    for again in range(2):  # from the images, then from the cache
        hits = index.search(TEXT, top=8, rerank=5)
        assert [hit.path for hit in hits[:5]] == [
            paths[index] for index in best[np.argsort(-scores[best], kind="stable")]
        ]
        np.testing.assert_allclose([hit.score for hit in hits[:5]], np.sort(scores[best])[::-1], atol=1e-5)
        assert [hit.score for hit in hits[5:]] == [None] * 3, again
    assert index.search(TEXT, top=2, rerank=5) == hits[:2]


def test_a_model_may_search_by_the_cosine_alone(model, photos, tmp_path, monkeypatch):
    plain = model("pretrain")
    score = plain.settings.evaluation.model_copy(update={"score": "cosine"})
    settings = plain.settings.model_copy(update={"evaluation": score})
    alone = Model(TorchRuntime(plain.network), plain.tokenizer, settings, origin="alone")
    index = alone.index(photos, tmp_path / "index")
    expected = plain.index(photos, tmp_path / "other").search(TEXT, top=8, rerank=0)
    monkeypatch.setattr(TorchRuntime, "margins", None)
    assert index.search(TEXT, top=8) == expected


def test_a_model_may_include_the_cosine_in_the_second_stage(model, photos, tmp_path):
    plain = model("pretrain")
    score = plain.settings.evaluation.model_copy(update={"score": "sum"})
    settings = plain.settings.model_copy(update={"evaluation": score})
    summing = Model(TorchRuntime(plain.network), plain.tokenizer, settings, origin="summing")
    index = summing.index(photos, tmp_path / "index")
    paths = [photos / image.path for image in images_of(tmp_path / "index")[:8]]
    cosines = (plain.embed_images(paths) @ plain.embed_texts(TEXT).T)[:, 0]
    scores = plain.match(paths, TEXT)[:, 0].astype(np.float64)
    summed = np.log(scores / (1 - scores)) + cosines / plain.network.contrastive.temperature.item()
    hits = index.search(TEXT, top=8)
    assert np.argsort(-summed).tolist() not in (np.argsort(-scores).tolist(), np.argsort(-cosines).tolist())
    assert [hit.path for hit in hits] == [paths[index] for index in np.argsort(-summed)]
    np.testing.assert_allclose([hit.score for hit in hits], scores[np.argsort(-summed)], atol=1e-5)
    np.testing.assert_allclose([hit.sum for hit in hits], np.sort(summed)[::-1], rtol=1e-3)
    for hit in hits:
        numbers = {"sum": f"{hit.sum:+.2f}", "probability": f"{hit.score:.3f}", "cosine": f"{hit.cosine:+.3f}"}
        assert hit.formatted_scores() == numbers


def test_re_ranked_images_are_read_from_the_cache(model, photos, tmp_path, monkeypatch):
    index = model("pretrain").index(photos, tmp_path / "index")
    expected = index.search(TEXT, top=3)
    monkeypatch.setattr(TorchRuntime, "image_states", lambda runtime, pixels: pytest.fail("encoded again"))
    assert index.search(TEXT, top=3) == expected
    fresh = ImageIndex(tmp_path / "index", model("pretrain"))
    assert fresh.search(TEXT, top=3) == expected


def test_each_hit_has_its_box_and_its_copies(model, photos, tmp_path):
    index = model("pretrain").index(photos, tmp_path / "index")
    hits = index.search(TEXT, top=8, locate=True)
    boxes = [box for [box] in model("pretrain").locate([hit.path for hit in hits], [[TEXT]] * 8)]
    scores = model("pretrain").match([hit.path for hit in hits], TEXT)[:, 0]
    for hit, box, score in zip(hits, boxes, scores, strict=True):
        np.testing.assert_allclose([*astuple(hit.box)[1:], hit.score], [*astuple(box)[1:], score], atol=1e-4)
    assert [replace(hit, box=None) for hit in hits] == index.search(TEXT, top=8)
    for hit, of_eight in zip(
        index.search(TEXT, top=2, locate=True), hits[:2], strict=True
    ):  # other batches have other rounding errors
        np.testing.assert_allclose(astuple(hit.box)[1:], astuple(of_eight.box)[1:], atol=1e-4)
    of_phrase = index.search(TEXT, top=2, locate="a star")
    assert [hit.box.phrase for hit in of_phrase] == ["a star"] * 2
    assert [hit.path for hit in of_phrase] == [hit.path for hit in hits[:2]]
    with pytest.raises(UserError, match=naming("locate", "retrieval", "pretrain")):
        model("retrieval").index(photos, tmp_path / "other").search(TEXT, locate=True)
    assert sorted(path.name for hit in hits for path in hit.copies) in (["copy of 2.png"], ["2.png"])


def test_large_indexes_are_compared_in_blocks(model, photos, tmp_path, monkeypatch):
    index = model("pretrain").index(photos, tmp_path / "index")
    expected = index.nearest(TEXT, 5)
    assert BLOCK > 8
    for block in (1, 3, 8):
        monkeypatch.setattr("x2vlm.search.index.BLOCK", block)
        for found, array in zip(index.nearest(TEXT, 5), expected, strict=True):
            np.testing.assert_allclose(found, array, atol=1e-6)
    assert len(index.nearest(TEXT, 100)[0]) == 8


def test_an_interrupted_index_resumes_and_a_complete_one_only_adds_new_images(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(making, "PART", 3)
    embed, calls = model("pretrain").embed_images, []

    def cut(images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(images)

    with monkeypatch.context() as patched:
        patched.setattr(model("pretrain"), "embed_images", cut)
        with pytest.raises(KeyboardInterrupt):
            build_index(model("pretrain"), photos, tmp_path / "index")
    with pytest.raises(UserError, match=naming("index", "not finished", "python run.py index")):
        ImageIndex(tmp_path / "index", model("pretrain"))
    assert build_index(model("pretrain"), photos, tmp_path / "index").embedded == 8 - calls[0]
    straight = build_index(model("pretrain"), photos, tmp_path / "straight")
    assert straight.embedded == 8
    for name in ("images-1.jsonl", "broken.jsonl"):
        assert (tmp_path / "index" / name).read_text() == (tmp_path / "straight" / name).read_text()
    assert not (tmp_path / "index/parts").exists()
    (photos / "0.png").unlink()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(photos / "new.png")
    shutil.copy(photos / "1.png" if (photos / "1.png").exists() else photos / "2.png", photos / "deep/again.png")
    os.utime(photos / "4.png", (1, 1))
    made = build_index(model("pretrain"), photos, tmp_path / "index")
    assert (made.images, made.embedded) == (8, 1)
    index = ImageIndex(tmp_path / "index", model("pretrain"))
    images = images_of(tmp_path / "index")[:8]
    expected = embed([photos / image.path for image in images])
    np.testing.assert_allclose(index.embeddings, expected, atol=1e-6)


def test_a_folder_without_an_index_of_this_model_is_rejected_in_one_line(model, photos, tmp_path):
    build_index(model("pretrain"), photos, tmp_path / "index")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "other/a.png")
    for call, message in [
        (
            lambda: ImageIndex(tmp_path, model("pretrain")),
            "there is no index of images in this folder; build one with python run.py index",
        ),
        (lambda: ImageIndex(tmp_path / "index", model("retrieval")), "whose weights or settings differ from"),
        (
            lambda: build_index(model("retrieval"), photos, tmp_path / "index"),
            "whose weights or settings differ from",
        ),
        (
            lambda: build_index(model("pretrain"), tmp_path / "other", tmp_path / "index"),
            "is an index of .*photos, not of .*other",
        ),
        (lambda: build_index(model("pretrain"), photos, photos), "contains other files; use an empty folder"),
        (
            lambda: build_index(model("pretrain"), tmp_path / "index", tmp_path / "x"),
            "no image in this folder",
        ),
        (lambda: build_index(model("captioning"), photos, tmp_path / "x"), "cannot compare texts with images"),
        (lambda: ImageIndex(tmp_path / "index", model("pretrain")).search(" . "), "contains no words"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    (tmp_path / "index/embeddings-1.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=naming("embeddings-1.npy", "damaged", "rebuild")):
        ImageIndex(tmp_path / "index", model("pretrain"))
    assert build_index(model("pretrain"), photos, tmp_path / "index").embedded == 8
    assert len(ImageIndex(tmp_path / "index", model("pretrain")).search(TEXT)) == 8


def test_the_commands_index_and_search_work(run, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["index", "photos", "--model", str(run("pretrain")), "--out", "index"]) == 1
    printed = capsys.readouterr()
    assert printed.out == OneLine("8 images", "1 copy", "8 embedded")
    assert "not read: " in printed.err and OneLine("1 of 10") in printed.err.splitlines()
    (photos / "deep/broken.jpg").unlink()
    assert main(["index", "photos", "--model", str(run("pretrain")), "--out", "index"]) == 0
    assert "0 embedded now" in capsys.readouterr().out
    assert main(["search", "index", TEXT, "--top", "3", "--locate", "--save", "hits.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == f"{TEXT}  (probability, cosine)" and len(lines) == 4 and all(".png  " in line for line in lines[1:])
    )
    assert Image.open("hits.png").width > 300
    assert main(["search", "index", TEXT, "a star", "--top", "2", "--json"]) == 0
    values = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [value["text"] for value in values] == [TEXT, TEXT, "a star", "a star"]
    assert set(values[0]) == {"text", "path", "cosine", "score", "sum", "copies", "box"} and values[0]["box"] is None
    assert main(["search", "nowhere", ""]) == 2
    assert OneLine("''", "blank") in capsys.readouterr().err.splitlines()
    assert main(["search", "nowhere", TEXT]) == 2
    assert OneLine("no index") in capsys.readouterr().err.splitlines()


def test_a_crash_before_the_last_write_leaves_the_index_as_it_was(model, photos, tmp_path, monkeypatch):
    """One image is removed and one added, so that the old and the new list have the same length."""
    index = model("pretrain").index(photos, tmp_path / "index")
    before = index.search(TEXT, top=8, rerank=0)
    gone = next(hit for hit in before if not hit.copies)
    gone.path.unlink()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(photos / "0 new.png")

    def crash(folder, metadata):
        if metadata.made == 2:
            raise KeyboardInterrupt
        write_metadata(folder, metadata)

    with monkeypatch.context() as patched:
        patched.setattr(making, "write_metadata", crash)
        with pytest.raises(KeyboardInterrupt):
            build_index(model("pretrain"), photos, tmp_path / "index")
    hits = ImageIndex(tmp_path / "index", model("pretrain")).search(TEXT, top=8, rerank=0)
    assert hits == [hit for hit in before if hit != gone]
    assert build_index(model("pretrain"), photos, tmp_path / "index").embedded == 0
    index = ImageIndex(tmp_path / "index", model("pretrain"))
    expected = model("pretrain").embed_images([photos / image.path for image in images_of(tmp_path / "index")[:8]])
    np.testing.assert_allclose(index.embeddings, expected, atol=1e-6)
    files = {path.name for path in (tmp_path / "index").iterdir()}
    assert files == {"index.json", "images-2.jsonl", "embeddings-2.npy", "broken.jsonl", "lock"}


def test_deleted_and_changed_images_are_skipped_and_reported(model, photos, tmp_path, caplog):
    index = model("pretrain").index(photos, tmp_path / "index")
    before = index.search(TEXT, top=8, rerank=0)
    has_copy = next(hit for hit in before if hit.copies)
    gone, changed = [hit for hit in before if not hit.copies][:2]
    gone.path.unlink()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(changed.path)
    has_copy.path.unlink()
    expected = [hit.path for hit in before if hit not in (gone, changed)]
    expected[expected.index(has_copy.path)] = has_copy.copies[0]
    caplog.clear()
    hits = index.search(TEXT, top=8, locate=True)
    assert sorted(hit.path for hit in hits) == sorted(expected)
    assert OneLine("2 of the nearest 8") in caplog.messages


def test_only_one_process_builds_an_index(model, photos, tmp_path):
    (tmp_path / "index").mkdir()
    with (tmp_path / "index" / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=naming("index", "another process")):
            build_index(model("pretrain"), photos, tmp_path / "index")
    assert build_index(model("pretrain"), photos, tmp_path / "index").images == 8


def test_the_second_of_two_processes_on_a_new_folder_gets_an_error_about_the_first(model, photos, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index/.index.json.7.tmp").write_text("{")  # the first process is still writing it
    with (tmp_path / "index" / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=naming("another process")):
            build_index(model("pretrain"), photos, tmp_path / "index")
    assert build_index(model("pretrain"), photos, tmp_path / "index").images == 8  # the first process was killed


def flip(path: Path, index: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["embeddings-1.npy", "images-1.jsonl"])
def test_a_flipped_bit_in_an_index_is_rejected_and_never_copied(name, model, photos, tmp_path, caplog):
    model("pretrain").index(photos, tmp_path / "index")
    flip(tmp_path / "index" / name, -10)
    with pytest.raises(UserError, match=naming(name, "damaged")):
        ImageIndex(tmp_path / "index", model("pretrain"))
    assert build_index(model("pretrain"), photos, tmp_path / "index").embedded == 8
    assert f"{name} is damaged" in caplog.text
    assert len(ImageIndex(tmp_path / "index", model("pretrain"))) == 8


def test_an_index_of_another_format_is_refused(model, photos, tmp_path):
    build_index(model("pretrain"), photos, tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(UserError, match=naming("an index of format 2", "this version reads 3", "rebuild the index")):
        ImageIndex(tmp_path / "index", model("pretrain"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "no list"])
def test_a_damaged_part_is_embedded_again(damage, model, photos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(making, "PART", 3)
    with monkeypatch.context() as patched:
        patched.setattr(making._Parts, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_index(model("pretrain"), photos, tmp_path / "index")
    part = min((tmp_path / "index/parts").glob("*.npy"))
    count = len(np.load(part))
    if damage == "cut":
        os.truncate(part, 40)
    elif damage == "flipped":
        flip(part, -2)
    else:
        part.with_suffix(".jsonl").unlink()
    made = build_index(model("pretrain"), photos, tmp_path / "index")
    assert (made.images, made.copies, made.embedded) == (8, 1, count)
    assert part.name in caplog.text and "embedded again" in caplog.text


def test_index_files_that_hang_or_overflow_are_reported_in_one_line(model, photos, tmp_path):
    index = tmp_path / "index"
    build_index(model("pretrain"), photos, index)
    for name in ("index.json", "images-1.jsonl", "embeddings-1.npy", "lock"):
        content = (index / name).read_bytes()
        (index / name).unlink()
        os.mkfifo(index / name)
        with pytest.raises((UserError, NotRegularError), match=naming(name, "FIFO")):
            ImageIndex(index, model("pretrain")) if name != "lock" else build_index(model("pretrain"), photos, index)
        (index / name).unlink()
        (index / name).write_bytes(content)
    (index / "index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=naming("index.json", "nested too deeply")):
        ImageIndex(index, model("pretrain"))
    (index / "index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index.json cannot be read"):
        ImageIndex(index, model("pretrain"))


def test_an_index_belongs_to_the_pixel_statistics_of_its_model(model, photos, tmp_path):
    built = model("pretrain")
    built.index(photos, tmp_path / "index")
    vision = built.settings.model.vision.model_copy(
        update={"pixel_mean": (0.1, 0.2, 0.3), "pixel_std": (0.5, 0.5, 0.5)}
    )
    settings = built.settings.model_copy(update={"model": built.settings.model.model_copy(update={"vision": vision})})
    network = PretrainModel(settings.model, len(built.tokenizer))
    network.load_state_dict(built.network.state_dict())
    with pytest.raises(UserError, match=naming("weights or settings differ", "rebuild")):
        ImageIndex(
            tmp_path / "index",
            Model(TorchRuntime(network.eval()), built.tokenizer, settings, origin="other statistics"),
        )


def test_the_weights_are_not_hashed_by_searches(model, photos, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr("x2vlm.runtime.identity", lambda network: hashed.append(network) or "hash")
    index = model("pretrain").index(photos, tmp_path / "index")
    index.search(TEXT)
    assert len(hashed) == 2, "by building and by opening the index"


def test_the_sheet_is_not_indexed_and_names_the_text_of_each_hit(run, model, photos, tmp_path, capsys):
    index, photo = str(tmp_path / "index"), photos / "0.png"
    assert main(["index", str(photos), "--model", str(run("pretrain")), "--out", index]) == 1
    content = photo.read_bytes()
    capsys.readouterr()
    assert main(["search", index, TEXT, "--save", str(photo)]) == 2
    assert OneLine("one of the images", "another name") in capsys.readouterr().err.splitlines()
    assert photo.read_bytes() == content
    opened = ImageIndex(index, model("pretrain"))
    hits = opened.search("a star", top=2, locate=True)
    assert [[line.text for line in panel.above] for panel in panels_of(opened, hits)] == [
        [hit.path.name] for hit in hits
    ]
    under_text = panels_of(opened, hits, "a star")
    assert [[line.text for line in panel.above] for panel in under_text] == [["a star", hit.path.name] for hit in hits]
    shutil.rmtree(photos)
    assert main(["search", index, TEXT, "--save", str(tmp_path / "a.png")]) == 2
    assert OneLine("images", "update the index") in capsys.readouterr().err.splitlines()


def test_file_names_that_are_not_valid_text_are_printed(run, photos, tmp_path, capfd, monkeypatch):
    os.rename(photos / "0.png", os.fsencode(photos) + b"/bad\xff\nname.png")
    assert main(["index", str(photos), "--model", str(run("pretrain")), "--out", str(tmp_path / "index")]) == 1
    with (
        (tmp_path / "printed").open("w", encoding="utf-8", errors="strict") as stream,
        monkeypatch.context() as patched,
    ):
        patched.setattr("sys.stdout", stream)
        assert main(["search", str(tmp_path / "index"), TEXT]) == 0
    [line] = [line for line in (tmp_path / "printed").read_text().splitlines() if "bad" in line]
    assert line.endswith(r"/bad\udcff\nname.png")
