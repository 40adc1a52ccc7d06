"""Fine-tuning tasks as runs: what they write, which weights they report on, and what is measured."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, DistilBertConfig

from dataset.captioned import CaptionedImages
from dataset.finetune import EvaluationView, in_batches
from dataset.records import BrokenRecordError
from dataset.text import PlainTextProcessor, clean_caption, load_tokenizer
from engine.checkpoint import list_checkpoints
from metrics.retrieval import chance_recalls
from tasks import kinds, retrieval_evaluation
from tasks.common import BaseTask, evaluating
from tasks.job import run_task
from tasks.nlvr import NLVRTask
from tasks.retrieval import RetrievalConfig, RetrievalTask
from tasks.retrieval_evaluation import RetrievalEvaluation
from tasks.tables import table
from tests.conftest import tiny_run
from utils.config import load_config
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent
KINDS = {name: kinds.KINDS[name] for name in ("retrieval", "nlvr", "grounding", "vqa", "captioning")}
FILES = {"vqa": "questions"}
"""The key that names a split's file, where it is not `annotations`."""
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30), "yellow": (220, 220, 30)}
LOOKS = list(itertools.product(COLOURS, ("small", "large"), ("star", "circle")))
SIZE = 32


@pytest.fixture(autouse=True)
def settings_of_a_process():
    """A run sets up logging and torch for its process; the other tests share this one."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)
    torch.use_deterministic_algorithms(False)


def write_pictures(folder: Path) -> None:
    """Picture n is of the n-th colour, size and shape: plain, with a square that the last two move and scale."""
    folder.mkdir()
    for number, (colour, size, shape) in enumerate(LOOKS):
        pixels = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
        x, y, side = box_of(size, shape)
        pixels[y : y + side, x : x + side] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / f"{number}.png")


def box_of(size: str, shape: str) -> tuple[int, int, int]:
    return (2, 3, 8 if size == "small" else 20) if shape == "star" else (10, 9, 6 if size == "small" else 18)


def rows_of(task: str, numbers: range) -> list[dict[str, Any]]:
    """Annotations of a split over some of the pictures."""
    rows: list[dict[str, Any]] = []
    for number in numbers:
        colour, size, shape = LOOKS[number]
        image, text = f"images/{number}.png", f"a {size} {colour} {shape}"
        if task in ("retrieval", "captioning"):
            captions = [text, f"the {shape} is {colour} and {size}", f"{colour} {shape}"][: 1 + number % 3]
            rows.append({"image": image, "caption": captions, "image_id": number})
        elif task == "grounding":
            x, y, side = box_of(size, shape)
            elem = {"bb": [x, y, side, side], "caption": text, "grain": ("attribute", "place")[number % 2]}
            rows.append({"image": image, "elems": [elem]})
        elif task == "vqa":
            other = "yes" if number % 2 else "no"
            asked = {"image": image, "question_id": 2 * number, "question": f"what colour is the {shape}?"}
            rows.append({**asked, "answer": [colour] * 10, "answer_type": "other"})
            asked = {"image": image, "question_id": 2 * number + 1, "question": f"is there a {size} {shape}?"}
            rows.append({**asked, "answer": ["yes"] * 7 + [other] * 3, "answer_type": "yes/no"})
        else:
            for pair, other in enumerate((number, (number + 1) % len(LOOKS))):
                names = [image, f"images/{other}.png"]
                sentence = f"both pictures have {text}"
                rows.append(
                    {
                        "sentence": sentence,
                        "label": pair == 0,
                        "images": names,
                        "identifier": f"dev-{number}-{pair}-0",
                    }
                )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pictures, and for each task a split to train on (13 pictures), to validate (5) and to test (7)."""
    folder = tmp_path_factory.mktemp("finetune")
    write_pictures(folder / "images")
    for task in KINDS:
        for split, numbers in (("train", range(13)), ("val", range(3, 8)), ("test", range(9, 16))):
            text = "".join(json.dumps(row) + "\n" for row in rows_of(task, numbers))
            (folder / f"{task}_{split}.jsonl").write_text(text)
    (folder / "answers.json").write_text(json.dumps(["yes", "no", *COLOURS]))
    return folder


