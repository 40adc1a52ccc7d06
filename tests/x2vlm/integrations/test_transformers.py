"""A model saved with ``format="transformers"`` is loaded by transformers without this project, and gives the same results."""

from __future__ import annotations

import ast
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from models.config import AligningConfig, FusionConfig, TextConfig
from models.inference.reranking import TextBank
from models.tasks.retrieval import RetrievalModel
from tests.encoders import text, vision
from tests.encoders.training import VOCABULARY
from utils.errors import UserError
from utils.image_size import sides_of
from x2vlm import Model, load
from x2vlm.integrations.transformers.writing import modelling_file
from x2vlm.runtime import TorchRuntime
from x2vlm.settings import Settings

TEXTS = ["a red star", "a small blue circle, on the left of a large green heart!", "two hearts"]


@pytest.fixture(scope="module")
def images(scenes_folder) -> list[Path]:
    return sorted((scenes_folder / "images/test").iterdir())[:4]


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The folder of a saved model of a task."""
    folders: dict[str, Path] = {}

    def of(task: str) -> Path:
        if task not in folders:
            folders[task] = tmp_path_factory.mktemp("saved") / task
            model(task).save(folders[task], format="transformers")
        return folders[task]

    return of


def outputs(folder: Path, images, texts):
    found = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(images=[Image.open(path) for path in images], text=texts)
    with torch.no_grad():
        return found.eval(), inputs, found(**inputs)


@pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
def test_all_images_are_compared_with_all_texts(model, saved, images, kind):
    """In float32, with the sharp attention of random weights. :func:`test_results_are_equal_in_float64` has no rounding
    errors."""
    asked = model(kind)
    found, inputs, output = outputs(saved(kind), images, TEXTS)
    np.testing.assert_allclose(output.image_embeds, asked.embed_images(images), atol=1e-6)
    np.testing.assert_allclose(output.text_embeds, asked.embed_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(output.matching_logits.sigmoid(), asked.match(images, TEXTS), atol=1e-4)
    cosines = asked.embed_images(images) @ asked.embed_texts(TEXTS).T
    np.testing.assert_allclose(output.logits_per_image * asked.runtime.temperature, cosines, atol=1e-6)
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        again = found(vision_states=output.vision_states, **texts)
        np.testing.assert_array_equal(found.get_image_features(inputs["pixel_values"]), output.image_embeds)
        np.testing.assert_array_equal(found.get_text_features(**texts), output.text_embeds)
    np.testing.assert_array_equal(again.matching_logits, output.matching_logits)
    np.testing.assert_array_equal(again.logits_per_text.T, output.logits_per_image)


@pytest.mark.parametrize("kind", ["pretrain", "retrieval", "grounding"])
def test_results_are_equal_in_float64(model, saved, images, kind):
    asked = model(kind)
    doubled = Model(
        TorchRuntime(copy.deepcopy(asked.network).double()), asked.tokenizer, asked.settings, origin=asked.origin
    )
    found, inputs, _ = outputs(saved(kind), images, TEXTS)
    inputs["pixel_values"] = doubled.pixels(doubled.views(images))
    with torch.no_grad():
        output = found.double()(**inputs)
    runtime, text = doubled.runtime, doubled.tokens(TEXTS)
    with runtime.running():
        states, packed = runtime.image_states(inputs["pixel_values"]), runtime.text_states(text)
        if kind != "grounding":
            bank, columns = TextBank.of([packed]), [torch.arange(len(TEXTS))] * len(images)
            margins = torch.stack(runtime.margins(states, columns, bank))
            torch.testing.assert_close(output.matching_logits, margins, rtol=0, atol=1e-9)
        if kind != "retrieval":
            for image, boxes in enumerate(output.boxes):
                expected, _ = runtime.locate(states, packed, torch.full((len(TEXTS),), image))
                torch.testing.assert_close(boxes, torch.tensor(expected).double(), rtol=0, atol=1e-6)
    assert (output.image_embeds is None) == (kind == "grounding")
    assert (output.boxes is None) == (kind == "retrieval")


def test_pixels_of_all_kinds_of_images_are_equal(model, saved, tmp_path):
    """Colour palettes, transparency, 16-bit grey levels, CMYK, and an EXIF orientation."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    colours.save(tmp_path / "turned.jpg", exif=turned)
    alpha = Image.fromarray(rng.integers(0, 256, (24, 40), dtype=np.uint8))
    transparent = colours.copy()
    transparent.putalpha(alpha)
    given = [
        colours,
        transparent,
        colours.convert("P"),
        colours.convert("L"),
        colours.convert("1"),
        colours.convert("CMYK"),
        Image.fromarray(rng.integers(0, 65536, (24, 40), dtype=np.uint16)),
        Image.open(tmp_path / "turned.jpg"),
    ]
    asked = model("retrieval")
    processor = AutoProcessor.from_pretrained(saved("retrieval"), trust_remote_code=True)
    pixels = processor(images=given)["pixel_values"]
    vision = asked.network.vision
    expected = (asked.pixels(asked.views(given)) / 255 - vision.pixel_mean) / vision.pixel_std
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


