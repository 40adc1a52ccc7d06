"""The scores of a suite's cases are compared with direct calls of the model. Also tests the command."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands.benchmark import benchmark
from dataset.media.encoded import decode
from run import main
from tests.messages import OneLine, naming
from tests.x2vlm.suites.official import FOLDERS
from utils.errors import UserError
from utils.files import write_text
from x2vlm.matching import sums
from x2vlm.suites import suite_named
from x2vlm.suites.scoring import Case, Picture, score_cases
from x2vlm.suites.suite import GREY


@pytest.fixture(scope="module")
def drawn(scenes_folder) -> list[Case]:
    return suite_named("drawn-pairs").read(scenes_folder, ())


def test_scores_equal_the_calls_of_the_model_in_any_batches(model, drawn):
    asked = model("pretrain")
    cases = [*drawn[:5], Case("one", drawn[0].pictures[:1], ("a red star", "a blue heart", "no star"))]
    asked.batch_size, before = 4, asked.batch_size
    found = score_cases(asked, cases).scores
    asked.batch_size = before
    for index, case in enumerate(cases):
        images, texts = [picture.path for picture in case.pictures], list(case.texts)
        margins, cosines = asked.margins(images, texts), asked.embed_images(images) @ asked.embed_texts(texts).T
        expected = {"cosine": cosines, "matching": margins, "sum": sums(asked, margins, cosines)}
        for score, values in expected.items():
            np.testing.assert_allclose(found[score]["model"][index], values, rtol=1e-4, atol=1e-4)
        grey = torch.full((3, 32, 32), GREY, dtype=torch.uint8)
        blind = found["matching"]["text only"][index]
        np.testing.assert_allclose(blind, np.tile(asked.margins(grey, texts), (len(images), 1)), rtol=1e-4, atol=1e-4)


def test_the_box_of_an_image_is_cropped(model, tmp_path):
    FOLDERS["fg-ovd"][0](tmp_path)
    path, asked = tmp_path / "val2017/1.jpg", model("pretrain")
    whole = decode(path.read_bytes(), 10**6)
    boxes = {
        (1.5, 2.0, 9.2, 8.0): whole[:, 2:10, 1:11],
        (-5, 20, 100, 100): whole[:, 20:24],
        (40, 3, 0, 0): whole[:, 3:4, 31:],
    }
    for box, part in boxes.items():
        (scores,) = score_cases(asked, [Case("a", (Picture(path, box),), ("a star", "a heart"))]).scores["matching"][
            "model"
        ]
        np.testing.assert_allclose(scores, asked.margins(part, ["a star", "a heart"]), rtol=1e-4, atol=1e-5)


def test_a_model_that_ignores_the_images_scores_half_of_the_drawn_pairs(model, drawn):
    suite = suite_named("drawn-pairs")
    for each in suite.results(suite.judge(model("pretrain"), drawn), draws=0).values():
        accuracies = [result for result in each if result.measure == "accuracy"]
        assert len(accuracies) == 5
        assert all(result.text_only == pytest.approx(0.5) for result in accuracies)
        assert all(result.image_only == pytest.approx(0.5) for result in accuracies)


def test_a_model_of_another_task_is_rejected(model, drawn):
    with pytest.raises(UserError, match="task pretrain or retrieval"):
        suite_named("drawn-pairs").judge(model("vqa"), drawn)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_command_writes_receipt_table_and_scores(name, run, tmp_path, capsys):
    write, count = FOLDERS[name]
    write(tmp_path)
    out = tmp_path / "out"
    assert benchmark(name, model=str(run("pretrain")), data=tmp_path, bootstrap=20, out=out) == 0
    printed = capsys.readouterr().out
    assert (out / "table.txt").read_text(encoding="utf-8") in printed
    receipt = json.loads((out / "receipt.json").read_text(encoding="utf-8"))
    assert receipt["examples"] == count == len((out / "cases.jsonl").read_text(encoding="utf-8").splitlines())
    if name not in ("coco-boxes", "lvis-boxes", "odinw"):
        expected = {"box head"} if name.startswith(("refcoco", "flickr30k-entities")) else {"cosine", "matching", "sum"}
        assert receipt["scores"].keys() == expected
    assert receipt["suite"] == name
    assert receipt["command"].startswith(f"python run.py benchmark {name} --model ")
    assert all(len(digest) == 64 for digest in receipt["files"].values())
    assert {"code", "machine", "date", "data", "weights", "seed", "batch_size", "device"} <= receipt.keys()
    examples = [json.loads(line) for line in (out / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all("kind" in example and ("right" in example or "scores" in example) for example in examples)


def test_an_earlier_receipt_is_only_replaced_on_request(run, tmp_path, capsys):
    FOLDERS["winoground"][0](tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "receipt.json").write_text("earlier")
    with pytest.raises(UserError, match=naming(f"--out {out}", "contains receipt.json", "--overwrite")):
        benchmark("winoground", model="none", data=tmp_path, out=out)
    assert [path.read_text() for path in out.iterdir()] == ["earlier"]
    shutil.rmtree(out)
    argv = ["benchmark", "winoground", "--model", str(run("pretrain")), "--data", str(tmp_path), "--out", str(out)]
    assert main(argv) == 0
    assert main(argv) == 2
    assert capsys.readouterr().err.splitlines()[-1] == OneLine("receipt.json", "--overwrite")
    assert main([*argv, "--overwrite", "--bootstrap", "0"]) == 0
    assert json.loads((out / "receipt.json").read_text(encoding="utf-8"))["bootstrap"] == 0


def test_a_receipt_is_only_present_next_to_its_own_cases(run, tmp_path, monkeypatch):
    FOLDERS["winoground"][0](tmp_path)
    out = tmp_path / "out"

    def measure(**options: Any) -> int:
        return benchmark("winoground", model=str(run("pretrain")), data=tmp_path, bootstrap=0, out=out, **options)

    def stop_at_the_table(path: Path, text: str) -> None:
        if path.name == "table.txt":
            raise KeyboardInterrupt
        write_text(path, text)

    assert measure() == 0
    with monkeypatch.context() as patch:
        patch.setattr("commands.benchmark.write_text", stop_at_the_table)
        with pytest.raises(KeyboardInterrupt):
            measure(overwrite=True)
    assert not (out / "receipt.json").exists()
    assert measure() == 0, "the files of a run that was stopped may be replaced"
    assert (out / "receipt.json").exists()


def test_images_whose_names_are_not_utf_8_are_scored_and_written(run, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    FOLDERS["classification"][0](data)
    name = os.fsdecode(b"caf\xe9.png")
    next((data / "red_star").iterdir()).rename(data / "red_star" / name)
    assert benchmark("classification", model=str(run("pretrain")), data=data, bootstrap=0, out=out) == 0
    cases = [json.loads(line) for line in (out / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    assert str(data / "red_star" / name) in [case["image"] for case in cases]


def test_the_receipts_of_different_measurements_differ(run, tmp_path):
    """Here, the class folders have other names, and the images are the same."""
    receipts = []
    for names in (("blue_heart", "red_star"), ("a_heart", "a_star")):
        data, out = tmp_path / names[0], tmp_path / f"{names[0]}_out"
        FOLDERS["classification"][0](data)
        for old, new in zip(("blue_heart", "red_star"), names, strict=True):
            (data / old).rename(data / new)
        benchmark("classification", model=str(run("pretrain")), data=data, bootstrap=0, out=out)
        receipts.append(json.loads((out / "receipt.json").read_text(encoding="utf-8")))
    assert receipts[0]["examples_sha256"] != receipts[1]["examples_sha256"]
    assert receipts[0]["details"] == {"classes": ["blue heart", "red star"], "templates": ["a photo of a {c}"]}


def test_examples_have_the_fields_needed_to_compare_runs(model, tmp_path):
    FOLDERS["sugarcrepe++"][0](tmp_path)
    suite = suite_named("sugarcrepe++")
    judged = suite.judge(model("pretrain"), suite.read(tmp_path, ["swap_att"]))
    (example,) = judged.examples
    assert (example["id"], example["kind"]) == ("0", "swap_att")
    for score in ("cosine", "matching", "sum"):
        (first, second, wrong) = example["scores"][score][0]
        assert example["right"][score]["ITT"] == float(min(first, second) > wrong)
        assert np.shape(example["text_only"][score]) == np.shape(example["image_only"][score]) == (1, 3)
        assert len(set(example["image_only"][score][0])) == 1
    texts = model("pretrain").embed_texts(list(example["texts"]))
    same, first, second = (texts[a] @ texts[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert example["right"]["cosine"]["TOT"] == float(same > max(first, second))
    assert "TOT" not in example["right"]["matching"]
    found = suite.results(judged, draws=10)
    assert [result.measure for result in found["cosine"]] == ["ITT", "first", "second", "TOT"]
    assert [result.measure for result in found["sum"]] == ["ITT", "first", "second"]
    assert {result.measure: result.image_only for result in found["cosine"]} == pytest.approx(
        {"ITT": 1 / 3, "first": 1 / 2, "second": 1 / 2, "TOT": 1 / 3}
    )


def test_a_baseline_does_not_depend_on_other_cases(model, drawn):
    suite = suite_named("drawn-pairs")
    every, few = (suite.judge(model("pretrain"), cases) for cases in (drawn, drawn[7:9]))
    for look in ("text only", "image only"):
        np.testing.assert_array_equal(every.values["sum"][look][7:9], few.values["sum"][look])


def test_a_kind_without_cases_is_reported(model, tmp_path):
    FOLDERS["winoground"][0](tmp_path)
    suite = suite_named("winoground")
    content = suite.read(tmp_path, ())
    (tmp_path / "images/ex_1_img_0.png").write_bytes(b"no image")
    assert "no case of relation could be scored" in suite.judge(model("pretrain"), content).notes


def test_unusable_cases_are_skipped_and_reported(model, tmp_path):
    FOLDERS["winoground"][0](tmp_path)
    suite, asked = suite_named("winoground"), model("pretrain")
    first, second = suite.read(tmp_path, ())
    (tmp_path / "images/ex_1_img_0.png").write_bytes(b"no image")
    long = " ".join(["star"] * 60)
    same = replace(first, texts=(f"{long} a", f"{long} b"))
    judged = suite.judge(asked, [first, second, replace(first, texts=("a star", "!")), same])
    assert len(judged.kinds) == len(judged.examples) == 2
    skipped, cut = judged.notes[:2]
    assert skipped.startswith("2 cases could not be scored, such as ")
    assert "ex_1_img_0.png" in skipped
    assert cut.startswith("1 cases have texts that are equal")
    with pytest.raises(UserError, match="no case can be scored"):
        suite.judge(asked, [second])


def test_mistakes_are_reported_before_the_model_is_loaded(scenes_folder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        benchmark("sugarcrepe", model="none", data=tmp_path / "none")
    with pytest.raises(UserError, match="has no such kind; the kinds are "):
        benchmark("drawn-pairs", model="none", data=scenes_folder, kinds=("sizes",))
    FOLDERS["winoground"][0](tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; pass a folder"):
        benchmark("winoground", model="none", data=tmp_path, out=tmp_path / "file")
    (tmp_path / "images/ex_1_img_0.png").unlink()
    with pytest.raises(UserError, match="1 images of Winoground are missing, for example"):
        benchmark("winoground", model="none", data=tmp_path)
