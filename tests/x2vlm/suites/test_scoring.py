"""The scores of cases, against the calls of the model; and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from commands.benchmark import benchmark
from dataset.media.encoded import decode
from tests.x2vlm.suites.official import FOLDERS
from utils.errors import UserError
from x2vlm.matching import sums
from x2vlm.suites import suite_named
from x2vlm.suites.scoring import Case, Picture, score_cases
from x2vlm.suites.suite import GREY


@pytest.fixture(scope="module")
def drawn(scenes_folder) -> list[Case]:
    return suite_named("drawn-pairs").read(scenes_folder, ())


def test_scores_are_those_of_the_calls_in_any_batches(model, drawn):
    asked = model("pretrain")
    cases = [*drawn[:5], Case("one", drawn[0].pictures[:1], ("a red star", "a blue heart", "no star"))]
    asked.batch_size, before = 4, asked.batch_size
    found = score_cases(asked, cases).scores
    asked.batch_size = before
    for index, case in enumerate(cases):
        images, texts = [picture.path for picture in case.pictures], list(case.texts)
        margins, cosines = asked.margins(images, texts), asked.embed_images(images) @ asked.embed_texts(texts).T
        expected = {"cosine": cosines, "matching": margins, "both": sums(asked, margins, cosines)}
        for score, values in expected.items():
            np.testing.assert_allclose(found[score]["model"][index], values, rtol=1e-4, atol=1e-4)
        grey = torch.full((3, 32, 32), GREY, dtype=torch.uint8)
        blind = found["matching"]["text only"][index]
        np.testing.assert_allclose(blind, np.tile(asked.margins(grey, texts), (len(images), 1)), rtol=1e-4, atol=1e-4)


def test_the_box_of_a_picture_is_cut_out(model, tmp_path):
    FOLDERS["fg-ovd"][0](tmp_path)
    path, asked = tmp_path / "val2017/1.jpg", model("pretrain")
    whole = decode(path.read_bytes(), 10**6, str(path))
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


def test_a_model_that_does_not_see_the_images_has_half_of_the_drawn_pairs_right(model, drawn):
    suite = suite_named("drawn-pairs")
    for each in suite.results(suite.judge(model("pretrain"), drawn), draws=0).values():
        accuracies = [result for result in each if result.measure == "accuracy"]
        assert len(accuracies) == 4
        assert all(result.text_only == pytest.approx(0.5) for result in accuracies)


def test_a_model_of_another_task_is_refused(model, drawn):
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
    expected = {"box head"} if name.startswith("refcoco") else {"cosine", "matching", "both"}
    assert receipt["scores"].keys() == expected
    assert receipt["command"] == name
    assert all(len(digest) == 64 for digest in receipt["files"].values())


def test_what_cannot_be_used_is_left_out_and_told(model, tmp_path):
    FOLDERS["winoground"][0](tmp_path)
    suite, asked = suite_named("winoground"), model("pretrain")
    first, second = suite.read(tmp_path, ())
    (tmp_path / "images/ex_1_img_0.png").write_bytes(b"no image")
    long = " ".join(["star"] * 60)
    same = replace(first, texts=(f"{long} a", f"{long} b"))
    judged = suite.judge(asked, [first, second, replace(first, texts=("a star", "!")), same])
    assert len(judged.kinds) == len(judged.examples) == 2
    left_out, cut = judged.notes
    assert left_out.startswith("2 cases could not be scored, such as ")
    assert "ex_1_img_0.png" in left_out
    assert cut.startswith("1 cases have texts that are the same")
    with pytest.raises(UserError, match="no case can be scored"):
        suite.judge(asked, [second])


def test_mistakes_are_told_before_the_model_is_loaded(scenes_folder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        benchmark("sugarcrepe", model="none", data=tmp_path / "none")
    with pytest.raises(UserError, match="has no such kind; kinds are "):
        benchmark("drawn-pairs", model="none", data=scenes_folder, kinds=("sizes",))
    FOLDERS["winoground"][0](tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        benchmark("winoground", model="none", data=tmp_path, out=tmp_path / "file")
    (tmp_path / "images/ex_1_img_0.png").unlink()
    with pytest.raises(UserError, match="images of Winoground are missing: 1, such as"):
        benchmark("winoground", model="none", data=tmp_path)
