"""The individual checks of ``run.py doctor``, which inspects a config and its data, and the checks at the start of every run."""

import itertools
import json
import logging
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from batches.base import IGNORE, Batch, BrokenRecord, RecordCount
from batches.texts import MaskedText
from dataset import leaks, look_alikes
from dataset.leaks import shared_images
from dataset.media.sources import ImageSource, VideoSource
from dataset.records.box_form import look_like_corners
from dataset.records.boxes import are_relative
from dataset.text.loading import load_tokenizer
from engine.run_plan import RunPlan
from tasks import run
from tasks.checks import check_start, check_text_encoder, small_data
from tasks.config import PretrainConfig
from tasks.prepared import Findings, PreparedRun
from tasks.pretrain import PretrainTask
from tests.conftest import tiny_run
from tests.dataset.prepare.official import photograph
from tests.messages import OneLine
from tools.doctor import shared
from tools.doctor.boxes import RawBox, findings_in_boxes
from tools.doctor.findings import NotCheckedError, Report
from tools.doctor.first_step import step_findings
from tools.doctor.machine import versions
from tools.doctor.panels import as_image, drawn_boxes, images_of, lines_of, panels_of
from tools.doctor.sample import broken_findings, media_folders
from tools.doctor.shared import _check_looks, _report_shared
from tools.doctor.text_log import TextLog
from utils.config import load_config
from utils.errors import UserError
from utils.findings import Finding


