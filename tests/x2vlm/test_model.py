"""A loaded model returns the predictions of its task, for images in any form and in any batch."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from models.reference import Padded, encode, fuse
from tests.messages import OneLine, naming
from tests.tasks.painted import SIZE, measured
from x2vlm import UserError, load
from x2vlm.calls import CALLS


def rows(data, task: str) -> list[dict]:
    return [json.loads(line) for line in (data / f"{task}_test.jsonl").read_text().splitlines()]


def test_captions_equal_those_of_the_task(task, model, data):
    message = {each["image_id"]: each["caption"] for each in measured(task("captioning")).predictions}
    listed = rows(data, "captioning")
    assert model("captioning").caption([data / row["image"] for row in listed]) == [
        message[row["image_id"]] for row in listed
    ]
    assert len(set(message.values())) > 1


def test_answers_equal_those_of_the_task(task, model, data):
    message = {each["question_id"]: each["answer"] for each in measured(task("vqa")).predictions}
    listed = rows(data, "vqa")
    images, questions = [data / row["image"] for row in listed], [row["question"] for row in listed]
    assert model("vqa").answer(images, questions) == [message[row["question_id"]] for row in listed]
    assert len(set(message.values())) > 1
    # There are two questions about one image, which is read once. A single candidate must be the answer.
    assert model("vqa").answer(images[0], questions[:2]) == [message[row["question_id"]] for row in listed[:2]]
    assert model("vqa").answer(images[:3], questions[0], ["green"]) == ["green"] * 3


def test_written_answers_equal_those_of_the_task(task, model, data, monkeypatch):
    built = task("vqa")
    evaluation = built.config.evaluation.model_copy(update={"decode": "beam"})
    monkeypatch.setattr(built, "config", built.config.model_copy(update={"evaluation": evaluation}))
    evaluation = measured(built)
    message = {each["question_id"]: each["answer"] for each in evaluation.predictions}
    listed = rows(data, "vqa")
    images, questions = [data / row["image"] for row in listed], [row["question"] for row in listed]
    answers = model("vqa").answer(images, questions, decode="beam")
    assert answers == [message[row["question_id"]] for row in listed] and len(set(answers)) > 1
    assert not set(answers) <= set(model("vqa").answers), "answers must not be limited to the candidates"
    assert 0 <= evaluation["accuracy"].value <= 1
    with pytest.raises(UserError, match=naming("decode='beam'", "candidates")):
        model("vqa").answer(images[0], questions[0], ["green"], decode="beam")


def test_boxes_equal_those_of_the_task_in_pixels(task, model, data):
    listed = rows(data, "grounding")
    message = [each["predicted"] for each in measured(task("grounding")).predictions]
    phrases = [[row["elems"][0]["caption"]] for row in listed]
    found = model("grounding").locate([data / row["image"] for row in listed], phrases)
    for (box,), (x, y, w, h), (phrase,) in zip(found, message, phrases, strict=True):
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, SIZE), min(y + h, SIZE)
        assert (box.x, box.y, box.width, box.height) == pytest.approx((left, top, right - left, bottom - top), abs=0.01)
        assert (box.phrase, box.score) == (phrase, None)


def test_boxes_are_in_pixels_of_the_given_image(model, data):
    ours = model("pretrain")
    view = ours.read(Image.open(data / "images/3.png").resize((4 * SIZE, 2 * SIZE)))
    assert view.size == (4 * SIZE, 2 * SIZE)
    ((wide,),), ((unit,),) = (ours.locate(each, "a red star") for each in (view, replace(view, size=(1, 1))))
    expected = (4 * SIZE * unit.x, 2 * SIZE * unit.y, 4 * SIZE * unit.width, 2 * SIZE * unit.height)
    assert (wide.x, wide.y, wide.width, wide.height) == pytest.approx(expected, abs=1e-3)
    assert unit.width > 0.01 and wide.score == unit.score


@torch.no_grad()
def test_matching_equals_the_reference_path(model, data):
    ours, texts = model("pretrain"), ["a small red star", "a circle", "the large blue circle"]
    images = [data / f"images/{number}.png" for number in range(4)]
    network, ids = ours.network, ours.tokens(texts)
    text = encode(network.text, ids.ids, ids.mask)
    concepts = network.vision(ours.pixels(ours.views(images)))
    by_hand = []
    for image in range(4):
        patches = Padded(concepts.states()[image].expand(3, -1, -1))
        by_hand.append(network.matching_head(fuse(network.fusion, text, patches)[:, 0]).softmax(dim=1)[:, 1])
    matched = ours.match(images, texts)
    assert matched.shape == (4, 3) and matched.dtype == np.float32
    np.testing.assert_allclose(matched, torch.stack(by_hand).numpy(), atol=1e-5)
    assert matched.std() > 0.01


@torch.no_grad()
def test_the_score_of_a_box_is_the_match_of_its_patches(model, data):
    ours, image = model("pretrain"), data / "images/5.png"
    ((box,),) = ours.locate(image, "a blue circle")
    network, patch = ours.network, ours.network.vision.patch_size
    rows_columns = [
        [box.x < (c + 1) * patch and box.x + box.width > c * patch and box.y < (r + 1) * patch and box.y + box.height > r * patch
         for c in range(SIZE // patch)]
        for r in range(SIZE // patch)
    ]  # fmt: skip
    touched = torch.tensor(rows_columns).flatten()
    patches = network.vision(ours.pixels(ours.views([image]))).patches[:, touched]
    ids = ours.tokens(["a blue circle"])
    seen = Padded(torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1))
    by_hand = network.matching_head(fuse(network.fusion, encode(network.text, ids.ids, ids.mask), seen)[:, 0]).softmax(
        dim=1
    )
    assert box.score == pytest.approx(float(by_hand[0, 1]), abs=1e-5)


def test_embeddings_have_norm_one_and_the_cosines_of_the_contrastive_loss(task, model, data):
    ours = model("retrieval")
    images, texts = (
        ours.embed_images([data / "images/0.png", data / "images/9.png"]),
        ours.embed_texts(["a star", "a circle"]),
    )
    np.testing.assert_allclose([np.linalg.norm(row) for row in (*images, *texts)], 1, atol=1e-5)
    with torch.no_grad():
        head, network = ours.network.contrastive, ours.network
        similarity = head.similarity(
            head.embed_image(network.vision(ours.pixels(ours.views([data / "images/0.png", data / "images/9.png"])))),
            head.embed_text(ours.encoded(["a star", "a circle"])),
        )
    np.testing.assert_allclose(images @ texts.T / head.temperature.item(), similarity.numpy(), rtol=1e-4, atol=1e-4)


def test_judgements_equal_those_of_the_task(task, model, data):
    message = [each["predicted"] for each in measured(task("nlvr")).predictions]
    listed = rows(data, "nlvr")
    found = model("nlvr").compare(
        [[data / name for name in row["images"]] for row in listed], [row["sentence"] for row in listed]
    )
    assert [each.label for each in found] == [name.lower() for name in message]
    assert all(0.5 <= each.score <= 1 for each in found)
    one = model("nlvr").compare([data / name for name in listed[0]["images"]], listed[0]["sentence"])
    assert one[0].label == found[0].label and one[0].score == pytest.approx(found[0].score, abs=1e-5)
    with pytest.raises(UserError, match=naming("1 images", "2")):
        model("nlvr").compare([[data / "images/0.png"]], ["a star"])


def test_batching_does_not_change_the_results(model, data):
    ours, images = model("pretrain"), [data / f"images/{number}.png" for number in range(7)]
    ours.batch_size, whole = 3, ours.match(images, ["a star"])
    np.testing.assert_allclose(ours.match(images, ["a star"]), whole, atol=1e-6)
    ours.batch_size = 32


def test_an_unsupported_call_names_the_task_that_supports_it(model, data):
    image = data / "images/0.png"
    calls = {
        "caption": lambda model: model.caption(image),
        "answer": lambda model: model.answer(image, "what?"),
        "locate": lambda model: model.locate(image, "a star"),
        "score": lambda model: model.score(image, [(1, 2, 3, 4)], "a star"),
        "match": lambda model: model.match(image, "a star"),
        "embed_images": lambda model: model.embed_images(image),
        "embed_texts": lambda model: model.embed_texts("a star"),
        "compare": lambda model: model.compare([image, image], "a star"),
        "explain": lambda model: model.explain(image, "a star"),
    }
    assert calls.keys() == CALLS.keys()
    for name in ("pretrain", "retrieval", "grounding", "vqa", "captioning", "nlvr"):
        for call, ask in calls.items():
            if name not in CALLS[call].tasks:
                with pytest.raises(UserError, match=naming(call, f"task {name}", " or ".join(CALLS[call].tasks))):
                    ask(model(name))


@pytest.mark.parametrize(
    ("ask", "reported"),
    [
        (lambda model, image: model.locate([image, image], ["a star"]), ("2 images", "1 lists")),
        (lambda model, image: model.match([], ["a star"]), ("no images or texts were given",)),
        (lambda model, image: model.match(image, "?!"), ("'?!' contains no words",)),
        (lambda model, image: model.match(image, [3]), ("3 is not a string",)),
        (lambda model, image: model.match(3, ["a star"]), ("not int",)),
        (lambda model, image: model.match(image, None), ("None is not a string",)),
        (
            lambda model, image: model.match([image] * 2, [["a star"]]),
            ("['a star'] is a list", "one flat list of texts"),
        ),
        (lambda model, image: model.match([image], [[]]), ("[] is a list", "one flat list of texts")),
        (lambda model, image: model.embed_images("x" * 300 + ".png"), ("File name too long",)),
        (lambda model, image: model.match(image, []), ("no texts were given", "at least one")),
        (lambda model, image: model.margins(image, []), ("no texts were given", "at least one")),
        (lambda model, image: model.embed_texts([]), ("no images or texts were given", "at least one")),
        (lambda model, image: model.embed_images([]), ("no images or texts were given", "at least one")),
        (lambda model, image: model.explain(image, []), ("explain", "0 texts", "exactly one")),
        (lambda model, image: model.explain(image, ["a star", "a dog"]), ("explain", "2 texts", "exactly one")),
        (lambda model, image: model.locate(image, None), ("None is not a string",)),
        (lambda model, image: model.match(image, "caf\udce9"), (r"'caf\udce9'", "not valid Unicode")),
        (lambda model, image: model.locate(image, "caf\udce9"), (r"'caf\udce9'", "not valid Unicode")),
        (lambda model, image: model.explain(image, "caf\udce9"), (r"'caf\udce9'", "not valid Unicode")),
        (lambda model, image: model.explain(image, 3), ("3 is not a string",)),
        (lambda model, image: model.match("https://a.b/c.jpg", "a"), ("URLs are not supported",)),
        (lambda model, image: model.locate([image, image], "a star"), ("2 images and 1 lists of phrases",)),
    ],
)
def test_mistakes_are_reported_in_one_line(ask, reported, model, data):
    with pytest.raises(UserError, match=naming(*reported)) as raised:
        ask(model("pretrain"), data / "images/0.png")
    assert "\n" not in str(raised.value)


def test_numbers_of_images_and_texts_that_do_not_match_are_reported(model, data):
    with pytest.raises(UserError, match="answer: 2 images and 3 texts"):
        model("vqa").answer([data / "images/0.png"] * 2, ["what?"] * 3)
    with pytest.raises(UserError, match="' ' contains no words"):
        model("vqa").answer(data / "images/0.png", " ")
    assert model("vqa").answer(data / "images/0.png", "what?", candidates="pink") == ["pink"]
    with pytest.raises(UserError, match=naming("tokenizer", "''")):
        model("vqa").answer(data / "images/0.png", "what?", ["red", ""])


def test_an_empty_list_of_texts_is_reported_by_every_call(model, data):
    image = data / "images/0.png"
    calls = {
        "answer": lambda: model("vqa").answer(image, []),
        "candidates": lambda: model("vqa").answer(image, "what?", candidates=[]),
        "compare": lambda: model("nlvr").compare([image, image], []),
    }
    for name, ask in calls.items():
        with pytest.raises(UserError, match=naming(name, "pass")):
            ask()
    assert model("pretrain").locate(image, []) == [[]], "an image may have no phrases"


def test_a_candidate_that_is_not_valid_unicode_is_reported(model, data):
    with pytest.raises(UserError, match=naming(r"'caf\udce9'", "not valid Unicode")):
        model("vqa").answer(data / "images/0.png", "what?", ["red", "caf\udce9"])


def test_words_unknown_to_the_tokenizer_are_reported(model, data, caplog):
    model("pretrain").match(data / "images/0.png", ["一只狗", "a star"])
    assert OneLine("3 words", "一") in caplog.messages


def test_any_iterable_is_accepted_as_a_list(model, data):
    ours, names = model("pretrain"), [data / f"images/{number}.png" for number in range(3)]
    np.testing.assert_array_equal(ours.match(iter(names), iter(["a star"])), ours.match(names, ["a star"]))
    assert ours.locate(iter(names), (["a star"] for _ in names)) == ours.locate(names, [["a star"]] * 3)


def test_a_truncated_text_is_reported(model, data, caplog):
    ours = model("pretrain")
    ours.match(data / "images/0.png", ["star " * 39, "a star"])
    (record,) = caplog.records
    assert record.getMessage() == OneLine("40 tokens", "1")


def test_a_video_of_one_repeated_image_equals_the_image(video_model, model, data, tmp_path):
    """If the position embeddings of frames are zero, the mean over frames equals the image."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes((data / "images/4.png").read_bytes())
    texts = ["a star", "a blue circle"]
    with torch.no_grad():
        video_model.network.vision.frame_positions.zero_()
    as_video, as_image = video_model.match(tmp_path, texts), model("retrieval").match(data / "images/4.png", texts)
    np.testing.assert_allclose(as_video, as_image, atol=1e-5)
    with pytest.raises(UserError, match=naming("image", "videos")):
        video_model.match(data / "images/4.png", texts)
    with pytest.raises(UserError, match=r"explain: .* is a video"):
        video_model.explain(tmp_path, "a star")


def test_a_saved_video_model_is_loaded_as_a_video_model(video_model, tmp_path):
    again = load(video_model.save(tmp_path / "saved"))
    assert again.settings.model.vision.video.frames == 2 and again.read.videos is not None
