"""An export gives the same results as its model. Models that cannot be exported and exports that cannot be read are reported in
one line."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import astuple, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from run import main
from tests.messages import OneLine, naming
from x2vlm import UserError, load
from x2vlm.calls import CALLS, EXPORTED, EXPORTED_TASKS
from x2vlm.export import comparing, writing
from x2vlm.export.comparing import TOLERANCE, differences
from x2vlm.export.files import FUSION, GRAPHS, IMAGE, MANIFEST, TEXT
from x2vlm.export.writing import export
from x2vlm.page.abilities import abilities_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TEXTS = ["a small red star", "a circle", "the large blue circle and a green star"]


def images(data, count: int) -> list[Path]:
    return [data / f"images/{number}.png" for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_export_answers_every_call_like_its_model(count, model, onnx_model, data):
    ours, exported, listed = model("pretrain"), onnx_model("pretrain"), images(data, count)
    calls = [
        lambda model: model.embed_images(listed),
        lambda model: model.embed_texts(TEXTS),
        lambda model: model.match(listed, TEXTS),
        lambda model: model.match(listed, TEXTS[:1]),
    ]
    for call in calls:
        expected, found = call(ours), call(exported)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert count == 1 or ours.match(listed, TEXTS).std() > 0.01
    for expected, found in zip(
        ours.locate(listed, [TEXTS] * count), exported.locate(listed, [TEXTS] * count), strict=True
    ):
        assert [box.phrase for box in found] == TEXTS
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(astuple(other)[1:5], astuple(one)[1:5], atol=0.01)  # pixels
            assert other.score == pytest.approx(one.score, abs=TOLERANCE)


def test_a_retrieval_model_has_no_boxes_and_a_grounding_model_only_boxes(model, onnx_model, data):
    listed = images(data, 2)
    np.testing.assert_allclose(
        onnx_model("retrieval").match(listed, TEXTS), model("retrieval").match(listed, TEXTS), atol=TOLERANCE
    )
    with pytest.raises(UserError, match=naming("locate", "retrieval", "pretrain")):
        onnx_model("retrieval").locate(listed, [TEXTS] * 2)
    expected, found = (each.locate(listed, [TEXTS] * 2) for each in (model("grounding"), onnx_model("grounding")))
    for one, other in zip(chain(*expected), chain(*found), strict=True):
        np.testing.assert_allclose(astuple(other)[1:5], astuple(one)[1:5], atol=0.01)
        assert other.score is None
    with pytest.raises(UserError, match=naming("match", "grounding")):
        onnx_model("grounding").match(listed, TEXTS)


def test_an_index_by_model_or_export_is_searched_by_both_with_the_same_hits(
    model, onnx_model, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours = model("pretrain").index(data / "images", tmp_path / "torch")
    exported_index = onnx_model("pretrain").index(data / "images", tmp_path / "onnx")
    np.testing.assert_allclose(exported_index.embeddings, ours.embeddings, atol=TOLERANCE)
    again = type(ours)(tmp_path / "torch", onnx_model("pretrain"), cache=tmp_path / "other")
    expected = ours.search(TEXTS[0], top=4, locate=True)
    for index in (exported_index, again):
        hits = index.search(TEXTS[0], top=4, locate=True)
        assert [hit.path for hit in hits] == [hit.path for hit in expected]
        for hit, other in zip(hits, expected, strict=True):
            assert (hit.score, hit.box.score) == pytest.approx((other.score, other.box.score), abs=TOLERANCE)


def test_an_export_that_ranks_by_the_sum_has_the_temperature(model, onnx_model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours, exported = model("pretrain"), onnx_model("pretrain")
    assert exported.runtime.temperature == pytest.approx(ours.network.contrastive.temperature.item())
    score = exported.settings.evaluation.model_copy(update={"score": "sum"})
    monkeypatch.setattr(exported, "settings", exported.settings.model_copy(update={"evaluation": score}))
    index = exported.index(data / "images", tmp_path / "onnx")
    hits = index.search(TEXTS[0], top=4)
    summed = [np.log(hit.score / (1 - hit.score)) + hit.cosine / exported.runtime.temperature for hit in hits]
    assert summed == sorted(summed, reverse=True)
    monkeypatch.setattr(exported.runtime, "metadata", replace(exported.runtime.metadata, temperature=None))
    with pytest.raises(UserError, match=naming("temperature", "evaluation.score: sum")):
        index.search(TEXTS[0], top=4)


def test_calls_that_an_export_does_not_support_raise_an_error(onnx_model, data, tmp_path):
    exported, (image,) = onnx_model("pretrain"), images(data, 1)
    with pytest.raises(UserError, match=naming("explain", "pretrain.onnx", "ONNX")):
        exported.explain(image, "a star")
    with pytest.raises(UserError, match=naming("caption", "task pretrain")):
        exported.caption(image)
    with pytest.raises(UserError, match=naming("pretrain.onnx", "ONNX")):
        exported.save(tmp_path / "saved")
    assert [ability.name for ability in abilities_of(exported)] == ["locate", "match"]
    assert {call for call in CALLS if exported.takes(call)} == set(EXPORTED)
    assert "pretrain, " in repr(exported) and "M parameters, cpu" in repr(exported)


def test_an_export_is_self_contained_and_names_no_paths(exported, run, model, data, tmp_path, monkeypatch):
    moved = shutil.copytree(exported("pretrain"), tmp_path / "elsewhere.onnx")
    monkeypatch.chdir(tmp_path)
    (image,) = images(data, 1)
    np.testing.assert_allclose(
        load("elsewhere.onnx").match(image, TEXTS), model("pretrain").match(image, TEXTS), atol=TOLERANCE
    )
    everything = b"".join(path.read_bytes() for path in moved.rglob("*") if path.is_file())
    for text in (str(ROOT), str(run("pretrain").parent), str(Path.home()), ".py"):
        assert text.encode() not in everything, text


def test_the_graphs_have_dynamic_batch_texts_and_length(exported):
    import onnxruntime

    shapes = {}
    for name in GRAPHS:
        session = onnxruntime.InferenceSession(exported("pretrain") / name)
        shapes[name] = {each.name: each.shape for each in (*session.get_inputs(), *session.get_outputs())}
    width, embedding = shapes[IMAGE]["image_states"][2], shapes[IMAGE]["image_embedding"][1]
    keys = shapes[IMAGE]["image_states"][1]
    assert shapes[IMAGE]["image_states"][0] == shapes[IMAGE]["pixels"][0] == "batch"
    assert shapes[TEXT] == {
        "ids": ["batch", "length"],
        "mask": ["batch", "length"],
        "text_states": ["batch", "length", width],
        "text_embedding": ["batch", embedding],
    }
    assert shapes[FUSION] == {
        "text_states": ["batch", "texts", "length", width],
        "text_mask": ["batch", "texts", "length"],
        "image_states": ["batch", keys, width],
        "image_mask": ["batch", keys],
        "margin": ["batch", "texts"],
        "box": ["batch", "texts", 4],
    }


def test_the_command_writes_an_export_and_prints_its_difference_from_torch(run, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run("retrieval")), "--out", "r.onnx"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [f"r.onnx/{name}" for name in GRAPHS]
    apart = {
        name: float(number)
        for name, number in (re.match(r"(.*): at most (\S+) from", line).groups() for line in lines[3:])
    }
    assert set(apart) >= {"image embeddings", "text embeddings", "matching probabilities"}
    assert 0 < max(apart.values()) <= TOLERANCE
    assert json.loads(Path("r.onnx", MANIFEST).read_text())["differences"].keys() == apart.keys()
    words = last.removeprefix("next: python run.py ").replace("IMAGE", str(images(data, 1)[0])).replace('"', "")
    assert main(words.replace("a dog", "circle").split()) == 0
    assert "circle" in capsys.readouterr().out
    assert main(["export", str(run("retrieval")), "--out", "r.onnx"]) == 2
    assert capsys.readouterr().err == OneLine("error: --out r.onnx", "different")


def test_an_export_that_differs_from_torch_is_removed(model, exported, tmp_path, monkeypatch):
    before = exported("retrieval")

    def existing_graphs(network, folder, name):
        for graph in GRAPHS:
            shutil.copy(before / graph, folder)

    bias = model("retrieval").network.contrastive.text_proj.bias
    former = bias.detach().clone()
    monkeypatch.setattr(writing, "write_graphs", existing_graphs)
    reported = (
        r"text embeddings of .* differ by \S+ between torch and onnxruntime, more than 1e-04; nothing was written"
    )
    try:
        with torch.no_grad():
            bias[0] += 0.01
        with pytest.raises(UserError, match=reported):
            export(model("retrieval"), tmp_path / "x.onnx")
    finally:
        with torch.no_grad():
            bias.copy_(former)
    assert list(tmp_path.iterdir()) == []
    export(model("retrieval"), tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_a_nan_result_does_not_count_as_a_small_difference(model, onnx_model, monkeypatch):
    runtime = onnx_model("retrieval").runtime
    embed = runtime.text_embeddings

    def broken_for_five(text):
        return embed(text) * (torch.nan if len(text.ids) == 5 else 1.0)

    monkeypatch.setattr(runtime, "text_embeddings", broken_for_five)
    apart = differences(model("retrieval"), runtime)
    assert np.isnan(apart["text embeddings"]) and not np.isnan(apart["image embeddings"])
    with pytest.raises(UserError, match=naming("text embeddings", "nan")):
        writing._within_tolerance(apart, "x")


def test_differences_of_large_numbers_are_relative_and_of_small_ones_absolute():
    for size, expected in ((0.1, 0.001), (1.0, 0.001), (200.0, 0.001 / 200)):
        one = torch.tensor([size, -size / 2])
        assert comparing.difference(one, one + 0.001) == pytest.approx(expected, rel=0.05)


def test_a_damaged_or_missing_file_is_reported_in_one_line(exported, tmp_path):
    def broken(change) -> str:
        folder = tmp_path / "x.onnx"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(exported("retrieval"), folder)
        change(folder)
        with pytest.raises(UserError) as raised:
            load(folder)
        message = str(raised.value)
        assert "\n" not in message and "export again with run.py export" in message
        return message.replace(str(folder), "x.onnx")

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    assert "x.onnx/text.onnx is damaged" in broken(lambda folder: flip(folder / TEXT))
    assert re.search(r"image.onnx has 1,000 of [\d,]+ bytes", broken(lambda f: (f / IMAGE).write_bytes(bytes(1000))))
    assert OneLine("fusion.onnx", "No such file") in broken(lambda folder: (folder / FUSION).unlink()).splitlines()
    assert "config.yaml is damaged" in broken(lambda folder: flip(folder / "config.yaml"))
    assert "x.onnx has no export.json" in broken(lambda folder: (folder / MANIFEST).unlink())
    assert "export.json cannot be read" in broken(lambda folder: (folder / MANIFEST).write_text("[1]"))
    assert "export.json has no image.onnx" in broken(lambda f: rewrite(f, files={}))


def rewrite(folder: Path, **values) -> None:
    stated = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(stated | values))


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        ({"device": "cuda"}, ("CPU", "fp32", "device")),
        ({"precision": "bf16"}, ("precision (bf16)",)),
        ({"config": "c.yaml"}, ("config (c.yaml)",)),
        ({"tokenizer": "t"}, ("tokenizer (t)",)),
    ],
)
def test_options_that_an_export_cannot_apply_are_rejected(options, reported, exported):
    with pytest.raises(UserError, match=naming(*reported)):
        load(exported("retrieval"), **options)


def test_a_folder_that_is_not_an_export_is_reported(exported, tmp_path):
    with pytest.raises(UserError, match=naming("no.onnx", "python run.py export RUN --out")):
        load(tmp_path / "no.onnx")
    with pytest.raises(UserError, match=naming("image.onnx", "export.json")):
        load(exported("retrieval") / IMAGE)
    future = shutil.copytree(exported("retrieval"), tmp_path / "future.onnx")
    rewrite(future, format=3)
    with pytest.raises(UserError, match=naming("format 3", "2")):
        load(future)
    foreign = shutil.copytree(exported("retrieval"), tmp_path / "foreign.onnx")
    (foreign / TEXT).write_bytes(b"no graph")
    from x2vlm.export.files import files_in

    rewrite(foreign, files=files_in(foreign))
    with pytest.raises(UserError, match=naming("text.onnx", "onnxruntime")) as raised:
        load(foreign)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["vqa", "captioning", "nlvr"])
def test_tasks_without_graphs_are_rejected(name, model, tmp_path):
    assert name not in EXPORTED_TASKS
    with pytest.raises(UserError, match=naming(f"task {name}", "pretrain or retrieval or grounding")):
        export(model(name), tmp_path / "x.onnx")


def test_a_name_that_load_would_not_recognise_is_rejected(model, tmp_path):
    with pytest.raises(UserError, match=naming("--out", "/x", "/x.onnx")):
        export(model("retrieval"), tmp_path / "x")


def test_missing_packages_are_reported_with_their_extra(exported, model, tmp_path, monkeypatch):
    folder = exported("retrieval")  # may only be written now, with onnxruntime
    with monkeypatch.context() as patched:
        patched.setitem(__import__("sys").modules, "onnxruntime", None)
        with pytest.raises(UserError, match=naming("onnxruntime", 'pip install -e ".[onnx]"')):
            load(folder)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(UserError, match=naming("export", "onnxscript", 'pip install -e ".[export]"')):
        export(model("retrieval"), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []
