"""Official files are read as cases. Missing files and other formats are reported."""

from __future__ import annotations

import json
import pickle

import pytest

from tests.messages import naming
from tests.x2vlm.suites.official import CASES, FOLDERS
from utils.errors import UserError
from x2vlm.suites import SUITES, aro, suite_named


@pytest.mark.parametrize("name", CASES)
def test_every_suite_is_read_completely(name, tmp_path):
    write, count = CASES[name]
    write(tmp_path)
    suite = suite_named(name)
    cases = [case for case in suite.read(tmp_path, ()) if not case.excluded]
    assert len(cases) == count
    kinds = {case.kind for case in cases}
    rows = {*kinds, *suite.summaries}
    for published in suite.published:
        assert {key.split(": ")[0] for key in published.values} <= rows
        assert {key.split(": ")[1] for key in published.values} <= {*suite.measures}
    for _, members in suite.summaries.values():
        assert set(members) <= rows


def measured(name: str, folder):
    return [case for case in suite_named(name).read(folder, ()) if not case.excluded]


def test_every_suite_except_the_drawn_one_is_tested_here():
    assert FOLDERS.keys() == SUITES.keys() - {"drawn-pairs"}


def test_parts_are_relations_and_attribute_pairs(tmp_path):
    FOLDERS["aro-relation"][0](tmp_path)
    relations, pairs = (measured(name, tmp_path) for name in ("aro-relation", "aro-attribution"))
    assert [case.part for case in relations] == ["on", "under", "on"]
    assert {case.part for case in pairs} == {"red_small"}


def test_symmetric_relations_are_excluded_as_in_the_official_notebook():
    """There are 157 names, all of which the notebook removes (in its fifth cell)."""
    assert len(aro.SYMMETRIC) == 157
    assert {"near", "next to", "by", "of", "standing in front of", "wrapped in"} <= aro.SYMMETRIC
    assert not {"on", "under", "behind", "in front of", "to the left of"} & aro.SYMMETRIC