def random_boxes(count: int = 200, side: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """True boxes x, y, w, h in square images."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(5, 40, (count, 2))
    corner = rng.uniform(0, side - sizes)
    return np.concatenate([corner, sizes], axis=1), np.full((count, 2), side)


def test_the_format_of_boxes_is_recognised():
    boxes, sizes = random_boxes()
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    assert are_relative(boxes / 100) and not are_relative(boxes) and not are_relative(boxes[:0])
    assert look_like_corners(corners, sizes)
    assert not look_like_corners(boxes, sizes)
    assert not look_like_corners(boxes[:0], sizes[:0])
    outside = boxes + np.array([80.0, 0, 0, 0])
    assert not look_like_corners(outside, sizes)


def found_in(boxes: np.ndarray, sizes: np.ndarray, orientation: int) -> list[Finding]:
    raw = [
        RawBox(tuple(box), tuple(size), f"a.jsonl:{number}", orientation)
        for number, (box, size) in enumerate(zip(boxes.tolist(), sizes.tolist(), strict=True))
    ]
    return findings_in_boxes(raw, "data.train")


def test_boxes_on_the_rotated_view_of_photographs_are_not_mistaken_for_corners():
    """Images stored as 100 x 40 pixels with orientation 6 are shown as 40 x 100."""
    boxes, sizes = random_boxes()
    stored, turned = sizes * np.array([1.0, 0.4]), boxes * np.array([0.4, 1.0, 0.4, 1.0])
    (finding,) = found_in(turned, stored, 6)
    assert finding.level == "warning" and finding.fact == OneLine("200 of 200", "EXIF")
    assert "100% of the" in finding.fact and "lie inside the rotated image, such as [" in finding.fact
    assert "exif_transpose" in finding.remedy
    (finding,) = found_in(boxes * np.array([1.0, 0.4, 1.0, 0.4]), stored, 6)
    assert finding.fact == OneLine("EXIF", "stored pixels") and "rotated one" not in finding.fact
    assert found_in(boxes, sizes, 1) == []


def test_corners_in_rotated_images_are_still_recognised_as_corners():
    boxes, sizes = random_boxes()
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    orientation, form = found_in(corners, sizes, 6)
    assert "rotated one" not in orientation.fact
    assert form.fact.startswith("boxes look like x1, y1, x2, y2")


def test_one_box_beyond_one_is_not_relative():
    boxes = random_boxes()[0] / 100
    boxes[7, 2] = 1.5
    assert not are_relative(boxes)


@pytest.fixture
def files(tmp_path) -> Path:
    for name, content in {"a.png": b"one", "b.png": b"two", "c.png": b"333", "d.png": b"one"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path)
    return tmp_path


def image(path: Path) -> ImageSource:
    return ImageSource(path.name, path=path)


def test_shared_images_are_found_by_path_link_or_content(files):
    found = shared_images([image(files / "a.png")], [image(files / "a.png"), image(files / "b.png")])
    assert (found.pairs, found.held_out) == ((("a.png", "a.png", "path"),), 2)
    linked = shared_images([image(files / "a.png")], [image(files / "link" / "a.png")])
    assert (linked.shared, linked.count("path")) == (1, 1)
    copy = shared_images([image(files / "a.png")], [image(files / "d.png")])
    assert copy.pairs == (("d.png", "a.png", "content"),)
    inside = shared_images([ImageSource("tar", content=b"one")], [image(files / "d.png")])
    assert inside.count("content") == 1
    assert shared_images([image(files / "a.png")], [image(files / "b.png"), image(files / "c.png")]).shared == 0


def test_videos_and_missing_files_are_compared_too(files):
    frames = tuple(ImageSource("x", content=content) for content in (b"1", b"2"))
    assert shared_images([VideoSource("a", frames=frames)], [VideoSource("b", frames=frames)]).shared == 1
    assert shared_images([VideoSource("a", path=files)], [VideoSource("b", path=files / "b.png")]).shared == 0
    assert shared_images([image(files / "none.png")], [image(files / "gone.png")]).shared == 0


def test_the_doctor_does_not_approve_of_images_that_it_could_not_compare(files):
    lines = []
    report = Report(lines.append)
    _report_shared(shared_images([image(files / "a.png")], [image(files / "b.png")]), "evaluation.test", "", report)
    assert report.not_checked == 0
    _report_shared(shared_images([image(files / "a.png")], [image(files / "gone.png")]), "evaluation.test", "", report)
    assert report.not_checked == 1 and "1 of 1 training" in " ".join("".join(lines).split())


def test_large_data_are_compared_only_by_path(files, monkeypatch):
    both = [image(files / "a.png")], [image(files / "d.png"), image(files / "a.png")]
    monkeypatch.setattr(leaks, "MAX_BYTES", 4)
    found = shared_images(*both)
    assert (found.shared, found.too_many) == (1, "bytes")
    monkeypatch.setattr(leaks, "MAX_FILES", 0)
    assert shared_images(*both).too_many == "files"


def test_an_error_becomes_a_finding_with_its_parts():
    written = []
    report = Report(written.append)
    with report.check("training"):
        raise UserError("a: b does not exist; c", where="data.train", remedy="check the path; or make it")
    with report.check("training"):
        raise UserError("no key here: 1; really")
    assert report.findings == [
        Finding("refused", "data.train", "a: b does not exist; c", "check the path; or make it"),
        Finding("refused", "config", "no key here: 1; really", ""),
    ]


def test_a_report_continues_after_errors_and_counts_them():
    written = []
    report = Report(written.append)
    for error in (NotCheckedError("why"), UserError("a.b: fact; remedy"), ValueError("odd")):
        with report.check("check"):
            raise error
    report.add("other", [Finding("warning", "c", "fact", "remedy")])
    assert report.end(3.2) == 1
    text = "".join(written)
    assert "not checked: why" in text and "ValueError: odd" in text
    assert text.endswith("2 refused, 1 warning, 1 not checked (3 s)\n")
    assert Report(lambda _: None).end(0) == 0


def test_equal_findings_are_reported_once_with_all_locations():
    written = []
    report = Report(written.append)
    for place in ("data.train", "evaluation.validation", "data.train"):
        report.add("check", [Finding("refused", place, "fact", "remedy")])
    report.add("check", [Finding("refused", "data.train", "another fact", "remedy")])
    report.end(0)
    text = "".join(written)
    assert "[1] data.train: fact" in text and "[1] evaluation.validation: the same" in text
    assert "  1. refused: data.train, evaluation.validation\n" in text and "  3. " not in text
    assert "2 refused" in text


def test_versions_outside_the_requirements_are_reported(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("# comment\ntorch>=2\nnumpy<1  # old\nno-such-package-of-ours>=1\n")
    assert [(each.level, each.location) for each in versions(file)] == [
        ("warning", "numpy"),
        ("refused", "no-such-package-of-ours"),
    ]


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "wrong"), [((1.0, 2.0), ""), ((NAN, 2.0), "mlm, loss"), ((1.0, INFINITE), "grad_norm")]
)
def test_losses_and_gradients_must_be_finite(values, wrong):
    loss, norm = values
    found = step_findings("images", {"mlm": loss, "loss": loss, "grad_norm": norm})
    assert [each.level for each in found] == (["refused"] if wrong else [])
    assert all(each.fact.startswith(f"{wrong} of the first step") for each in found)


class Tokenizer:
    """A tokenizer with five tokens, of which 1 is the unknown token."""

    unk_token_id, pad_token_id = 1, 0

    def __init__(self):
        self.backend_tokenizer = self

    def encode(self, text, add_special_tokens):
        return Namespace(ids=[1, 3], offsets=[(0, 2), (3, 5)])

    def convert_ids_to_tokens(self, ids):
        return [["[PAD]", "[UNK]", "[MASK]", "red", "##dish"][number] for number in ids]


def test_a_text_log_counts_unknown_words():
    log = TextLog(Tokenizer())
    log.backend_tokenizer.encode("xy red", add_special_tokens=False)
    assert (log.tokens, dict(log.unknown), log.pad_token_id) == (2, {"xy": 1}, 0)


def test_masked_positions_are_marked():
    text = MaskedText(
        ids=torch.tensor([[3, 3, 4, 0]]),
        mask=torch.tensor([[True, True, True, False]]),
        masked_ids=torch.tensor([[3, 2, 4, 0]]),
        positions=torch.tensor([[1, 0]]),
        labels=torch.tensor([[3, IGNORE]]),
        text_id=torch.tensor([0]),
    )
    (box,) = drawn_boxes(torch.tensor([[0.5, 0.5, 0.5, 1.0]]))
    shown, target = lines_of(text, 0, Tokenizer(), box)
    assert box.predicted == (0.25, 0.0, 0.5, 1.0) and shown.key == (box.colour, box.number)
    assert (shown.text, target.text) == ("red «[MASK]»dish", "to predict: «red»")


def test_images_are_shown_as_in_the_batch():
    pixels = torch.arange(6 * 3 * 2 * 2, dtype=torch.uint8).view(6, 3, 2, 2)
    pair = images_of(pixels, 1, 3)  # three statements about two images each
    assert [int(each[0, 0, 0]) for each in pair] == [12, 48]
    video = images_of(pixels.view(2, 3, 3, 2, 2), 1, 2)
    assert [int(each[0, 0, 0]) for each in video] == [36, 48, 60]
    mean = torch.zeros(3, 2, 2)
    assert as_image(mean)[0, 0].tolist() == [123, 117, 104]  # CLIP's mean colour


def test_small_data_are_counted_by_stream():
    sizes = {"images": ("data.images.batch_size", 4), "regions": ("data.regions.max_images", 6)}
    records = {"images": 8, "regions": 10}
    assert small_data(sizes, records, 1, 1) == []
    (found,) = small_data(sizes, records, 2, 1)
    assert (found.location, found.remedy) == ("data.regions.max_images", OneLine("lower it to at most 5"))


def test_the_size_of_the_data_is_compared_with_all_chunks_of_the_loss():
    sizes, records = {"": ("data.train.batch_size", 4)}, {"captions": 23}
    assert small_data(sizes, records, 1, 5) == []
    (found,) = small_data(sizes, records, 2, 3)
    assert found.fact == OneLine("4 on 2 ranks", "3 chunks", "24", "23 captions")
    assert found.remedy == OneLine("lower it to at most 3")


def start(task: str, folder: Path, output: Path, *overrides: str) -> int:
    tiny = [each for each in tiny_run(folder) if each.startswith(("model.", "train.", "schedule."))]
    name = {"grounding": "refer", "vqa": "vqa"}.get(task, task)
    key = "questions" if task == "vqa" else "annotations"
    train = f"{folder}/{name}_train.jsonl"
    splits = [f"evaluation.{split}.{key}={folder}/{name}_test.jsonl" for split in ("validation", "test.test")]
    splits.append(f"data.train=[{{questions: {train}}}]" if task == "vqa" else f"data.train.annotations={train}")
    common = ["--output", str(output), "init.checkpoint=null", "data.workers=0", "data.batch_size=4"]
    return run.main([task, *common, *splits, *tiny, *overrides])


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("root_logger")
def test_a_run_starts_with_the_cheap_checks(scenes_folder, tmp_path, capsys):
    assert start("retrieval", scenes_folder, tmp_path / "a", "data.batch_size=81") == 2
    assert OneLine("data.batch_size", "81", "80 captions") in capsys.readouterr().err.splitlines()
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(["blargh"]))
    assert start("vqa", scenes_folder, tmp_path / "b", f"evaluation.answers={answers}") == 2
    assert OneLine("answers", "1 of") in capsys.readouterr().err.splitlines()


@pytest.mark.usefixtures("root_logger")
def test_pre_training_checks_its_first_boxes_at_the_start(scenes_folder, tmp_path, capsys):
    rows = [json.loads(line) for line in (scenes_folder / "train.jsonl").open()]
    relative = tmp_path / "relative.jsonl"
    for row in rows:
        row["image"] = str(scenes_folder / row["image"])
        for element in row["elems"]:
            element["bb"] = [value / 32 for value in element["bb"]]
    relative.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--config", "configs/demo/pretrain.yaml", "--output", str(tmp_path / "a"), *tiny_run(scenes_folder)]
    assert run.main(["pretrain", *given, f"data.regions.files=[{relative}]"]) == 2
    reported = capsys.readouterr().err
    assert (
        "data.regions: all " in reported
        and OneLine("boxes", "0 and 1", "[0.") in reported.splitlines()
        and f"{relative}:1" in reported
    )


@pytest.mark.usefixtures("root_logger")
def test_pre_training_does_not_start_on_regions_without_boxes(scenes_folder, tmp_path, capsys):
    rows = [json.loads(line) for line in (scenes_folder / "train.jsonl").open()]
    named = tmp_path / "regions.jsonl"
    named.write_text("".join(json.dumps({**row, "elems": [], "regions": row["elems"]}) + "\n" for row in rows))
    given = ["--config", "configs/demo/pretrain.yaml", "--output", str(tmp_path / "a"), *tiny_run(scenes_folder)]
    assert run.main(["pretrain", *given, f"data.regions.files=[{named}]"]) == 2
    reported = capsys.readouterr().err
    assert (
        OneLine("data.regions", "40 records", "box") in reported.splitlines()
        and f"{named}:1" in reported
        and "data.regions=null" in reported
    )


def test_warnings_are_logged_and_the_run_continues(caplog):
    plan = RunPlan(1, 1, 1, 10, 10, 101, 1)
    training = Namespace(items=[], stream_sizes={"pairs": 10})
    text = Namespace(encoder="bert-base-uncased", arch=None)
    config = Namespace(train=Namespace(epochs=None), model=Namespace(text=text), init=Namespace(text=None))
    task = Namespace(training=training, config=config, tokenizer=None, model=None, plan=plan)
    with caplog.at_level(logging.WARNING):
        check_start(task)
        assert OneLine("train", "101 passes") in caplog.messages
        caplog.clear()
        task.plan = replace(plan, epoch_size=11)
        check_start(task)
    assert not caplog.text


def test_another_tokenizer_than_that_of_the_weights_and_an_encoder_that_is_not_built_cause_warnings(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "star"]
    folders = [tmp_path / "own", tmp_path / "weights"]
    for folder, vocabulary in zip(folders, (words, [*words[:5], "star", "red"]), strict=True):
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        (folder / "config.json").write_text('{"model_type": "distilbert"}')
    own, weights = map(str, folders)

    def facts(init: str | None, arch: object) -> str:
        config = Namespace(model=Namespace(text=Namespace(encoder=own, arch=arch)), init=Namespace(text=init))
        found = Findings()
        check_text_encoder(PreparedRun(config, None, 1, tokenizer=load_tokenizer(own)), found)
        return "\n".join(map(str, found.findings))

    assert facts(None, None) == facts(own, None) == ""
    assert facts(weights, None) == OneLine(
        "init.text", "2 words have other ids", "'star'", f"set model.text.encoder to {weights}"
    )
    assert facts(None, Namespace(family="bert")) == OneLine(
        "model.text.arch", "distilbert", "bert", "model.text.arch=null"
    )


def test_crops_of_training_images_cause_a_warning_or_are_reported_as_unchecked(tmp_path, monkeypatch):
    whole, crop, other = (tmp_path / f"{name}.png" for name in ("whole", "crop", "other"))
    photograph(0).save(whole)
    photograph(0).crop((8, 6, 312, 234)).save(crop)
    photograph(1).save(other)
    lines: list[str] = []
    report = Report(lines.append)

    def check(held_out: list[ImageSource]) -> None:
        _check_looks([image(whole)], held_out, shared_images([image(whole)], held_out), "evaluation.test", report)

    check([image(other), image(whole)])
    assert not report.findings and "1 of its 1 and 1 of 1 training" in lines[-1]
    check([image(crop), image(other)])
    [finding] = report.findings
    assert finding.level == "warning" and "crop.png" in finding.fact and "whole.png" in finding.fact
    monkeypatch.setattr(look_alikes, "available", lambda: False)
    check([image(crop)])
    assert "not checked" in lines[-1] and '".[leaks]"' in lines[-1]


def test_the_images_that_are_compared_depend_only_on_the_seed(scenes_folder, monkeypatch):
    """The number of records that are read within the time limit depends on the speed of the machine."""
    monkeypatch.setattr(shared, "MAX_LOOKS", 5)
    monkeypatch.setattr(shared, "MAX_RECORDS", 20)
    compared: list[list[str]] = []
    look_at = look_alikes.looks_of

    def looks_of(images, name):
        compared.append([image.location for image in images])
        return look_at(images, name)

    monkeypatch.setattr(look_alikes, "looks_of", looks_of)
    overrides = [*tiny_run(scenes_folder), f"data.regions.files=[{scenes_folder}/val.jsonl]"]
    for seed, limit in ((0, None), (0, 12), (1, None)):
        with monkeypatch.context() as patched:
            if limit is not None:
                ticks = itertools.count()  # each record takes a second
                patched.setattr(shared.time, "perf_counter", lambda ticks=ticks: next(ticks))
                patched.setattr(shared, "MAX_SECONDS", limit)
            config = load_config("configs/demo/pretrain.yaml", [*overrides, f"seed={seed}"], PretrainConfig)
            shared.check_shared(Namespace(config=config, require_inputs=lambda *_: None), Report(lambda _: None))
    fast, slow, other = compared[:2], compared[2:4], compared[4:]
    assert fast == slow != other
    assert {Path(location.rpartition(":")[0]).name for location in fast[0]} == {"train.jsonl", "val.jsonl"}


def test_hard_negatives_are_shown_below_their_text(scenes_folder):
    hard = ["data.images.hard_negatives={count: 2}", "data.regions.hard_negatives={}"]
    task = PretrainTask.build(
        load_config("configs/demo/pretrain.yaml", [*tiny_run(scenes_folder), *hard], PretrainConfig)
    )
    batch = task.training.make(0)
    panels = panels_of(batch, task.tokenizer)
    wrong = [line.text for panel in panels for line in panel.lines if line.text.startswith("wrong: ")]
    expected = [
        f"wrong: {task.tokenizer.decode(ids[mask], skip_special_tokens=True)}"
        for part in (batch.images, batch.regions)
        for ids, mask, counts in zip(
            part.hard_negatives.text.ids,
            part.hard_negatives.text.mask,
            part.hard_negatives.valid.flatten(),
            strict=True,
        )
        if counts
    ]
    assert wrong
    assert {line.replace("[CLS] ", "").replace(" [SEP]", "") for line in wrong} <= set(expected)


def test_broken_records_are_counted_by_stream_and_the_remedy_names_the_folder_of_its_paths():
    """All regions are broken, and no image."""
    config = load_config(
        "configs/demo/pretrain.yaml",
        ["data.images.files=[a/train.jsonl]", "data.regions.files=[b/train.jsonl]"],
        PretrainConfig,
    )
    counts = {"images": RecordCount(44, 44), "regions": RecordCount(44, 0, 44)}
    broken = tuple(BrokenRecord("b/train.jsonl:1", "missing image", "b/x.png: No such file") for _ in range(44))
    (finding,) = broken_findings([Batch(broken=broken, counts=counts)], 88, 0.01, media_folders(config))
    assert finding.level == "refused"
    assert "44 of 44 sampled records of regions and 0 of 44 sampled records of images are broken" in finding.fact
    assert finding.remedy == "correct the paths; relative paths start from b (data.regions.image_root)"
    elsewhere = load_config(
        "configs/demo/pretrain.yaml",
        ["data.regions.image_root=photos", "data.regions.files=[b/x.jsonl]"],
        PretrainConfig,
    )
    assert media_folders(elsewhere)["regions"] == "photos (data.regions.image_root)"


def test_captions_of_a_broken_image_count_each():
    """They have the same location."""
    broken = tuple(BrokenRecord("a.jsonl:1", "unreadable image", "torn") for _ in range(3))
    batch = Batch(broken=broken, counts={"captions": RecordCount(4, 1, 3)})
    (finding,) = broken_findings([batch], 4, 0.5)
    assert finding.level == "refused" and "3 of 4 sampled records" in finding.fact
