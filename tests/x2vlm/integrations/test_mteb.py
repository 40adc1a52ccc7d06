"""Four kinds of mteb tasks on drawn scenes, without network access. The results equal our own metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mteb")

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from PIL import Image

from tests.messages import naming
from tests.x2vlm.suites.official import winoground_in
from utils.errors import UserError
from x2vlm import Model
from x2vlm.integrations.mteb import X2VLMEncoder, X2VLMReranker
from x2vlm.matching import sums
from x2vlm.runtime import TorchRuntime
from x2vlm.suites import suite_named

EXACT = {"rel": 0, "abs": 1e-6}


def task_metadata(name: str, kind: str, category: str, score: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="drawn scenes",
        reference=None,
        dataset={"path": "none", "revision": "0" * 40},
        type=kind,
        category=category,
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        modalities=["text", "image"],
        sample_creation=None,
        bibtex_citation=None,
    )


@pytest.fixture(scope="module")
def scenes(scenes_folder) -> list[tuple[Path, str]]:
    """Image and caption of each scene of two splits."""
    lines = [
        json.loads(line)
        for name in ("val", "test")
        for line in (scenes_folder / f"{name}.jsonl").read_text().splitlines()
    ]
    return [(scenes_folder / line["image"], line["caption"][0]) for line in lines]


def retrieval(scenes, category: str, top_ranked: bool = False) -> Any:
    """A retrieval task from texts to images, or the reverse. Scene n is called ``sn``."""
    names = [f"s{number}" for number in range(len(scenes))]
    images = Dataset.from_dict({"id": names, "image": [Image.open(path) for path, _ in scenes]})
    texts = Dataset.from_dict({"id": names, "text": [text for _, text in scenes]})
    task = type(
        "Scenes", (AbsTaskRetrieval,), {"metadata": task_metadata("Scenes", "Any2AnyRetrieval", category, "ndcg_at_10")}
    )()
    queries, corpus = (texts, images) if category == "t2i" else (images, texts)
    candidates = {name: names[index:] + names[: index // 2] for index, name in enumerate(names)}
    task.dataset = {
        "default": {
            "test": {
                "queries": queries,
                "corpus": corpus,
                "relevant_docs": {name: {name: 1} for name in names},
                "top_ranked": candidates if top_ranked else None,
            }
        }
    }
    task.data_loaded = True
    return task


def scores_of(model: Any, task: Any) -> dict[str, float]:
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
    (found,) = result.task_results
    return found.scores["test"][0]


def recalls(matrix: np.ndarray) -> dict[str, float]:
    """Recall at k of a matrix (queries, documents) whose true pairs are on its diagonal, and the mean reciprocal rank."""
    ranks = (matrix > np.diag(matrix)[:, None]).sum(axis=1)
    return {f"recall_at_{k}": float((ranks < k).mean()) for k in (1, 3, 5, 10)}


def full_matrix(model: Model, scenes, score: str) -> np.ndarray:
    """Scores (texts, images) of all pairs, computed with the calls of the model."""
    images, texts = [path for path, _ in scenes], [text for _, text in scenes]
    cosines, margins = model.embed_texts(texts) @ model.embed_images(images).T, model.margins(images, texts).T
    return {"cosine": cosines, "matching": margins, "sum": sums(model, margins, cosines)}[score]


@pytest.mark.parametrize("category", ["t2i", "i2t"])
def test_retrieval_by_embeddings_equals_our_metrics(model, scenes, category):
    found = scores_of(X2VLMEncoder(model("pretrain")), retrieval(scenes, category))
    matrix = full_matrix(model("pretrain"), scenes, "cosine")
    for name, value in recalls(matrix if category == "t2i" else matrix.T).items():
        assert found[name] == pytest.approx(value, **EXACT)


@pytest.mark.parametrize("category", ["t2i", "i2t"])
@pytest.mark.parametrize("score", ["matching", "sum"])
def test_retrieval_in_two_stages_equals_our_metrics(model, scenes, category, score):
    asked = with_score(model("pretrain"), score)
    found = scores_of(X2VLMReranker(asked), retrieval(scenes, category))
    matrix = full_matrix(asked, scenes, score)
    for name, value in recalls(matrix if category == "t2i" else matrix.T).items():
        assert found[name] == pytest.approx(value, **EXACT)


def with_score(model: Model, score: str) -> Model:
    evaluation = model.settings.evaluation.model_copy(update={"score": score})
    settings = model.settings.model_copy(update={"evaluation": evaluation})
    return Model(TorchRuntime(model.network), model.tokenizer, settings, origin=model.origin)


def test_candidates_below_the_first_stage_keep_their_order(model, scenes):
    reranker, task = X2VLMReranker(model("pretrain"), candidates=3), retrieval(scenes, "t2i")
    data = task.dataset["default"]["test"]
    reranker.index(data["corpus"], task_metadata=task.metadata)
    found = reranker.search(data["queries"], task_metadata=task.metadata, top_k=10)
    cosines = full_matrix(model("pretrain"), scenes, "cosine")
    for row, (query, scores) in enumerate(found.items()):
        assert query == f"s{row}"
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
        nearest = [f"s{number}" for number in np.argsort(-cosines[row])[:10]]
        assert set(ranked[:3]) == set(nearest[:3])
        assert ranked[3:] == nearest[3:]


def test_given_candidates_are_all_scored(model, scenes):
    reranker, task = X2VLMReranker(model("pretrain"), candidates=1), retrieval(scenes, "t2i", top_ranked=True)
    data = task.dataset["default"]["test"]
    reranker.index(data["corpus"], task_metadata=task.metadata)
    found = reranker.search(data["queries"], task_metadata=task.metadata, top_k=10, top_ranked=data["top_ranked"])
    margins = full_matrix(model("pretrain"), scenes, "matching")
    for row, (query, scores) in enumerate(found.items()):
        assert list(scores) == data["top_ranked"][query]
        expected = [margins[row, int(name[1:])] for name in scores]
        np.testing.assert_allclose(list(scores.values()), expected, atol=1e-5)
    ranked = scores_of(X2VLMReranker(model("pretrain")), retrieval(scenes, "t2i", top_ranked=True))
    ranks = [
        sum(margins[row, int(name[1:])] > margins[row, row] for name in data["top_ranked"][f"s{row}"])
        for row in range(len(scenes))
    ]
    assert ranked["recall_at_1"] == pytest.approx(np.mean([rank < 1 for rank in ranks]), **EXACT)
    assert ranked["mrr_at_10"] == pytest.approx(
        np.mean([1 / (1 + rank) if rank < 10 else 0 for rank in ranks]), abs=1e-5
    )


def test_images_are_encoded_once(model, scenes, monkeypatch):
    reranker, task = X2VLMReranker(model("pretrain")), retrieval(scenes, "t2i", top_ranked=True)
    data, encoded = task.dataset["default"]["test"], []
    runtime = type(reranker.model.runtime)
    states = runtime.image_states
    monkeypatch.setattr(
        runtime, "image_states", lambda self, pixels: encoded.append(len(pixels)) or states(self, pixels)
    )
    reranker.index(data["corpus"], task_metadata=task.metadata)
    for _ in range(2):
        reranker.search(data["queries"], task_metadata=task.metadata, top_k=10, top_ranked=data["top_ranked"])
    assert sum(encoded) == len(scenes)
    small = X2VLMReranker(model("pretrain"), cache_gb=1e-9)
    small.index(data["corpus"], task_metadata=task.metadata)
    small.search(data["queries"], task_metadata=task.metadata, top_k=10, top_ranked=data["top_ranked"])
    assert sum(encoded) == 2 * len(scenes)
    bytes_per_image = (
        reranker.model.runtime.image_states(reranker.model.pixels(reranker.model.views([scenes[0][0]]))).states().nbytes
    )
    some = X2VLMReranker(model("pretrain"), cache_gb=4.5 * bytes_per_image / 1e9)
    some.index(data["corpus"], task_metadata=task.metadata)
    encoded.clear()
    for _ in range(2):
        some.search(data["queries"], task_metadata=task.metadata, top_k=10, top_ranked=data["top_ranked"])
    assert sum(encoded) == 2 * len(scenes) - 4, "the cache holds four images"


def test_zero_shot_classification_equals_our_metrics(model, scenes):
    labels = [text for _, text in scenes[:4]]
    rows = Dataset.from_dict({"image": [Image.open(path) for path, _ in scenes[:4]], "label": list(range(4))})
    metadata = task_metadata("Classes", "ZeroShotClassification", "i2t", "accuracy")
    named = {"metadata": metadata, "get_candidate_labels": lambda self: labels}
    task = type("Classes", (AbsTaskZeroShotClassification,), named)()
    task.dataset, task.data_loaded = {"test": rows}, True
    matrix = full_matrix(model("pretrain"), scenes[:4], "cosine")
    expected = float((matrix.argmax(axis=0) == np.arange(4)).mean())
    assert scores_of(X2VLMEncoder(model("pretrain")), task)["accuracy"] == pytest.approx(expected, **EXACT)


def test_composition_equals_our_winoground(model, tmp_path):
    winoground_in(tmp_path)
    suite, asked = suite_named("winoground"), model("pretrain")
    judged = suite.judge(asked, suite.read(tmp_path, ()))
    lines = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    columns: dict[str, list[Any]] = {name: [line[name] for line in lines] for name in ("caption_0", "caption_1")}
    for name in ("image_0", "image_1"):
        columns[name] = [Image.open(tmp_path / f"images/{line[name]}.png") for line in lines]
    places = {"images_column_names": ("image_0", "image_1"), "texts_column_names": ("caption_0", "caption_1")}
    metadata = task_metadata("Pairs", "Compositionality", "i2t", "accuracy")
    task = type("Pairs", (AbsTaskImageTextPairClassification,), {"metadata": metadata, **places})()
    task.dataset, task.data_loaded = {"test": Dataset.from_dict(columns)}, True
    found = scores_of(X2VLMEncoder(asked), task)
    ours = dict(zip(suite.measures, judged.values["cosine"]["model"].mean(axis=0), strict=True))
    assert found["text_acc"] == pytest.approx(ours["text"], **EXACT)
    assert found["image_acc"] == pytest.approx(ours["image"], **EXACT)
    assert found["accuracy"] == pytest.approx(ours["group"], **EXACT)


def test_a_text_without_words_is_never_found(model, scenes, caplog):
    task = retrieval([(scenes[0][0], "?!"), *scenes[1:]], "t2i", top_ranked=True)
    scores = X2VLMEncoder(model("pretrain")).encode([{"text": ["?!", scenes[1][1]]}])
    assert scores[0].norm() == 0 and scores[1].norm() == pytest.approx(1, abs=1e-5)
    assert "1 of 2 texts have no words" in caplog.text
    found = scores_of(X2VLMReranker(model("pretrain")), task)
    assert np.isfinite(found["ndcg_at_10"])


def test_queries_with_a_text_and_an_image_are_supported(model, scenes):
    asked, (path, text) = model("pretrain"), scenes[0]
    both = X2VLMEncoder(asked).encode([{"text": [text], "image": [Image.open(path)]}])
    np.testing.assert_allclose(both, asked.embed_texts(text) + asked.embed_images(path), atol=1e-6)


def test_unsupported_inputs_are_rejected(model, scenes, run):
    task = retrieval(scenes, "t2i")
    data, reranker = task.dataset["default"]["test"], X2VLMReranker(run("pretrain"))
    same = task_metadata("Pictures", "Any2AnyRetrieval", "i2i", "ndcg_at_10")
    reranker.index(data["corpus"], task_metadata=same)
    with pytest.raises(UserError, match="Pictures compares images with images"):
        reranker.search(data["corpus"], task_metadata=same, top_k=10)
    mixed = task_metadata("Mixed", "Any2AnyRetrieval", "it2i", "ndcg_at_10")
    with pytest.raises(UserError, match=r"Mixed has .*image.* in a query"):
        reranker.search(data["queries"], task_metadata=mixed, top_k=10)
    with pytest.raises(UserError, match="is a model for the task vqa"):
        X2VLMEncoder(model("vqa"))
    reranker.index(data["corpus"], task_metadata=task.metadata)
    with pytest.raises(UserError, match="ranks the document 'nope', which is not in its corpus"):
        reranker.search(data["queries"], task_metadata=task.metadata, top_k=10, top_ranked={"s0": ["nope"]})
    with pytest.raises(UserError, match="candidates is 0"):
        X2VLMReranker(model("pretrain"), candidates=0)
    with pytest.raises(UserError, match="accepts inputs with a text or an image"):
        X2VLMEncoder(model("pretrain")).encode([{"audio": [1]}])


def picture() -> Image.Image:
    return Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("batches", "reported"),
    [
        ([], ("no inputs were given", "at least one")),
        ([{"text": ["a star", "a heart"], "image": [picture()]}], ("2 texts and 1 images", "one text with each image")),
        ([{"text": ["a star"], "image": [picture(), picture()]}], ("1 texts and 2 images", "one text with each image")),
        ([{"text": ["a star", None]}], ("text 1 of 2 is None", "remove the row")),
        ([{"image": [None, picture()]}], ("image 0 of 2 is None", "remove the row")),
        ([{"text": None}], ("text is None", "pass a list")),
        ([{"text": ["a star"], "image": None}], ("image is None", "pass a list")),
        ([{"text": "a star"}], ("text is 'a star'", "pass a list")),
        ([{"text": ["\ud800"]}], ("is not valid Unicode",)),
        ([{"text": [3]}], ("3 is not a string",)),
        ([{"image": []}], ("no images or texts were given", "at least one")),
        ([{"image": [Image.new("RGB", (0, 0))]}], ("0 x 0 pixels", "at least one pixel")),
    ],
)
def test_unusable_batches_are_reported_in_one_line(model, batches, reported):
    with pytest.raises(UserError, match=naming(*reported)):
        X2VLMEncoder(model("pretrain")).encode(batches)


def test_unusable_rows_are_reported_in_one_line(model, scenes):
    task = retrieval(scenes, "t2i")
    data, reranker = task.dataset["default"]["test"], X2VLMReranker(model("pretrain"))
    corpus, queries = data["corpus"], data["queries"]
    with pytest.raises(UserError, match=naming("mteb", "search needs documents", "index")):
        reranker.search(queries, task_metadata=task.metadata, top_k=10)
    with pytest.raises(UserError, match=naming("two document rows", f"id {corpus[0]['id']!r}")):
        reranker.index(corpus.select([0, 0]), task_metadata=task.metadata)
    with pytest.raises(UserError, match=naming("no document rows", "load the task again")):
        reranker.index(corpus.select([]), task_metadata=task.metadata)
    names = [corpus[0]["id"]]
    reranker.index(Dataset.from_dict({"id": names, "image": [None]}), task_metadata=task.metadata)
    with pytest.raises(UserError, match=naming(f"image of {names[0]!r} is None", "remove the row")):
        reranker.search(queries, task_metadata=task.metadata, top_k=10)
    reranker.index(corpus, task_metadata=task.metadata)
    top_ranked = dict.fromkeys(queries["id"])
    found = reranker.search(queries, task_metadata=task.metadata, top_k=10, top_ranked=top_ranked)
    assert found == {query: {} for query in queries["id"]}, "a query may have no candidates"


@pytest.mark.parametrize(
    ("rows", "reported"),
    [
        ({"id": ["q"], "txt": ["a star"]}, ("Scenes has no column 'text' in its query rows, only id, txt",)),
        ({"text": ["a star"]}, ("Scenes has no column 'id' in its query rows, only text",)),
        ({"id": ["q"], "text": [None]}, ("text 0 of 1 is None", "remove the row")),
        ({"id": ["q"], "text": [3]}, ("3 is not a string", "pass texts as strings")),
        ({"id": ["q"], "text": [[]]}, ("[] is not a string",)),
    ],
)
def test_unusable_queries_are_reported_in_one_line(model, scenes, rows, reported):
    task, reranker = retrieval(scenes, "t2i"), X2VLMReranker(model("pretrain"))
    reranker.index(task.dataset["default"]["test"]["corpus"], task_metadata=task.metadata)
    with pytest.raises(UserError, match=naming("mteb", *reported)):
        reranker.search(Dataset.from_dict(rows), task_metadata=task.metadata, top_k=10)


def test_a_corpus_without_images_is_reported(model, scenes):
    corpus = Dataset.from_dict({"id": ["a"], "img": ["x"]})
    with pytest.raises(UserError, match=naming("no column 'image' in its document rows, only id, img")):
        X2VLMReranker(model("pretrain")).index(corpus, task_metadata=retrieval(scenes, "t2i").metadata)


def test_the_metadata_identify_weights_and_settings(model):
    meta = X2VLMEncoder(model("pretrain")).mteb_model_meta
    assert meta.name == "x2vlm/pretrain" and meta.revision.startswith(model("pretrain").runtime.weights[:16])
    # Other settings give other results, which mteb's cache must not return for the same revision.
    assert X2VLMEncoder(with_score(model("pretrain"), "matching")).mteb_model_meta.revision == meta.revision
    assert X2VLMEncoder(with_score(model("pretrain"), "sum")).mteb_model_meta.revision != meta.revision
    half = Model(
        TorchRuntime(model("pretrain").network, "bf16"), model("pretrain").tokenizer, model("pretrain").settings
    )
    assert X2VLMEncoder(half).mteb_model_meta.revision != meta.revision
    names = {X2VLMReranker(model("pretrain"), candidates=count).mteb_model_meta.name for count in (2, 3)}
    assert len(names | {meta.name}) == 3  # otherwise mteb's cache would return the results of another model
    assert meta.modalities == ["text", "image"] and meta.n_parameters == model("pretrain").runtime.parameters