@pytest.fixture(scope="module")
def overrides(scenes_folder, data) -> Callable[[str], list[str]]:
    """Overrides that turn a task's demo config into a run of six steps and three validations on the data above."""
    tiny = [each for each in tiny_run(scenes_folder) if each.startswith(("model.", "train.", "schedule."))]

    def of(task: str) -> list[str]:
        extra = {
            "retrieval": ["evaluation.candidates=4"],
            "nlvr": [],
            "grounding": ["evaluation.panels=2"],
            "captioning": ["evaluation.decoding.max_length=8", "data.careful_flip=false"],
            "vqa": [f"evaluation.answers={data}/answers.json", "evaluation.candidates=4"],
        }
        file, train = FILES.get(task, "annotations"), f"{data}/{task}_train.jsonl"
        return [
            *tiny,
            "init.checkpoint=null",
            "data.workers=0",
            "data.batch_size=4",
            f"data.train=[{{questions: {train}}}]" if task == "vqa" else f"data.train.{file}={train}",
            f"evaluation.validation.{file}={data}/{task}_val.jsonl",
            f"evaluation.test.test.{file}={data}/{task}_test.jsonl",
            "evaluation.batch_size=3",
            "train.steps=6",
            "train.validate_every=2",
            *extra.get(task, []),
        ]

    return of


