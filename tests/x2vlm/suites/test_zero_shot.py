"""Zero-shot retrieval, classification and grounding are compared with the calls of the model and with hand-computed values."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from metrics.grounding import pixel_iou
from metrics.retrieval import ranks_of_first_match
from tests.messages import naming
from tests.tasks.painted import LOOKS
from tests.x2vlm.suites.official import FOLDERS, classes_in, picture
from utils.errors import UserError
from x2vlm.boxes import Box
from x2vlm.matching import sums
from x2vlm.suites import suite_named
from x2vlm.suites.suite import CONDITIONS


def write_suite(name: str, folder: Path):
    FOLDERS[name][0](folder)
    suite = suite_named(name)
    return suite, suite.read(folder, ())


def test_retrieval_ranks_like_a_full_matrix_of_scores(model, tmp_path):
    suite, content = write_suite("retrieval-coco", tmp_path)
    asked = model("pretrain")
    judged = suite.judge(asked, content)
    images = [tmp_path / f"images/{number}.jpg" for number in range(3)]
    texts, true = list(content.items.captions), content.items.image_of_caption
    margins, cosines = asked.margins(images, texts), asked.embed_images(images) @ asked.embed_texts(texts).T
    for score, matrix in {"cosine": cosines, "matching": margins, "sum": sums(asked, margins, cosines)}.items():
        matches = np.arange(3)[:, None] == true
        ranks = np.concatenate([ranks_of_first_match(matrix, matches), ranks_of_first_match(matrix.T, matches.T)])
        np.testing.assert_array_equal(judged.values[score]["model"], ranks[:, None] < np.array([1, 5, 10]))
    assert judged.kinds == ["image to text"] * 3 + ["text to image"] * 5
    assert judged.chance["text to image: R@1"] == pytest.approx(1 / 3)


def test_the_matching_head_ranks_without_the_cosine(model, tmp_path):
    """The ranks by the two scores differ. With three images, they would be equal."""
    texts = [f"a {size} {colour} {shape}" for colour, size, shape in LOOKS]
    entries = [{"image": f"images/{number}.png", "caption": [text]} for number, text in enumerate(texts)]
    for number in range(len(texts)):
        picture(tmp_path / f"images/{number}.png", seed=number)
    (tmp_path / "coco_test.json").write_text(json.dumps(entries), encoding="utf-8")
    suite, asked = suite_named("retrieval-coco"), model("pretrain")
    judged = suite.judge(asked, suite.read(tmp_path, ()))
    images = [tmp_path / entry["image"] for entry in entries]
    margins, cosines = asked.margins(images, texts), asked.embed_images(images) @ asked.embed_texts(texts).T
    bounds = {}
    for score, matrix in {"matching": margins, "sum": sums(asked, margins, cosines)}.items():
        ahead = np.concatenate([matrix, matrix.T]) - np.tile(np.diag(matrix), 2)[:, None]
        low, high = ((ahead > margin).sum(axis=1) for margin in (1e-4, -1e-4))  # batches round differently
        ranks = np.array([example["ranks"][score] for example in judged.examples])
        assert ((low < ranks) & (ranks <= high)).all()
        bounds[score] = low, high
    assert (bounds["matching"][1] <= bounds["sum"][0]).any(), "otherwise this test proves nothing"


def test_one_direction_can_be_measured(model, tmp_path):
    suite, _ = write_suite("retrieval-flickr30k", tmp_path)
    judged = suite.judge(model("pretrain"), suite.read(tmp_path, ["text to image"]))
    assert judged.kinds == ["text to image"] * 5
    assert judged.values["cosine"]["image only"].shape == (5, 3)


def test_an_image_blind_ranking_is_the_same_for_all_queries(model, tmp_path):
    """Exactly one of the images has the first text of the common order, and one text of each image has the first image."""
    suite, content = write_suite("retrieval-coco", tmp_path)
    values = suite.judge(model("pretrain"), content).values
    for score in ("cosine", "matching", "sum"):
        assert values[score]["text only"][:3, 0].sum() == 1
        first = values[score]["image only"][3:, 0].astype(bool)
        assert len(set(content.items.image_of_caption[first].tolist())) == 1
        # Equal candidates are ordered by chance: 1, 2 and 2 of 5 texts, and 1 of 3 images.
        np.testing.assert_allclose(values[score]["image only"][:3, 0], [1 / 5, 2 / 5, 2 / 5])
        np.testing.assert_allclose(values[score]["text only"][3:, 0], 1 / 3)


@pytest.mark.parametrize("name", ["retrieval-coco", "refcoco"])
def test_an_unreadable_image_is_skipped_and_counted(name, model, tmp_path):
    suite, _ = write_suite(name, tmp_path)
    if name == "refcoco":
        refcoco_with_two_images(tmp_path)
    content = suite.read(tmp_path, ())
    broken = "images/1.jpg" if name == "retrieval-coco" else "train2014/COCO_train2014_000000000008.jpg"
    (tmp_path / broken).write_bytes(b"no image")
    judged = suite.judge(model("pretrain"), content)
    assert judged.kinds == (
        ["image to text"] * 2 + ["text to image"] * 3 if name == "retrieval-coco" else ["val", "testA", "testB"]
    )
    assert len(judged.examples) == len(judged.kinds)
    assert broken in judged.notes[0]
    assert judged.notes[0].startswith("1 images could not be read, for example ")


def refcoco_with_two_images(folder: Path) -> None:
    """Adds an image with a phrase in the split val."""
    picture(folder / "train2014/COCO_train2014_000000000008.jpg")
    path = folder / "instances.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["images"].append({**content["images"][0], "id": 8})
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 8})
    path.write_text(json.dumps(content), encoding="utf-8")
    refs = folder / "refs(unc).p"
    listed = pickle.loads(refs.read_bytes())
    refs.write_bytes(pickle.dumps([*listed, {**listed[0], "ref_id": 9, "ann_id": 2, "image_id": 8}]))


def test_messages_about_refcoco_name_only_existing_options(tmp_path):
    suite, _ = write_suite("refcoco", tmp_path)
    refcoco_with_two_images(tmp_path)
    path = tmp_path / "instances.json"
    intact = path.read_text(encoding="utf-8")
    path.write_text(intact.replace('"id": 2', '"id": 3'), encoding="utf-8")
    with pytest.raises(UserError, match="are broken") as error:
        suite.read(tmp_path, ())
    assert "data.max_broken" not in str(error.value)
    path.write_text(intact, encoding="utf-8")
    (tmp_path / "train2014/COCO_train2014_000000000008.jpg").unlink()
    with pytest.raises(UserError, match=r"1 images of RefCOCO are missing, for example .*8\.jpg; see github"):
        suite.read(tmp_path, ())
    (tmp_path / "refs(unc).p").write_bytes(b"no pickle")
    with pytest.raises(UserError) as error:
        suite.read(tmp_path, ())
    assert "--data" not in str(error.value)
    assert "is not a pickle of plain data" in str(error.value)
    assert "download it again" in str(error.value)


def test_retrieval_reads_the_files_of_karpathy_and_of_blip(tmp_path):
    suite, content = write_suite("retrieval-coco", tmp_path)
    original = tmp_path / "coco_test.json"
    entries = json.loads(original.read_text(encoding="utf-8"))
    original.rename(tmp_path / "coco_karpathy_test.json")
    assert list(suite.read(tmp_path, ()).items.captions) == list(content.items.captions)
    (tmp_path / "coco_karpathy_test.json").unlink()
    images = [
        {
            "filepath": "images",
            "filename": Path(entry["image"]).name,
            "split": split,
            "cocoid": index,
            "sentences": [{"raw": text} for text in entry["caption"]],
        }
        for index, (entry, split) in enumerate(zip(entries, ("test", "test", "val"), strict=True))
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}), encoding="utf-8")
    assert list(suite.read(tmp_path, ()).items.captions) == list(content.items.captions)[:3]
    assert suite.files(tmp_path, ()) == ["dataset_coco.json"]
    (tmp_path / "dataset_coco.json").rename(original)
    with pytest.raises(
        UserError, match=r"coco_test\.json: .* if it is Karpathy's file, rename it to dataset_coco\.json"
    ):
        suite.read(tmp_path, ())


def test_classes_are_compared_by_the_mean_of_their_templates(model, tmp_path):
    classes_in(tmp_path)
    (tmp_path / "templates.txt").write_text("a {c}\nthe {c} of a scene\n", encoding="utf-8")
    suite, asked = suite_named("classification"), model("pretrain")
    content = suite.read(tmp_path, ())
    assert content.names == ["blue heart", "red star"]
    judged = suite.judge(asked, content)
    images = [path for path, _ in content.images]
    means = sum(asked.embed_texts(content.texts(template)) for template in content.templates)
    cosines = asked.embed_images(images) @ means.T / np.linalg.norm(means, axis=1)
    for row, example in zip(cosines, judged.examples, strict=True):
        assert example["scores"]["cosine"] == pytest.approx(dict(zip(content.names, row, strict=True)), abs=1e-4)
    chosen = cosines.argmax(axis=1)
    np.testing.assert_array_equal(judged.values["cosine"]["model"][:, 0], chosen == [0, 1, 1, 1])
    matched = asked.margins(images, content.texts("a {c}")).argmax(axis=1)
    np.testing.assert_array_equal(judged.values["matching"]["model"][:, 0], matched == [0, 1, 1, 1])
    np.testing.assert_allclose(judged.values["matching"]["image only"], [[1 / 2, 1]] * 4)
    assert judged.examples[1]["scores"]["cosine"].keys() <= {"blue heart", "red star"}
    blind = judged.values["matching"]["text only"][:, 0]
    assert blind.tolist() in ([1, 0, 0, 0], [0, 1, 1, 1])
    *_, mean = suite.results(judged, draws=0)["cosine"]
    right = judged.values["cosine"]["model"][:, 1]
    assert (mean.row, mean.value) == ("mean of classes", pytest.approx((right[0] + right[1:].mean()) / 2))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "contains 0 folders, but each class needs a folder of images"),
        ({"a/1.png": "", "b/1.png": "", "classnames.txt": "one"}, "contains 1 names for 2 folders"),
        ({"a/1.png": "", "b/1.png": "", "templates.txt": "a photo"}, "'a photo' has no {c}"),
        ({"a/1.txt": "x", "b/1.txt": "x"}, "its folders contain no images"),
        ({"a/1.png": "", "b/1.png": "", "classnames.txt": "one\nOne"}, "two classes are called 'one'"),
    ],
)
def test_mistakes_in_a_folder_of_classes_are_reported(files, message, tmp_path):
    for name, text in files.items():
        if name.endswith(".png"):
            picture(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        suite_named("classification").read(tmp_path, ())
    assert message in str(error.value)


def test_phrases_are_judged_by_the_iou_of_the_published_script(model, tmp_path):
    suite, content = write_suite("refcoco", tmp_path)
    asked = model("pretrain")
    judged = suite.judge(asked, content)
    [[box]] = asked.locate(tmp_path / "train2014/COCO_train2014_000000000007.jpg", "the red star")
    found = np.array([[box.x, box.y, box.width, box.height]])
    (overlap,) = pixel_iou(found, np.array([[2.0, 3.0, 20.0, 15.0]]))
    assert [example["iou"] for example in judged.examples] == [pytest.approx(overlap, abs=1e-3)] * 3
    assert judged.values["box head"]["model"].tolist() == [[float(overlap >= 0.5)]] * 3
    assert judged.kinds == ["val", "testA", "testB"]


def test_boxes_in_the_grey_image_are_scaled_to_the_image_of_the_phrase(model, tmp_path, monkeypatch):
    """A locator that always returns the right part of the image that it sees is right in every condition. The grey image is
    square, the phrase's image is not."""
    write_suite("refcoco", tmp_path)
    path, true = tmp_path / "instances.json", (4, 18, 20, 3)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["bbox"] = true
    path.write_text(json.dumps(content), encoding="utf-8")
    asked, sizes = model("pretrain"), set()

    def locate(images, texts):
        sizes.update(image.size for image in images)
        relative = [true[0] / 32, true[1] / 24, true[2] / 32, true[3] / 24]
        return [
            [Box("", *(part * side for part, side in zip(relative, image.size * 2, strict=True)))] for image in images
        ]

    monkeypatch.setattr(asked, "locate", locate)
    suite = suite_named("refcoco")
    judged = suite.judge(asked, suite.read(tmp_path, ()))
    assert len(sizes) == 2, "otherwise this test proves nothing"
    assert {condition: values.tolist() for condition, values in judged.values["box head"].items()} == {
        condition: [[1.0]] * 3 for condition in CONDITIONS
    }