@pytest.mark.night
def test_the_model_file_does_not_need_this_project(saved, images, tmp_path):
    """Runs in a new process that cannot import this project."""
    script = f"""
import sys, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({str(saved("pretrain"))!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(saved("pretrain"))!r}, trust_remote_code=True)
with torch.no_grad():
    print(model(**processor(images=Image.open({str(images[0])!r}), text="a red star")).matching_logits.item())
ours = {{"x2vlm", "models", "dataset", "utils", "batches", "optim", "tasks", "engine"}} & set(sys.modules)
assert not ours, ours
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        _, _, output = outputs(saved("pretrain"), images[:1], ["a red star"])
    assert float(done.stdout.split()[-1]) == pytest.approx(output.matching_logits.item(), abs=1e-5)


def test_a_model_saved_by_transformers_can_be_loaded_again(saved, images, tmp_path):
    found, inputs, output = outputs(saved("pretrain"), images, TEXTS)
    found.save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(saved("pretrain"), trust_remote_code=True).save_pretrained(tmp_path / "again")
    _, _, again = outputs(tmp_path / "again", images, TEXTS)
    for name, value in output.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0, msg=name)
    assert torch.equal(inputs["input_ids"], inputs["input_ids"])


def test_half_precision_and_tuple_outputs_are_supported(saved, images):
    _, inputs, output = outputs(saved("pretrain"), images, TEXTS)
    half = AutoModel.from_pretrained(saved("pretrain"), trust_remote_code=True, dtype=torch.bfloat16)
    with torch.no_grad():
        found = half(**inputs, return_dict=False)
    assert isinstance(found, tuple) and len(found) == len(output.to_tuple())
    np.testing.assert_allclose(found[0].float(), output.image_embeds, atol=0.05)


def test_the_processor_accepts_images_in_all_forms_and_rejects_unsupported_options(saved, images):
    processor = AutoProcessor.from_pretrained(saved("pretrain"), trust_remote_code=True)
    expected = processor(images=Image.open(images[0]))["pixel_values"]
    for given in (images[0], str(images[0]), np.asarray(Image.open(images[0]))):
        assert torch.equal(processor(images=[given], return_tensors="pt", padding=True)["pixel_values"], expected)
    refused = {
        "is empty": {"images": []},
        "neither a string nor a list of strings": {"text": [None]},
        "an image is None": {"images": [None]},
        "0 x 0 pixels": {"images": Image.new("RGB", (0, 0))},
        "0 x 4 pixels": {"images": np.zeros((4, 0, 3), np.uint8)},
        "not valid Unicode": {"text": "caf\udce9"},
        "neither images nor text": {},
        "return_tensors = 'np' is not supported": {"text": "a star", "return_tensors": "np"},
        "max_length = 20 is not supported": {"text": "a star", "max_length": 20},
    }
    for message, given in refused.items():
        with pytest.raises(ValueError, match=message):
            processor(**given)


def test_the_folder_has_its_files_and_a_model_card(saved):
    names = sorted(path.name for path in saved("pretrain").iterdir())
    assert {"README.md", "config.json", "model.safetensors", "modeling_x2vlm.py", "processor_config.json"} <= set(names)
    assert not any(name.endswith((".bin", ".pt", ".yaml")) for name in names)
    assert (saved("pretrain") / "model.safetensors").stat().st_mode & 0o777 == 0o644
    card = (saved("pretrain") / "README.md").read_text(encoding="utf-8")
    assert "AutoModel.from_pretrained" in card and "library_name: transformers" in card
    about = json.loads((saved("pretrain") / "config.json").read_text(encoding="utf-8"))
    assert about["model_type"] == "x2vlm" and about["auto_map"]["AutoModel"] == "modeling_x2vlm.X2VLMModel"


def test_the_model_file_is_readable():
    """The file has the comments and docstrings of its sources, and no undefined names."""
    text = modelling_file()
    tree = ast.parse(text)
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert imported - sys.stdlib_module_names == {"PIL", "numpy", "pydantic", "timm", "torch", "transformers"}
    assert not imported & {"socket", "subprocess", "urllib", "http", "pickle", "threading"}
    assert '"""The fusion encoder' in text or "class FusionEncoder" in text
    assert "from x2vlm" not in text and "from models" not in text
    pytest.importorskip("ruff")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,E9", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def rows() -> list[Any]:
    """The encoders in docs/encoders.md. Most of these tests are slow."""
    quick = ("DINOv2", "SigLIP 2", "DistilBERT")
    named = [(f"{row.library} {row.title}", row) for row in (*vision.ROWS, *text.ROWS)]
    return [pytest.param(row, id=name, marks=() if row.title in quick else pytest.mark.night) for name, row in named]