def start(
    task: str, output: Path, overrides: list[str], *flags: str, kind: type[BaseTask[Any, Any]] | None = None
) -> dict[str, Any]:
    """A run in this process; gives back its `evaluation.json`."""
    schema, usual = KINDS[task]
    arguments = ["--config", str(ROOT / f"configs/demo/{task}.yaml"), "--output", str(output), *flags, *overrides]
    assert run_task(arguments, task, schema, kind or usual, ROOT) == 0
    return json.loads((output / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, overrides) -> Callable[[str], Path]:
    """The finished run of a task, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def of(task: str) -> Path:
        if not (folder / task).exists():
            start(task, folder / task, overrides(task))
        return folder / task

    return of


@pytest.mark.parametrize("task", KINDS)
def test_a_run_trains_validates_and_reports(runs, task):
    run = runs(task)
    files = {path.name for path in run.iterdir()}
    written = {"config.yaml", "metrics.jsonl", "validation.jsonl", "best.safetensors", "evaluation.json", "checkpoints"}
    assert written <= files
    assert ("predictions.png" in files) == (task == "grounding")
    assert ("predictions_test.json" in files) == (task in ("vqa", "captioning"))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] > 0 for line in metrics)
    validations = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in validations] == [2, 4, 6]
    report = json.loads((run / "evaluation.json").read_text())
    assert report.keys() == {"test"}
    assert {name for name in report["test"] if not name.endswith("/chance")} == validations[0].keys() - {"step"}
    for name, value in report["test"].items():
        assert isinstance(value, int) or 0 <= value <= (10 if name.startswith("CIDEr") else 1), name


EXPECTED = {
    "retrieval": {"images": 7, "captions": 13},
    "nlvr": {"statements": 14, "sentences": 7},
    "grounding": {"phrases": 7, "attribute phrases": 3, "place phrases": 4},
    "vqa": {"questions": 14, "other questions": 7, "yes/no questions": 7},
    "captioning": {"images": 7, "captions": 13},
}


@pytest.mark.parametrize("task", KINDS)
def test_every_held_out_item_is_measured_once(runs, task):
    report = json.loads((runs(task) / "evaluation.json").read_text())["test"]
    assert {name: value for name, value in report.items() if isinstance(value, int)} == EXPECTED[task]


def checksum(tensors: dict[str, torch.Tensor]) -> float:
    """A number that tells weights apart."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values())


def watched(kind: type[BaseTask[Any, Any]], scores: list[float]) -> type[BaseTask[Any, Any]]:
    """The task, whose validations give ``scores`` one after the other, and whose measures tell which weights they are of."""

    class Watched(kind):  # type: ignore[misc,valid-type]
        def measures(self, items: Any) -> dict[str, float]:
            return {**super().measures(items), "weights": checksum(dict(self.model.state_dict()))}

        def validate(self) -> dict[str, float]:
            return {**super().validate(), self.measure: scores.pop(0)}

    return Watched


@pytest.mark.parametrize("task", KINDS)
def test_reported_are_the_best_weights_and_not_the_last(overrides, task, tmp_path):
    """The second of three validations is made the best one."""
    report = start(task, tmp_path, overrides(task), kind=watched(KINDS[task][1], [0.2, 0.3, 0.1]))
    validations = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    last = checksum(load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"))
    best = checksum(load_file(tmp_path / "best.safetensors"))
    assert validations[2]["weights"] == pytest.approx(last, rel=1e-12)
    assert report["test"]["weights"] == pytest.approx(best, rel=1e-12)
    assert best == pytest.approx(validations[1]["weights"], rel=1e-12)
    assert best != pytest.approx(last, rel=1e-9)


@pytest.mark.parametrize("task", KINDS)
def test_without_validation_the_last_weights_are_reported(overrides, task, tmp_path):
    report = start(task, tmp_path, [*overrides(task), "evaluation.validation=null"], kind=watched(KINDS[task][1], []))
    last = checksum(load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors"))
    assert report["test"]["weights"] == pytest.approx(last, rel=1e-12)
    assert not (tmp_path / "best.safetensors").exists()
    assert not (tmp_path / "validation.jsonl").exists()


@pytest.mark.parametrize("task", KINDS)
def test_the_best_weights_measured_again_give_the_reported_numbers(runs, overrides, task, tmp_path, capsys):
    """From the weight file, from the folder of the run, and by the run itself."""
    expected = json.loads((runs(task) / "evaluation.json").read_text())
    for name, source in (("file", runs(task) / "best.safetensors"), ("folder", runs(task))):
        options = [*overrides(task), f"init.checkpoint={source}"]
        assert start(task, tmp_path / name, options, "--evaluate") == expected
    shutil.copytree(runs(task), tmp_path / "copy")
    (tmp_path / "copy" / "evaluation.json").unlink()
    capsys.readouterr()
    assert start(task, tmp_path / "copy", overrides(task), "--evaluate", "--resume") == expected
    assert capsys.readouterr().out.startswith(table(expected["test"], "test") + "\n")


@pytest.mark.parametrize("killed_at", [3, 4])
@pytest.mark.parametrize("task", KINDS)
def test_a_resumed_run_repeats_validations_and_best_weights_to_the_last_byte(
    runs, overrides, task, killed_at, tmp_path
):
    """Killed just after a checkpoint: between two validations, or with one."""
    whole, killed = runs(task), tmp_path / "run"
    shutil.copytree(whole, killed)
    for checkpoint in list_checkpoints(killed / "checkpoints"):
        if checkpoint.step > killed_at:
            shutil.rmtree(checkpoint.folder)
    (killed / "evaluation.json").unlink()
    (killed / "best.safetensors").write_bytes(b"half of a fi")
    if best_step(whole) <= killed_at:
        shutil.copy(whole / "best.safetensors", killed / "best.safetensors")
    report = start(task, killed, overrides(task), "--resume")
    assert report == json.loads((whole / "evaluation.json").read_text())
    for name in ("validation.jsonl", "best.safetensors", "checkpoints/step-00000006/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def best_step(run: Path) -> int:
    with safe_open(run / "best.safetensors", "pt") as file:
        return json.loads(file.metadata()["validation"])["step"]


@pytest.mark.parametrize("task", KINDS)
def test_evaluating_trains_nothing(runs, overrides, task, tmp_path):
    """Zero-shot: the weights measured are those that the model starts with."""
    options = [*overrides(task), f"init.checkpoint={runs(task)}"]
    report = start(task, tmp_path, options, "--evaluate", kind=watched(KINDS[task][1], []))
    written = {"predictions.png", "predictions_test.json"}
    files = {path.name for path in tmp_path.iterdir()} - written
    assert files == {"config.yaml", "evaluation.json", "log.txt"}
    schema, kind = KINDS[task]
    fresh = kind(load_config(ROOT / f"configs/demo/{task}.yaml", options, schema))
    assert report["test"]["weights"] == pytest.approx(checksum(dict(fresh.model.state_dict())), rel=1e-12)


@pytest.mark.parametrize("task", KINDS)
def test_evaluating_needs_no_training_data(runs, overrides, task, tmp_path):
    """What is told beside the model's numbers, the most frequent training answer, is left out where it is not known."""
    expected = json.loads((runs(task) / "evaluation.json").read_text())
    gone = "data.train=[{questions: gone.jsonl}]" if task == "vqa" else "data.train.annotations=gone.jsonl"
    report = start(task, tmp_path, [*overrides(task), f"init.checkpoint={runs(task)}", gone], "--evaluate")
    for split, found in report.items():
        assert found == {name: value for name, value in expected[split].items() if "always" not in name}


@pytest.mark.parametrize(
    ("flags", "message"), [(["--evaluate"], "needs weights"), (["--evaluate", "--resume"], "no weights")]
)
def test_random_weights_are_nothing_to_measure_and_no_data_are_read_to_say_so(overrides, tmp_path, flags, message):
    gone = [f"{key}.annotations=gone.jsonl" for key in ("data.train", "evaluation.test.test")]
    with pytest.raises(UserError, match=message):
        start("nlvr", tmp_path, [*overrides("nlvr"), *gone], *flags)


@pytest.mark.parametrize("said", ["captioning", "video_qa"])
def test_a_config_of_another_task_is_refused_by_its_name(overrides, tmp_path, said):
    owner, script = {"captioning": ("captioning", "Captioning.py"), "video_qa": ("vqa", "VQA.py")}[said]
    with pytest.raises(
        UserError, match=rf"nlvr.yaml: this is a config of task {said}; run --task {owner}, or {script}$"
    ):
        start("nlvr", tmp_path, [*overrides("nlvr"), f"task={said}"])


def test_texts_longer_than_the_model_has_positions_for_are_refused(overrides, tmp_path):
    with pytest.raises(UserError, match=r"data\.text\.max_tokens is 200, but model\.text has positions for"):
        start("nlvr", tmp_path, [*overrides("nlvr"), "data.text.max_tokens=200"])


def test_texts_longer_than_a_hugging_face_encoder_has_positions_for_are_refused(overrides, scenes_folder, tmp_path):
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 24}
    shutil.copytree(scenes_folder / "tokenizer", tmp_path / "encoder")
    tokens = len(load_tokenizer(tmp_path / "encoder"))
    AutoModel.from_config(DistilBertConfig(vocab_size=tokens, **sizes)).save_pretrained(tmp_path / "encoder")
    other = [*overrides("nlvr"), f"model.text.encoder={tmp_path}/encoder", "model.text.arch=null"]
    with pytest.raises(UserError, match=r"data\.text\.max_tokens is 25, but model\.text has positions for 24 tokens"):
        start("nlvr", tmp_path / "long", [*other, "data.text.max_tokens=25"])
    assert start("nlvr", tmp_path / "run", [*other, "data.text.max_tokens=24", "train.steps=2"])


@pytest.mark.parametrize("task", KINDS)
def test_half_precision_and_worker_processes_measure_too(runs, overrides, task, tmp_path):
    options = [*overrides(task), f"init.checkpoint={runs(task)}"]
    expected = json.loads((runs(task) / "evaluation.json").read_text())
    assert start(task, tmp_path / "workers", [*options, "data.workers=2"], "--evaluate") == expected
    half = start(task, tmp_path / "half", [*options, "evaluation.precision=bf16"], "--evaluate")
    assert half["test"].keys() == expected["test"].keys()


def test_a_run_folder_without_best_weights_stands_for_its_newest_checkpoint(runs, overrides, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("nlvr"), run)
    (run / "best.safetensors").unlink()
    options = [*overrides("nlvr"), f"init.checkpoint={run}"]
    report = start("nlvr", tmp_path / "out", options, "--evaluate", kind=watched(NLVRTask, []))
    last = checksum(load_file(run / "checkpoints" / "step-00000006" / "model.safetensors"))
    assert report["test"]["weights"] == pytest.approx(last, rel=1e-12)


def test_a_folder_without_weights_is_told_in_one_line(overrides, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        start("nlvr", tmp_path / "out", [*overrides("nlvr"), f"init.checkpoint={tmp_path}/empty"])
    assert str(error.value).startswith(f"{tmp_path}/empty: holds neither best.safetensors, model.safetensors nor")
    assert "\n" not in str(error.value)


BROKEN = {
    "retrieval": {"image": "images/gone.png", "caption": "a star"},
    "nlvr": {"sentence": "a star", "label": "maybe", "images": ["images/0.png", "images/1.png"]},
    "grounding": {"image": "images/0.png", "elems": [{"bb": [0, 0, 40, 40], "caption": "a star"}]},
    "vqa": {"image": "images/gone.png", "question": "what?", "answer": ["red"]},
    "captioning": {"image": "images/0.png", "caption": []},
}


@pytest.mark.parametrize("split", ["validation", "test.test"])
@pytest.mark.parametrize("task", KINDS)
def test_a_broken_held_out_record_stops_before_training_with_one_line(overrides, data, task, split, tmp_path):
    part = "val" if split == "validation" else "test"
    text = (data / f"{task}_{part}.jsonl").read_text()
    broken = tmp_path / "broken.jsonl"
    broken.write_text(text + json.dumps(BROKEN[task]) + "\n")
    options = [f"evaluation.{split}.{FILES.get(task, 'annotations')}={broken}", f"evaluation.{split}.images={data}"]
    with pytest.raises(UserError) as error:
        start(task, tmp_path / "out", [*overrides(task), *options])
    total = text.count("\n") + 1
    assert str(error.value).startswith(f"evaluation.{split}: 1 of {total} records are broken: 1 ")
    assert f"{broken}:{total}: " in str(error.value)
    assert str(error.value).endswith("; a held-out set has to be whole")
    assert "\n" not in str(error.value)
    assert not {"metrics.jsonl", "checkpoints"} & {path.name for path in (tmp_path / "out").iterdir()}


def read_tens(item: int) -> int:
    if item == 7:
        raise BrokenRecordError("unreadable image", f"a:{item}", "is torn")
    return 10 * item


@pytest.mark.parametrize("workers", [0, 2])
def test_each_item_is_read_once_in_order_and_a_broken_one_is_told(workers):
    assert list(in_batches(read_tens, range(1, 6), 2, workers)) == [[10, 20], [30, 40], [50]]
    assert list(in_batches(read_tens, range(3, 3), 2, workers)) == []
    with pytest.raises(UserError, match=r"^a:7: unreadable image: is torn; a held-out set has to be whole$"):
        list(in_batches(read_tens, range(5, 9), 2, workers))


def task_of(name: str, overrides: Callable[[str], list[str]]) -> Any:
    schema, kind = KINDS[name]
    return kind(load_config(ROOT / f"configs/demo/{name}.yaml", overrides(name), schema))


def measured(task: Any) -> dict[str, float]:
    with evaluating(task.model, "fp32"):
        return task.measures(task.held_out["test"])


def test_the_left_picture_of_a_statement_is_classified_as_the_left_one(overrides, monkeypatch):
    """A stand-in for the model says "true" where both pictures are alike, as in the one true pair of each sentence, and,
    wrongly, where the left one has a yellow square."""
    task = task_of("nlvr", overrides)
    items = task.held_out["test"]
    view = EvaluationView(SIZE, 10**6)
    seen: list[torch.Tensor] = []

    def classify(pixels: torch.Tensor, text: Any) -> torch.Tensor:
        left, right = pixels.chunk(2)
        assert len(left) == len(text.ids) <= 3
        seen.extend(torch.stack(pair) for pair in zip(left, right, strict=True))
        alike = (left == right).flatten(1).all(dim=1)
        yellow = (left[:, 0] > 200) & (left[:, 1] > 200)
        said = alike | yellow.flatten(1).any(dim=1)
        return torch.stack([~said, said], dim=1).float()

    monkeypatch.setattr(task.model, "classify", classify)
    found = measured(task)
    assert len(seen) == len(items)
    for item, pair in zip(items, seen, strict=True):
        assert torch.equal(pair, torch.stack([view(picture) for picture in item.pictures]))
    # Pictures 9 … 11 are green, 12 … 15 yellow: of these four sets the false pair is taken for true.
    assert found["accuracy"] == 1 - 4 / 14
    assert found["consistency"] == 3 / 7
    assert (found["accuracy/chance"], found["consistency/chance"]) == (0.5, 0.25)


def true_box(pixels: torch.Tensor) -> list[float]:
    """The square of a picture, (cx, cy, w, h): what is not grey."""
    there = (pixels.float() - 128).abs().amax(dim=0) > 40
    rows, columns = there.any(dim=1).nonzero().flatten(), there.any(dim=0).nonzero().flatten()
    x0, x1, y0, y1 = (int(edge) / SIZE for edge in (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1))
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


@pytest.mark.parametrize(("share", "measure"), [(1.0, 1.0), (0.55, 1.0), (0.45, 0.0)])
def test_boxes_are_compared_with_those_of_their_own_pictures(overrides, monkeypatch, share, measure):
    """A stand-in for the model finds the painted squares, or a share of their width from the left: that is the IoU."""
    task = task_of("grounding", overrides)

    def locate(pixels: torch.Tensor, text: Any) -> torch.Tensor:
        assert len(pixels) == len(text.ids) <= 3
        boxes = torch.tensor([true_box(each) for each in pixels])
        boxes[:, 0] -= boxes[:, 2] * (1 - share) / 2
        boxes[:, 2] *= share
        return boxes

    monkeypatch.setattr(task.model, "locate", locate)
    found = measured(task)
    for name in ("IoU >= 0.5", "attribute: IoU >= 0.5", "place: IoU >= 0.5", "IoU >= 0.5 (published script)"):
        assert found[name] == measure, name


def test_chance_of_grounding_is_the_mean_box(overrides):
    task = task_of("grounding", overrides)
    items = task.held_out["test"]
    boxes = np.array([true_box(EvaluationView(SIZE, 10**6)(item.image)) for item in items])
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    mean = boxes.mean(axis=0)
    middle = np.concatenate([mean[:2] - mean[2:] / 2, mean[:2] + mean[2:] / 2])
    hits = []
    for box in corners:
        overlap = np.clip(np.minimum(box[2:], middle[2:]) - np.maximum(box[:2], middle[:2]), 0, None).prod()
        union = (box[2:] - box[:2]).prod() + (middle[2:] - middle[:2]).prod() - overlap
        hits.append(overlap / union >= 0.5)
    assert measured(task)["IoU >= 0.5/chance"] == pytest.approx(np.mean(hits))


@pytest.fixture(scope="module")
def retrieval(overrides) -> RetrievalTask:
    """A model whose scores are far enough apart that the order of sums does not matter."""
    task = RetrievalTask(load_config(ROOT / "configs/demo/retrieval.yaml", overrides("retrieval"), RetrievalConfig))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return task


@pytest.fixture(scope="module")
def items(retrieval) -> CaptionedImages:
    """All 7 images of the test split; 13 captions."""
    return retrieval.held_out["test"]


def evaluation(task: RetrievalTask, candidates: int, batch_size: int) -> RetrievalEvaluation:
    processor = PlainTextProcessor(task.tokenizer, task.config.data.text)
    view = EvaluationView(task.config.model.vision.image_size, task.config.data.max_pixels)
    return RetrievalEvaluation(task.model, processor, view, candidates=candidates, batch_size=batch_size, workers=0)


@pytest.fixture(scope="module")
def every_pair(retrieval, items) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and matching logits (I, T), each image and each caption by itself."""
    model = retrieval.model
    processor = PlainTextProcessor(retrieval.tokenizer, retrieval.config.data.text)
    view = EvaluationView(SIZE, 10**6)
    shape = len(items.images), len(items.captions)
    cosines, logits = np.zeros(shape), np.zeros(shape)
    with evaluating(model, "fp32"):
        for i, t in np.ndindex(shape):
            concepts = model.vision(view(items.images[i])[None])
            text = model.text.encode([processor.encode_plain([clean_caption(items.captions[t], 40)])])[0]
            cosines[i, t] = model.contrastive.embed_image(concepts)[0] @ model.contrastive.embed_text(text)[0]
            logits[i, t] = model.match(text, model.fusion.remember(concepts), torch.tensor([0]), 1)[0, 1]
    for scores in (cosines, logits):
        assert np.diff(np.sort(scores.ravel())).min() > 1e-6, "ties would make this test random"
    return cosines, logits


def recalls_of(cosines: np.ndarray, logits: np.ndarray, owner: np.ndarray, candidates: int) -> dict[str, float]:
    """Recalls after re-ranking, pair by pair: of each query's best by cosine, those with the best logits come first."""
    found: dict[str, float] = {}
    for way, near, exact, is_true in (
        ("image to text", cosines, logits, lambda image, text: owner[text] == image),
        ("text to image", cosines.T, logits.T, lambda text, image: owner[text] == image),
    ):
        for k in (1, 5, 10):
            hits = 0
            for query in range(len(near)):
                chosen = sorted(range(near.shape[1]), key=lambda place: -near[query, place])[:candidates]
                ranked = sorted(chosen, key=lambda place: -exact[query, place])
                hits += any(is_true(query, place) for place in ranked[:k])
            found[f"{way} R@{k}"] = hits / len(near)
        found[f"{way} mean"] = sum(found[f"{way} R@{k}"] for k in (1, 5, 10)) / 3
    found["mean recall"] = (found["image to text mean"] + found["text to image mean"]) / 2
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("candidates", [1, 3, 6, 100])
def test_recalls_are_those_of_every_pair_scored_by_itself(retrieval, items, every_pair, candidates, batch_size):
    cosines, logits = every_pair
    with evaluating(retrieval.model, "fp32"):
        found = evaluation(retrieval, candidates, batch_size).metrics(items)
    for name, value in recalls_of(cosines, logits, items.image_of_caption, candidates).items():
        assert found[name] == pytest.approx(value), name
    # By cosine alone, candidates are all that there are up to the tenth, however few are re-ranked.
    for name, value in recalls_of(cosines, cosines, items.image_of_caption, 100).items():
        assert found[f"{name} (cosine)"] == pytest.approx(value), name


def test_in_half_precision_the_first_stage_still_compares_cosines_in_full(retrieval, items):
    """Rounded to bfloat16, cosines near 1 are steps of 1/256 and candidates a matter of chance."""
    ours = evaluation(retrieval, 3, 3)
    steps = 1 - torch.arange(13) / 2000
    keys = torch.stack([steps, (1 - steps**2).sqrt()], dim=1)
    with evaluating(retrieval.model, "bf16"):
        nearest = ours._nearest(torch.tensor([[1.0, 0.0]]), keys)
        found = ours.metrics(items)
    assert nearest.ids.tolist() == [list(range(10))]
    assert nearest.scores.dtype == np.float32
    assert 0 <= found["mean recall"] <= 1


def test_re_ranking_matters_in_this_test(every_pair, items):
    """Else it would pass without the fusion encoder, or without the candidates."""
    cosines, logits = every_pair
    tables = [recalls_of(cosines, logits, items.image_of_caption, k) for k in (1, 3, 6, 100)]
    tables.append(recalls_of(cosines, cosines, items.image_of_caption, 100))
    assert len({tuple(each.values()) for each in tables}) == 5


@pytest.mark.parametrize("candidates", [1, 3, 6, 100])
def test_a_pair_that_is_wanted_both_ways_is_scored_once(retrieval, items, every_pair, candidates, monkeypatch):
    cosines, _ = every_pair
    scored: list[int] = []
    encoded: list[int] = []
    score_pairs = retrieval_evaluation.score_pairs

    def counting(fusion, head, images, texts, bank):
        scored.extend(len(each) for each in texts)
        assert all(len(set(each.tolist())) == len(each) for each in texts)
        return score_pairs(fusion, head, images, texts, bank)

    monkeypatch.setattr(retrieval_evaluation, "score_pairs", counting)
    hook = retrieval.model.vision.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
    with evaluating(retrieval.model, "fp32"):
        evaluation(retrieval, candidates, 3).metrics(items)
    hook.remove()
    by_image = {(i, int(t)) for i, row in enumerate(cosines) for t in np.argsort(-row)[:candidates]}
    by_text = {(int(i), t) for t, row in enumerate(cosines.T) for i in np.argsort(-row)[:candidates]}
    assert by_image & by_text
    assert scored == [sum(1 for pair in by_image | by_text if pair[0] == image) for image in range(7)]
    assert encoded == [3, 3, 1], "each image once"


def test_chance_is_the_recall_of_a_random_order():
    """Oracle: 20000 random orders of 13 captions of five images; three standard errors are below 0.011."""
    owner = np.repeat(np.arange(5), [1, 2, 3, 1, 6])
    rng = np.random.default_rng(0)
    hits = np.zeros((2, 3))
    trials = 20_000
    for _ in range(trials):
        texts, images = owner[rng.permutation(13)], rng.permutation(5)
        for place, k in enumerate((1, 5, 10)):
            hits[0, place] += len(set(texts[:k])) / 5
            hits[1, place] += np.isin(owner, images[:k]).mean()
    found = chance_recalls(np.bincount(owner), 13)
    for way, row in zip(("image to text", "text to image"), hits / trials, strict=True):
        for k, value in zip((1, 5, 10), row, strict=True):
            assert found[f"{way} R@{k}"] == pytest.approx(value, abs=0.011)
        assert found[f"{way} mean"] == pytest.approx(row.mean(), abs=0.011)
    assert found["mean recall"] == pytest.approx(hits.mean() / trials, abs=0.011)


def test_chance_has_the_names_of_the_measures_and_reaches_one_with_few_captions():
    found = chance_recalls(np.array([1, 1, 2]), 4)
    assert found["image to text R@1"] == pytest.approx((1 / 4 + 1 / 4 + 2 / 4) / 3)
    assert found["text to image R@1"] == pytest.approx(1 / 3)
    assert found["image to text R@5"] == found["image to text R@10"] == found["text to image R@5"] == 1
    assert found.keys() == recalls_of(np.eye(3), np.eye(3), np.arange(3), 3).keys()