def test_an_iou_of_exactly_one_half_is_right(model, tmp_path, monkeypatch):
    """As in the published script (``IoU >= 0.5``)."""
    suite, content = write_suite("refcoco", tmp_path)
    asked = model("pretrain")
    monkeypatch.setattr(asked, "locate", lambda images, texts: [[Box("", 2, 3, 10, 15)] for _ in images])
    judged = suite.judge(asked, content)
    assert [example["iou"] for example in judged.examples] == [0.5] * 3
    assert judged.values["box head"]["model"].tolist() == [[1.0]] * 3
    assert [example["right"] for example in judged.examples] == [{"box head": {"accuracy": 1.0}}] * 3


def test_a_phrase_of_two_boxes_is_judged_by_the_whole_and_by_any_box(model, tmp_path, monkeypatch):
    """The first box is wrong, the third is one of the two circles, and the seventh is the box around both."""
    suite, content = write_suite("flickr30k-entities", tmp_path)
    asked, wrong, circle, whole = model("pretrain"), (0, 0, 2, 2), (20, 2, 10, 8), (1, 2, 29, 20)

    def locate(images, texts, boxes="one", threshold=None):
        found = {"a red star": [(2, 3, 20, 15)]}.get(texts[0][0].lower(), [wrong, wrong, circle, *[wrong] * 3, whole])
        listed = [Box("", *box, 1 - rank / 10) for rank, box in enumerate(found)]
        return [listed[:1] if boxes == "one" else listed[1:] for _ in images]

    monkeypatch.setattr(asked, "locate", locate)
    monkeypatch.setattr(asked, "batch_size", 1)
    judged = suite.judge(asked, content)
    assert judged.kinds == ["merged"] * 2 + ["any box"] * 2
    assert judged.values["box head"]["model"].tolist() == [[1, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]]