@pytest.mark.parametrize("row", rows())
def test_other_encoders_give_the_same_results(model, row, tmp_path):
    (tmp_path / "encoder").mkdir()
    config = row.config(tmp_path / "encoder")
    if isinstance(row, vision.VisionRow):
        sizes = {"vision": config, "text": TextConfig(arch=vision.TEXT)}
    else:
        sizes = {"vision": text.VISION, "text": config}
    settings = Settings(task="retrieval", model=AligningConfig(**sizes, fusion=FusionConfig(layers=2)))
    torch.manual_seed(0)
    network = RetrievalModel(settings.model, VOCABULARY).double().eval()
    asked = Model(TorchRuntime(network), model("retrieval").tokenizer, settings, origin="of random weights")
    asked.save(tmp_path / "saved", format="transformers")
    shutil.rmtree(tmp_path / "encoder")
    found = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True).double().eval()
    assert found.training is False
    words = text.text_of()
    pixels = torch.randint(0, 256, (2, 3, *sides_of(settings.model.vision.image_size)), dtype=torch.uint8)
    with torch.no_grad():
        output = found(pixel_values=pixels, input_ids=words.ids, attention_mask=words.mask)
    with asked.runtime.running():
        torch.testing.assert_close(
            output.image_embeds, network.contrastive.embed_image(network.vision(pixels)), rtol=0, atol=1e-6
        )
        packed = asked.runtime.text_states(words)
        torch.testing.assert_close(output.text_embeds, network.contrastive.embed_text(packed), rtol=0, atol=1e-6)
        columns = [torch.arange(len(words.ids))] * 2
        margins = asked.runtime.margins(asked.runtime.image_states(pixels), columns, TextBank.of([packed]))
    torch.testing.assert_close(output.matching_logits, torch.stack(margins), rtol=0, atol=1e-6)


def test_our_own_load_reports_a_transformers_folder(saved):
    with pytest.raises(UserError, match=r"saved for transformers; load it with AutoModel.from_pretrained"):
        load(saved("pretrain"))


def test_unsupported_models_are_rejected(model, video_model, tmp_path):
    with pytest.raises(UserError, match="is a model for the task vqa"):
        model("vqa").save(tmp_path / "vqa", format="transformers")
    with pytest.raises(UserError, match="is a video model"):
        video_model.save(tmp_path / "videos", format="transformers")
    with pytest.raises(UserError, match="format is 'onnx'"):
        model("pretrain").save(tmp_path / "onnx", format="onnx")
    assert not list(tmp_path.iterdir())
