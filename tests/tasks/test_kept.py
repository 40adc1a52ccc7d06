"""A run folder keeps all files that are needed to use its weights, so it can be moved and used without the data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dataset.text.loading import load_tokenizer
from tasks.run import run_script
from tests.conftest import tiny_run
from tests.messages import OneLine, naming
from utils.errors import UserError
from utils.weight_file import TOKEN_IDS, save_weights, trained_token_ids
from x2vlm import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(scenes_folder, tmp_path_factory) -> Path:
    """A copy of the scenes that tests may move."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    shutil.copytree(scenes_folder, folder)
    return folder


def vqa(data: Path, *more: str) -> list[str]:
    return [
        *[each for each in tiny_run(data) if each.startswith(("model.", "schedule."))],
        "init.checkpoint=null",
        "data.workers=0",
        "data.batch_size=4",
        f"data.train=[{{questions: {data}/vqa_train.jsonl}}]",
        "evaluation.answers=null",
        "evaluation.validation=null",
        f"evaluation.test.test.questions={data}/vqa_test.jsonl",
        "train.steps=2",
        *more,
    ]


def start(output: Path, *arguments: str) -> dict:
    config = str(ROOT / "configs/demo/vqa.yaml")
    assert run_script(["--config", config, "--output", str(output), *arguments], "vqa") == 0
    return json.loads((output / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "vqa"
    start(output, *vqa(data))
    return output


@pytest.fixture
def without_data(data, run):
    """Simulates that the tokenizer and the training questions are gone."""
    hidden = [data / "tokenizer", data / "vqa_train.jsonl"]
    for path in hidden:
        path.rename(path.with_name(f"hidden-{path.name}"))
    yield
    for path in hidden:
        path.with_name(f"hidden-{path.name}").rename(path)


def test_a_run_keeps_its_tokenizer_and_its_answers(data, run):
    text = "a small red star left of a blue heart"
    assert load_tokenizer(run / "tokenizer")(text) == load_tokenizer(data / "tokenizer")(text)
    answers = json.loads((run / "answers.json").read_text())
    asked = [json.loads(line)["answer"] for line in (data / "vqa_train.jsonl").read_text().splitlines()]
    assert set(answers) == {answer for own in asked for answer in own}


def without_guesses(report: dict) -> dict:
    """The values without guesses, and without facts about the path of the weights."""
    return {name: metric["value"] for name, metric in report["test"].items() if "image-blind" not in name}


@pytest.mark.usefixtures("without_data")
def test_weights_can_be_evaluated_without_the_training_data_and_tokenizer(data, run, tmp_path):
    expected = without_guesses(json.loads((run / "evaluation.json").read_text()))
    options = vqa(data, f"init.checkpoint={run}")
    assert without_guesses(start(tmp_path / "elsewhere", "--evaluate", *options)) == expected
    line = f"model.text.encoder: using {run}/tokenizer, the copy kept by the run, instead of {data}/tokenizer"
    assert line in (tmp_path / "elsewhere" / "log.txt").read_text()
    shutil.copytree(run, tmp_path / "copy")
    assert without_guesses(start(tmp_path / "copy", "--evaluate", "--resume", *vqa(data))) == expected


@pytest.mark.usefixtures("without_data")
def test_a_run_that_starts_from_another_must_use_its_tokenizer(data, run, tmp_path):
    questions = f"data.train=[{{questions: {data}/vqa_val.jsonl}}]"
    start(tmp_path / "next", *vqa(data, f"init.checkpoint={run}", questions))
    assert (tmp_path / "next" / "tokenizer" / "tokenizer.json").is_file()
    other = vqa(data, f"init.checkpoint={run}", questions, f"model.text.encoder={data}/other")
    with pytest.raises(UserError, match=r"^model\.text\.encoder: .*/other does not exist"):
        start(tmp_path / "other", *other)


@pytest.mark.slow
def test_a_run_can_be_evaluated_by_its_folder_from_another_working_directory(run, tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), "--output", str(run), "--resume", "--evaluate", "--cpu", "1"]
    before = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluation.json").read_text()) == before
    command[3] = str(tmp_path / "nothing")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == OneLine("config.yaml", "--config")


def permute(folder: Path) -> None:
    """Swaps the ids of two words of a tokenizer."""
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary |= {"red": vocabulary["blue"], "blue": vocabulary["red"]}
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.fixture
def permuted(data) -> Path:
    """The tokenizer of the data with two words swapped."""
    before = (data / "tokenizer/tokenizer.json").read_text()
    permute(data / "tokenizer")
    yield data / "tokenizer"
    (data / "tokenizer/tokenizer.json").write_text(before)


@pytest.mark.parametrize("how", ["--resume", "--resume --evaluate", "init.checkpoint", "init.checkpoint --evaluate"])
def test_weights_are_rejected_with_a_tokenizer_whose_ids_changed(how, data, run, permuted, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    flags = [flag for flag in how.split() if flag.startswith("--")]
    started = [f"init.checkpoint={tmp_path}/run"] if "init.checkpoint" in how else []
    with pytest.raises(UserError) as caught:
        start(tmp_path / ("next" if started else "run"), *flags, *vqa(data, *started))
    message = str(caught.value)
    assert message.startswith("model.text.encoder: ") and "\n" not in message
    for fact in (
        str(permuted),
        str(tmp_path / "run" / "tokenizer"),
        "2 of its",
        "'blue'",
        "restore" if not started else "set",
    ):
        assert fact in message
    assert list((tmp_path / "run/checkpoints").iterdir()) and (tmp_path / "run/tokenizer/tokenizer.json").is_file()


@pytest.mark.parametrize("copy", ["gone", "permuted too"])
@pytest.mark.usefixtures("permuted")
def test_weights_know_their_token_ids_without_the_copy_of_the_tokenizer(copy, data, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    if copy == "gone":
        shutil.rmtree(tmp_path / "run/tokenizer")
    else:
        permute(tmp_path / "run/tokenizer")
    with pytest.raises(UserError, match=naming("model.text.encoder", "token ids", ".safetensors")):
        start(tmp_path / "run", "--resume", "--evaluate", *vqa(data))


def test_a_damaged_copy_does_not_reject_the_right_tokenizer(data, run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    permute(tmp_path / "run/tokenizer")
    start(tmp_path / "run", "--resume", "--evaluate", *vqa(data))
    assert OneLine("copy is not used") in capsys.readouterr().err.splitlines()
    with pytest.raises(UserError, match=naming("tokenizer", "token ids")):
        load(tmp_path / "run")


def change_normaliser(folder: Path) -> None:
    """Makes a tokenizer distinguish upper and lower case. The ids of its tokens do not change."""
    values = json.loads((folder / "tokenizer.json").read_text())
    values["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.usefixtures("without_data")
def test_a_changed_normaliser_of_the_copy_is_noticed_if_there_is_nothing_to_compare_it_with(data, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    change_normaliser(tmp_path / "run/tokenizer")
    with pytest.raises(UserError, match=naming("token ids", ".safetensors")):
        start(tmp_path / "run", "--resume", "--evaluate", *vqa(data))
    with pytest.raises(UserError, match=naming("tokenizer", "token ids")):
        load(tmp_path / "run")


def test_the_copy_of_the_tokenizer_is_written_once_and_replaced_if_it_is_damaged(data, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run/tokenizer/tokenizer.json"
    written, content = file.stat(), file.read_bytes()
    start(tmp_path / "run", "--resume", *vqa(data))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    file.write_bytes(content[:1000])
    start(tmp_path / "run", "--resume", *vqa(data))
    assert file.read_bytes() == content
    file.unlink()
    (tmp_path / "run/tokenizer").rename(tmp_path / "elsewhere")
    (tmp_path / "run/tokenizer").symlink_to(tmp_path / "elsewhere")
    start(tmp_path / "run", "--resume", *vqa(data))
    assert file.read_bytes() == content and not (tmp_path / "run/tokenizer").is_symlink()
    assert not list((tmp_path / "run").glob(".tokenizer*"))


def test_a_fifo_in_place_of_a_file_of_the_tokenizer_is_rejected(data, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run/tokenizer" / name).unlink()
        os.mkfifo(tmp_path / "run/tokenizer" / name)
        with pytest.raises(UserError, match=naming("FIFO", name)):
            start(tmp_path / "run", "--resume", *vqa(data))
        (tmp_path / "run/tokenizer" / name).unlink()
        (tmp_path / "run/tokenizer" / name).write_bytes((run / "tokenizer" / name).read_bytes())


def test_weights_of_runs_whose_digest_covers_only_the_vocabulary_are_accepted(data, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (weights,) = (tmp_path / "run/checkpoints").glob("*/model.safetensors")
    digest = trained_token_ids(weights).partition(".")[0]
    save_weights(tmp_path / "weights.safetensors", load_file(weights), {TOKEN_IDS: digest})
    start(tmp_path / "next", *vqa(data, f"init.checkpoint={tmp_path}/weights.safetensors"))


@pytest.mark.usefixtures("permuted")
def test_weights_of_earlier_versions_without_a_copy_are_accepted(data, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/tokenizer")
    for file in (tmp_path / "run").rglob("*.safetensors"):
        save_weights(file, load_file(file))
    start(tmp_path / "next", *vqa(data, f"init.checkpoint={tmp_path}/run/checkpoints/step-00000002/model.safetensors"))


@pytest.mark.usefixtures("permuted")
def test_a_new_text_encoder_may_have_another_tokenizer(data, run, tmp_path):
    start(tmp_path / "next", *vqa(data, f"init.checkpoint={run}", "init.new_text=true"))