def test_cases_excluded_by_the_official_rule_are_counted(tmp_path, model):
    for name, reason in [
        ("aro-relation", "1 of 4 cases are excluded: the official notebook calls their relation symmetric"),
        ("aro-attribution", "24 of 49 cases are excluded: fewer than 25 cases have this pair of attributes"),
        ("valse", "11 of 22 cases are excluded: fewer than 2 of 3 annotators chose the caption"),
        ("fg-ovd", "8 of 16 cases are excluded: they have no wrong descriptions"),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        FOLDERS[name][0](folder)
        suite = suite_named(name)
        assert reason in suite.judge(model("pretrain"), suite.read(folder, ())).notes


def test_cases_have_their_official_ids(tmp_path):
    for name, ids in [("sugarcrepe", ["0", "2"]), ("valse", ["a_1"]), ("fg-ovd", ["0"]), ("aro-relation", ["0"])]:
        folder = tmp_path / name
        folder.mkdir()
        FOLDERS[name][0](folder)
        assert [case.id for case in measured(name, folder)][: len(ids)] == ids


def test_the_first_text_is_correct_and_the_box_is_kept(tmp_path):
    FOLDERS["fg-ovd"][0](tmp_path)
    case = suite_named("fg-ovd").read(tmp_path, ())[0]
    assert (case.kind, case.texts) == ("hard", ("a red star", "a green star", "a blue star"))
    assert case.pictures[0].box == (1.5, 2.0, 9.2, 8.0)


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "classification"])
def test_missing_files_are_named_with_their_source(name, tmp_path):
    suite = suite_named(name)
    with pytest.raises(UserError, match="missing; see ") as error:
        suite.read(tmp_path, ())
    assert suite.published_at in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("3", "neither a list nor an object"),
        (json.dumps({"0": {"filename": "x", "caption": "a"}}), "entry '0' has no 'negative_caption'"),
        (json.dumps([[]]), "entry 0 is malformed"),
        (json.dumps([{"filename": "x", "caption": 3, "negative_caption": "a"}]), "must be strings"),
    ],
)
def test_another_format_is_reported_in_one_line(text, message, tmp_path):
    FOLDERS["sugarcrepe"][0](tmp_path)
    (tmp_path / "swap_att.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        suite_named("sugarcrepe").read(tmp_path, ())
    assert str(tmp_path / "swap_att.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_images_are_reported_unless_their_kind_is_not_measured(tmp_path):
    FOLDERS["winoground"][0](tmp_path)
    (tmp_path / "images/ex_1_img_0.png").unlink()
    with pytest.raises(UserError, match=r"1 images of Winoground are missing, for example .*ex_1_img_0\.png; see "):
        suite_named("winoground").read(tmp_path, ())
    assert len(suite_named("winoground").read(tmp_path, ["object"])) == 1


def test_only_the_files_of_the_chosen_kinds_are_needed(tmp_path):
    FOLDERS["sugarcrepe"][0](tmp_path)
    for path in tmp_path.glob("add_*.json"):
        path.unlink()
    assert len(suite_named("sugarcrepe").read(tmp_path, ["swap_att"])) == 2


def test_files_without_cases_are_reported(tmp_path):
    FOLDERS["valse"][0](tmp_path)
    for name in suite_named("valse").files(tmp_path, ()):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"existence\.json: contains no cases; download it again from github"):
        suite_named("valse").read(tmp_path, ())


def test_one_empty_file_is_reported(tmp_path):
    FOLDERS["sugarcrepe"][0](tmp_path)
    (tmp_path / "swap_att.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"swap_att\.json: contains no cases; download it again from github"):
        suite_named("sugarcrepe").read(tmp_path, ())


def test_files_whose_cases_are_all_excluded_are_reported(tmp_path):
    FOLDERS["aro-attribution"][0](tmp_path)
    path = tmp_path / "visual_genome_attribution.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[25:]), encoding="utf-8")
    with pytest.raises(UserError, match="all 24 cases are excluded: fewer than 25 cases have this pair of attributes"):
        suite_named("aro-attribution").read(tmp_path, ())


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["swap"], "--kinds swap: is a mean over kinds; pass swap_obj swap_att instead"),
        (["mean of kinds"], "--kinds mean of kinds: is a mean over kinds; pass replace_obj replace_att"),
        (["swap_obj,swap_att"], "--kinds swap_obj,swap_att: separate kinds by spaces, not by commas"),
        (["swaps"], "--kinds swaps: SugarCrepe has no such kind; the kinds are replace_obj, "),
    ],
)
def test_an_unknown_kind_is_reported(kinds, message, tmp_path):
    FOLDERS["sugarcrepe"][0](tmp_path)
    with pytest.raises(UserError) as error:
        suite_named("sugarcrepe").read(tmp_path, kinds)
    assert str(error.value).startswith(message)