def test_missing_files_of_flickr30k_entities_are_named(tmp_path):
    write_suite("flickr30k-entities", tmp_path)
    for name in ("flickr30k-images/7.jpg", "Annotations/7.xml", "test.txt"):
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=naming(name.rpartition("/")[2], "flickr30k_entities")):
            suite_named("flickr30k-entities").read(tmp_path, ())


def test_damaged_files_of_flickr30k_entities_are_not_skipped(tmp_path):
    write_suite("flickr30k-entities", tmp_path)
    annotated, intact = tmp_path / "Annotations/7.xml", (tmp_path / "Annotations/7.xml").read_text()
    for damaged in (intact.replace("<xmin>2<", "<xmin>two<"), "<annotation>"):
        annotated.write_text(damaged)
        with pytest.raises(UserError, match=naming("7.xml")):
            suite_named("flickr30k-entities").read(tmp_path, ())
    (tmp_path / "test.txt").write_text("../7\n")
    with pytest.raises(UserError, match=naming("'../7'", "is not an id")):
        suite_named("flickr30k-entities").read(tmp_path, ())


def test_a_model_fine_tuned_for_grounding_is_not_zero_shot(model, tmp_path):
    suite, content = write_suite("refcoco", tmp_path)
    with pytest.raises(UserError, match="zero-shot grounding needs a model for the task pretrain"):
        suite.judge(model("grounding"), content)


def test_an_unreadable_image_of_a_class_is_skipped(model, tmp_path):
    suite, content = write_suite("classification", tmp_path)
    (tmp_path / "red_star/2.png").write_bytes(b"no image")
    judged = suite.judge(model("pretrain"), content)
    assert len(judged.kinds) == 3
    templates, unread = judged.notes[:2]
    assert templates == "2 classes; templates: a photo of a {c}"
    assert "1 images could not be read, for example " in unread
