"""Encoders and cross-encoders of sentence-transformers return the same results as the calls of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

from PIL import Image
from sentence_transformers import CrossEncoder, SentenceTransformer, util

from utils.errors import UserError
from x2vlm.export.writing import export
from x2vlm.integrations.sentence_transformers import cross_encoder, encoder

TEXTS = ["a red star", "a small blue circle on the left of a large green heart", "two hearts"]


@pytest.fixture(scope="module")
def images(scenes_folder) -> list[Path]:
    return sorted((scenes_folder / "images/test").iterdir())[:4]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("export") / "model.onnx"
    export(model("pretrain"), folder)
    return folder


def test_embeddings_of_texts_and_images_equal_the_models(run, model, images):
    found, asked = encoder(run("pretrain")), model("pretrain")
    given = [Image.open(images[0]), images[1], {"image": np.asarray(Image.open(images[2]))}]
    np.testing.assert_allclose(found.encode(given), asked.embed_images(images[:3]), atol=1e-6)
    np.testing.assert_allclose(found.encode([TEXTS[0], {"text": TEXTS[1]}]), asked.embed_texts(TEXTS[:2]), atol=1e-6)
    np.testing.assert_allclose(found.encode(TEXTS, batch_size=1), asked.embed_texts(TEXTS), atol=1e-6)
    assert found.encode(TEXTS[0]).shape == (found.get_embedding_dimension(),)


def test_semantic_search_finds_the_models_hits(run, model, images):
    found, asked = encoder(run("pretrain")), model("pretrain")
    hits = util.semantic_search(
        found.encode(TEXTS, convert_to_tensor=True),
        found.encode([str(path) for path in images], convert_to_tensor=True),
    )
    cosines = asked.embed_texts(TEXTS) @ asked.embed_images(images).T
    for row, of_text in enumerate(hits):
        assert [hit["corpus_id"] for hit in of_text] == np.argsort(-cosines[row]).tolist()


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_scores_of_pairs_equal_the_models(run, model, images, batch_size):
    found, asked = cross_encoder(run("pretrain")), model("pretrain")
    opened = [Image.open(path) for path in images]
    pairs = [(text, image) for text in TEXTS for image in opened] + [(opened[0], TEXTS[1])]
    expected = [*asked.match(images, TEXTS).T.flatten(), asked.match(images[0], TEXTS[1])[0, 0]]
    np.testing.assert_allclose(found.predict(pairs, batch_size=batch_size), expected, atol=1e-5)


def test_ranking_orders_documents_by_the_models_score(run, model, images):
    found = cross_encoder(run("pretrain")).rank(TEXTS[0], [str(path) for path in images], top_k=3)
    scores = model("pretrain").match(images, TEXTS[0])[:, 0]
    assert [hit["corpus_id"] for hit in found] == np.argsort(-scores)[:3].tolist()
    np.testing.assert_allclose([hit["score"] for hit in found], np.sort(scores)[::-1][:3], atol=1e-6)


@pytest.mark.slow
def test_an_export_can_be_used_as_an_encoder(run, exported, model, images):
    paths = [str(path) for path in images]
    np.testing.assert_allclose(encoder(exported).encode(paths), model("pretrain").embed_images(images), atol=1e-5)
    scores = cross_encoder(exported).predict([(TEXTS[1], path) for path in paths])
    np.testing.assert_allclose(scores, model("pretrain").match(images, TEXTS[1])[:, 0], atol=1e-5)


@pytest.mark.parametrize("made", [encoder, cross_encoder])
def test_a_saved_encoder_can_be_loaded(run, model, images, tmp_path, made):
    kind = {encoder: SentenceTransformer, cross_encoder: CrossEncoder}[made]
    folder = tmp_path / "saved"
    made(run("pretrain")).save(str(folder))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"import {made.__name__}" in card and "library_name: sentence-transformers" in card
    encoder(folder), cross_encoder(folder)  # both use the same weights
    for again in (made(folder), kind(str(folder), trust_remote_code=True)):
        if made is encoder:
            found, expected = again.encode(TEXTS), model("pretrain").embed_texts(TEXTS)
        else:
            found, expected = (
                again.predict([(TEXTS[0], str(images[0]))]),
                model("pretrain").match(images[0], TEXTS[0])[0],
            )
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_unsupported_inputs_are_rejected(run, model, images):
    pairs = cross_encoder(model("retrieval"))
    with pytest.raises(UserError, match="has two texts"):
        pairs.predict([("a star", "a heart")])
    with pytest.raises(UserError, match="contains no words"):
        encoder(model("retrieval")).encode(["?!"])
    for text in (None, 3):
        with pytest.raises(UserError, match=r"the text in .* is not a string"):
            encoder(model("retrieval")).encode([{"text": text}])
    assert len(encoder(model("retrieval")).encode([])) == 0
    with pytest.raises(UserError, match="0 x 0 pixels"):
        pairs.predict([("a star", Image.new("RGB", (0, 0)))])
    with pytest.raises(UserError, match="is a model for the task vqa"):
        encoder(run("vqa"))
    with pytest.raises(UserError, match=r"nothing.png: no such image"):
        encoder(model("retrieval")).encode(["nothing.png"])
    with pytest.raises(UserError, match=r"xx.png: no such image"):
        encoder(model("retrieval")).encode(["x" * 300 + ".png"])
    with pytest.raises(UserError, match="no images or texts were given"):
        encoder(model("retrieval"))[0].preprocess([])
    with pytest.raises(UserError, match="no pairs were given"):
        pairs[0].preprocess([])
    with pytest.raises(UserError, match="pass them to"):
        encoder(model("retrieval"), device="cpu")
    with pytest.raises(UserError, match="no such file"):
        encoder("nowhere")