def test_an_invalid_entry_is_reported_with_the_reason(tmp_path):
    FOLDERS["fg-ovd"][0](tmp_path)
    path = tmp_path / "color.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["category_id"] = 999
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"color\.json: annotation 0 has the category 999, which categories does not list"
    ):
        suite_named("fg-ovd").read(tmp_path, ())
    FOLDERS["valse"][0](tmp_path)
    (tmp_path / "existence.json").write_text(json.dumps({"a_1": {"mturk": 3}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"existence\.json: entry 'a_1': mturk is 3, not an object"):
        suite_named("valse").read(tmp_path, ())


def test_a_key_that_occurs_twice_is_reported(tmp_path):
    FOLDERS["sugarcrepe"][0](tmp_path)
    path = tmp_path / "swap_att.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"2": ', '"0": '), encoding="utf-8")
    with pytest.raises(UserError, match=naming(str(path), "the key '0' occurs twice", "download it again")):
        suite_named("sugarcrepe").read(tmp_path, ())
    FOLDERS["winoground"][0](tmp_path)
    path = tmp_path / "examples.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"caption_1"', '"caption_0"'), encoding="utf-8")
    with pytest.raises(UserError, match=naming(f"{path}:1", "the key 'caption_0' occurs twice")):
        suite_named("winoground").read(tmp_path, ())


def test_an_id_that_occurs_twice_is_reported(tmp_path):
    FOLDERS["winoground"][0](tmp_path)
    path = tmp_path / "examples.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"id": 1', '"id": 0'), encoding="utf-8")
    with pytest.raises(
        UserError, match=naming(str(path), "two cases have the same id '0'", "numbers 1 and 2", "download")
    ):
        suite_named("winoground").read(tmp_path, ())
    FOLDERS["sugarcrepe++"][0](tmp_path)
    path = tmp_path / "swap_att.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) * 2), encoding="utf-8")
    with pytest.raises(UserError, match=naming(str(path), "two cases have the same id '0'")):
        suite_named("sugarcrepe++").read(tmp_path, ())


def test_an_image_that_occurs_twice_in_a_retrieval_suite_is_reported(tmp_path):
    suite = suite_named("retrieval-coco")
    FOLDERS["retrieval-coco"][0](tmp_path)
    path = tmp_path / "coco_test.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([*entries, entries[1]]), encoding="utf-8")
    reported = ("two entries have the same image 'images/1.jpg'", "numbers 2 and 4", "download it again")
    with pytest.raises(UserError, match=naming(str(path), *reported)):
        suite.read(tmp_path, ())
    path.unlink()
    karpathy = [
        {"filename": entry["image"], "split": "test", "sentences": [{"raw": text} for text in entry["caption"]]}
        for entry in entries
    ]
    karpathy.insert(0, {"filename": "3.jpg", "split": "train", "sentences": []})
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": karpathy}), encoding="utf-8")
    assert len(suite.read(tmp_path, ()).items.images) == 3
    path.write_text(json.dumps({"images": [*karpathy, karpathy[2]]}), encoding="utf-8")
    with pytest.raises(UserError, match=naming(str(path), reported[0], "numbers 3 and 5")):
        suite.read(tmp_path, ())


def test_an_id_of_refcoco_that_occurs_twice_is_reported(tmp_path):
    FOLDERS["refcoco"][0](tmp_path)
    path = tmp_path / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([*refs, refs[0]]))
    with pytest.raises(UserError, match=naming(str(path), "two references have the same ref_id 0", "numbers 1 and 4")):
        suite_named("refcoco").read(tmp_path, ())
    path.write_bytes(pickle.dumps(refs))
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, repeated in (("images", 7), ("annotations", 1)):
        path.write_text(json.dumps({**content, name: content[name] * 2}), encoding="utf-8")
        with pytest.raises(UserError, match=naming(str(path), f"two {name} have the same id {repeated}", "download")):
            suite_named("refcoco").read(tmp_path, ())


@pytest.mark.parametrize("name", ["categories", "images", "annotations"])
def test_an_id_of_fg_ovd_that_occurs_twice_is_reported(name, tmp_path):
    FOLDERS["fg-ovd"][0](tmp_path)
    path = tmp_path / "color.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content[name].append({**content[name][0], "name": "a red heart", "file_name": "val2017/2.jpg"})
    path.write_text(json.dumps(content), encoding="utf-8")
    what = "two cases" if name == "annotations" else f"two {name}"
    with pytest.raises(UserError, match=naming(str(path), f"{what} have the same id", "download it again")):
        suite_named("fg-ovd").read(tmp_path, ())


def test_blank_lines_are_skipped_and_invalid_lines_named(tmp_path):
    FOLDERS["winoground"][0](tmp_path)
    path = tmp_path / "examples.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    assert len(suite_named("winoground").read(tmp_path, ())) == 2
    path.write_text(path.read_text(encoding="utf-8") + "{\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"examples.jsonl:5 is not JSON"):
        suite_named("winoground").read(tmp_path, ())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"examples.jsonl: cannot be read"):
        suite_named("winoground").read(tmp_path, ())


def test_a_choice_among_more_texts_has_a_lower_chance(tmp_path, model):
    FOLDERS["fg-ovd"][0](tmp_path)
    suite = suite_named("fg-ovd")
    judged = suite.judge(model("pretrain"), suite.read(tmp_path, ["hard"]))
    assert judged.chance == {"hard: accuracy": pytest.approx(1 / 3)}
    assert judged.examples[0]["boxes"] == [(1.5, 2.0, 9.2, 8.0)]
