"""``run.py tables`` and ``run.py reproduce``: missing files are named, runs are made once, and their results have a receipt."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from commands import reproduce as command
from dataset.prepare.catalogue import SETS
from demo.folder import FolderFlags
from demo.scenes.build import scenes
from run import main
from tasks import ROOT
from tasks.tables import DEMO, read_tables
from tests.messages import OneLine, naming
from tools.reproduce import receipt
from tools.reproduce import runs as runs_module
from tools.reproduce.cells import ready
from tools.reproduce.identity import source_remarks, weights_identity
from tools.reproduce.measured import Number, evaluation_of, numbers_of, table_of
from tools.reproduce.missing import MADE
from tools.reproduce.page import read_receipts
from utils.errors import UserError


def number(*measured: float) -> Number:
    return Number("test", "accuracy", 80.0, measured)


def test_results_of_several_seeds_have_mean_spread_and_difference():
    two = number(79.0, 82.0)
    assert (two.mean, two.difference) == (80.5, 0.5)
    assert two.spread == pytest.approx(2.1213, abs=1e-4)
    assert two.text() == "80.5 ± 2.1" and number(79.0).text() == "79.0"
    assert (number().mean, number().difference, number().text()) == (None, None, "not measured")


def test_the_table_shows_measured_and_published_results():
    shown = table_of([number(79.0, 82.0), Number("dev", "accuracy", 81.0, ())], "paper").splitlines()
    assert shown[0].split() == ["measured", "paper", "difference"]
    assert shown[1].split() == ["test", "accuracy", "80.5", "±", "2.1", "80.0", "+0.5"]
    assert shown[2].split() == ["dev", "accuracy", "not", "measured", "81.0"]


def test_the_results_of_a_cell_are_read_from_the_evaluations_of_its_runs(tmp_path):
    cell = read_tables()["4/base_4m/nlvr2"]
    metric = {"value": 0.8512, "unit": "share", "chance": 0.5}
    sizes = {"sentences": {"value": 6982, "unit": "count"}}
    for name, splits in {
        "0": {"dev": {"accuracy": metric} | sizes, "test-P": {"accuracy": metric | {"value": None}}}
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(splits))
    dev, test = numbers_of(cell, [tmp_path / "0"])
    assert dev.measured == pytest.approx((85.12,)) and dev.published == cell.numbers["dev"]["accuracy"]
    assert test.measured == ()
    (tmp_path / "0" / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match="run the cell again"):
        evaluation_of(tmp_path / "0")


def test_tables_lists_every_cell_and_shows_one_completely(capsys, tmp_path):
    assert main(["tables"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in read_tables())
    assert main(["tables", "--cell", "3/base_4m/coco_5k", "--checkpoints", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "image to text R@1 80.5" in shown and "384 px, k = 80" in shown
    assert f"missing {tmp_path}/x2vlm_base_4m.th (init.checkpoint)" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--table", "9"], "--table 9: no such cell; known are --table: 3, 4, 5, 6, demo; --row: base_4m,"),
        (["--cell", "coco"], "--cell: 'coco' is unknown; did you mean coco_5k?"),
    ],
)
def test_an_unknown_cell_is_reported_with_the_known_ones(argv, message, capsys):
    assert main(["reproduce", *argv]) == 2
    assert message in capsys.readouterr().err


def test_missing_files_are_named_with_their_commands_and_other_cells_continue(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--table", "4", "--row", "base_4m", "--output", "out"]) == 1
    printed = capsys.readouterr().out
    cells = [cell for cell in read_tables().values() if (cell.table, cell.row) == (4, "base_4m")]
    assert len(cells) > 2 and printed.count("not run: ") == len(cells)
    assert "--checkpoints DIR names a folder of weights\n    weights/x2vlm_base_4m.th\n" in printed
    assert "published: docs/data.md (Fine-tuning)\n    data/nlvr2/" in printed
    assert main(["reproduce", "--table", "demo", "--output", "out"]) == 1
    printed = capsys.readouterr().out
    assert OneLine("not run", "3 paths") in printed.splitlines()
    assert "make scenes\n    data/scenes/tokenizer, data/scenes/train" in printed
    assert "python run.py reproduce --cell demo/tiny/pretraining --output out\n    out/demo-tiny-pretraining" in printed
    assert main(["reproduce", "--cell", "6/base/multi30k", "--output", "out"]) == 1
    printed = capsys.readouterr().out
    assert OneLine("python run.py prepare multi30k", "docs/data.md") in printed.splitlines()
    assert "published: docs/data.md (Fine-tuning)\n    data/flickr30k/flickr30k-images" in printed


def test_the_commands_that_prepare_data_match_the_configs_and_exist():
    targets = (ROOT / "Makefile").read_text()
    read = "".join(path.read_text() for path in (ROOT / "configs").rglob("*.yaml"))
    for folder, command_line in MADE.items():
        words = command_line.partition(",")[0].split()
        assert f"{folder}/" in read
        assert f"\n{words[1]}:" in targets if words[0] == "make" else words[3] in SETS, command_line


@pytest.fixture
def cell(tmp_path, monkeypatch) -> Path:
    """Sets up the demo's cell with its data, and returns the output folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl", "tokenizer"):
        path = tmp_path / "data/scenes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return tmp_path / "out"


class FakeRuns:
    """Replaces ``run_command``. It records each command, and writes a checkpoint and an evaluation that depends on the seed into
    the run folder, with an interval if bootstrap draws are requested."""

    def __init__(self):
        self.status, self.commands = 0, []

    def __call__(self, command):
        self.commands.append(command)
        if "doctor" not in command and self.status == 0:
            folder = Path(command[command.index("--output") + 1])
            if "--resume" in command:
                (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
            overrides = dict(word.split("=", 1) for word in command if "=" in word)
            value = 0.8 + 0.01 * int(overrides["seed"])
            metrics = {"masked word": {"value": value, "unit": "share"}}
            if overrides.get("evaluation.bootstrap"):
                metrics["masked word"]["interval"] = [value - 0.02, value + 0.01]
            (folder / "evaluation.json").write_text(json.dumps({"held-out": metrics}))
        return self.status


@pytest.fixture
def fake_runs(monkeypatch) -> FakeRuns:
    """Replaces all runs and doctors."""
    runs = FakeRuns()
    for module in (command, runs_module):
        monkeypatch.setattr(module, "run_command", runs)
    return runs


CELL = ["reproduce", "--cell", "demo/tiny/pretraining", "--output"]


def read_receipt(output: Path) -> dict[str, Any]:
    return json.loads((output / "demo-tiny-pretraining/receipt.json").read_text())


def test_a_finished_run_gets_intervals_without_training(cell, fake_runs, capsys):
    assert main([*CELL, str(cell)]) == 0
    assert "[" not in capsys.readouterr().out and "intervals" not in read_receipt(cell)["numbers"][-1]
    fake_runs.commands.clear()
    assert main([*CELL, str(cell), "--intervals"]) == 0
    (again,) = fake_runs.commands
    assert {"--resume", "--evaluate", "seed=0", "evaluation.bootstrap=1000"} <= set(again)
    printed = capsys.readouterr().out
    assert "80.0 [78.0, 81.0]" in printed and OneLine("measured again") in printed.splitlines()
    assert OneLine("95%", "bootstrap") in printed.splitlines()
    masked = next(each for each in read_receipt(cell)["numbers"] if each["metric"] == "masked word")
    assert masked["intervals"] == [[78.0, 81.0]] and masked["spread"] is None
    for name in ("demo-tiny-pretraining/receipt.md", "table_demo.html"):
        assert "80.0 [78.0, 81.0]" in (cell / name).read_text()
    fake_runs.commands.clear()
    for more in ([], ["--intervals", "1000"]):
        assert main([*CELL, str(cell), *more]) == 0
        assert fake_runs.commands == [] and "80.0 [78.0, 81.0]" in capsys.readouterr().out
    assert main([*CELL, str(cell), "--intervals", "200"]) == 0
    assert "evaluation.bootstrap=200" in fake_runs.commands[0]


def test_with_several_seeds_the_spread_is_shown_and_the_receipt_has_each_interval(cell, fake_runs, capsys):
    assert main([*CELL, str(cell), "--seeds", "0,1", "--intervals", "50"]) == 0
    assert ["doctor" in each for each in fake_runs.commands] == [True, False, False]
    assert all("--evaluate" not in each for each in fake_runs.commands), "the run itself must compute the intervals"
    printed = capsys.readouterr().out
    assert "80.5 ± 0.7" in printed and "[78.0" not in printed
    masked = next(each for each in read_receipt(cell)["numbers"] if each["metric"] == "masked word")
    assert masked["intervals"] == [[78.0, 81.0], [79.0, 82.0]]


def test_an_evaluation_is_repeated_for_its_intervals(cell, fake_runs):
    for more in ([], ["--intervals"]):
        assert main([*CELL, str(cell), "--evaluate", *more]) == 0
    plain, again = (each for each in fake_runs.commands)
    assert sorted(again) == sorted([*plain, "evaluation.bootstrap=1000"])


def test_a_failure_to_compute_intervals_leaves_the_run_finished(cell, fake_runs, capsys):
    assert main([*CELL, str(cell)]) == 0
    fake_runs.status = 75
    assert main([*CELL, str(cell), "--intervals"]) == 1
    fake_runs.commands.clear()
    capsys.readouterr()
    assert main([*CELL, str(cell)]) == 0
    assert fake_runs.commands == [] and "finished before" in capsys.readouterr().out


def test_a_run_is_recognised_by_a_note_with_words_in_the_order_of_an_earlier_version(cell, fake_runs):
    argv = [*CELL, str(cell), "train.steps=3"]
    assert main(argv) == 0
    path = cell / "demo-tiny-pretraining/seed-0" / runs_module.MADE_BY_FILE
    note = json.loads(path.read_text())
    flags = note["command"].index("--config")
    note["command"] = note["command"][flags:] + note["command"][:flags]
    path.write_text(json.dumps(note))
    fake_runs.commands.clear()
    assert main(argv) == 0 and fake_runs.commands == []


def test_an_override_after_a_bare_flag_is_distinguished(capsys):
    assert main([*CELL, "out", "--intervals", "optim.lr=1e-4"]) == 2
    assert OneLine("'optim.lr=1e-4'", "--intervals 1000 optim.lr=1e-4") in capsys.readouterr().err.splitlines()


def code(digest: str) -> dict[str, Any]:
    return {"sha256": digest * 64, "commit": "", "changed": False, "version": "0"}


def test_the_source_version_is_recorded_with_each_run_and_differences_are_reported(
    cell, fake_runs, monkeypatch, capsys
):
    argv = [*CELL, str(cell), "--seeds"]
    for number, digest in enumerate("aab"):
        for module in (runs_module, receipt):
            monkeypatch.setattr(module, "code_identity", lambda digest=digest: code(digest))
        assert main([*argv, ",".join(map(str, range(number + 1)))]) == 0
        printed = capsys.readouterr().out
        assert ("different sources" in printed) == (digest == "b")
    made = read_receipt(cell)
    assert [run["code"][0]["sha256"][0] for run in made["runs"].values()] == ["a", "a", "b"]
    assert made["code"] == code("b")
    a, b = "a" * 12, "b" * 12
    different = f"made by different sources: seed 0 by {a}; seed 1 by {a}; seed 2 by {b}"
    assert made["remarks"][-2:] == [different, OneLine("seed 0", "seed 1")]
    text = (cell / "demo-tiny-pretraining/receipt.md").read_text()
    assert f"seed-0`, sources {a} |" in text and f"seed-2`, sources {b} |" in text and different in text
    assert main([*argv, "0", "--intervals"]) == 0
    assert OneLine("seed 0", a, b) in capsys.readouterr().out.splitlines()


def test_interrupted_training_keeps_its_source_version_and_training_without_a_note_has_none(
    cell, fake_runs, monkeypatch
):
    run = cell / "demo-tiny-pretraining/seed-0"

    def killed(command):
        (run / "checkpoints").mkdir(parents=True)
        raise KeyboardInterrupt

    for digest, what, status in (("a", killed, 130), ("b", fake_runs, 0)):
        monkeypatch.setattr(runs_module, "code_identity", lambda digest=digest: code(digest))
        monkeypatch.setattr(runs_module, "run_command", what)
        assert main([*CELL, str(cell), "--unchecked"]) == status
        assert json.loads((run / "made_by.json").read_text())["finished"] is (status == 0)
    assert [each["sha256"][0] for each in read_receipt(cell)["runs"]["0"]["code"]] == ["a", "b"]
    (run / "made_by.json").unlink()
    assert main([*CELL, str(cell), "--unchecked"]) == 0
    assert OneLine("seed 0") in read_receipt(cell)["remarks"]


def test_an_interrupted_run_of_another_cell_does_not_provide_weights(cell):
    run = cell / "demo-tiny-pretraining/seed-0"
    run.mkdir(parents=True)
    nlvr = read_tables(DEMO)["demo/tiny/nlvr"]
    assert ready(nlvr, None, (), runs=cell).missing[str(run)] == ["init.checkpoint"]
    (run / "evaluation.json").write_text("{}")
    assert str(run) not in ready(nlvr, None, (), runs=cell).missing


def test_a_single_source_version_causes_no_remark():
    assert source_remarks({0: {"code": [code("a")]}, 1: {"code": [code("a")]}}, code("a")) == []
    assert source_remarks({0: {"code": [code("a")]}}, code("b")) == [OneLine("seed 0")]


def test_a_run_is_checked_and_made_once_per_seed_and_has_a_receipt(cell, fake_runs, capsys):
    argv = [*CELL, str(cell), "--seeds", "0,1"]
    assert main(argv) == 0
    assert ["doctor" in each for each in fake_runs.commands] == [True, False, False]
    assert {"seed=0", "--resume"} <= set(fake_runs.commands[1])
    assert "--cpu 2" in " ".join(fake_runs.commands[1]), "the settings with which the cell was measured"
    printed = capsys.readouterr().out
    assert "held-out masked word" in printed and "80.5 ± 0.7" in printed and "not measured" in printed
    made = json.loads((cell / "demo-tiny-pretraining/receipt.json").read_text())
    masked = next(each for each in made["numbers"] if each["metric"] == "masked word")
    assert masked["measured"] == [80.0, 81.0] and masked["mean"] == 80.5
    assert masked["difference"] == pytest.approx(80.5 - masked["published"])
    assert made["weights"] is None and set(made["runs"]) == {"0", "1"} and made["environment"]["packages"]["torch"]
    assert made["data"]["data.images.files"] and made["data"]["evaluation.files"]
    assert len(made["code"]["sha256"]) == 64
    page = (cell / "table_demo.html").read_text()
    assert "80.5 ± 0.7" in page and "tiny" in page
    fake_runs.commands.clear()
    assert main(argv) == 0
    assert fake_runs.commands == [] and capsys.readouterr().out.count("finished before") == 2
    assert main([*argv, "--cpu", "3", "optim.lr=1e-4"]) == 0
    assert len(fake_runs.commands) == 3 and "not the published setting: optim.lr=1e-4" in capsys.readouterr().out
    assert "--cpu 3" in " ".join(fake_runs.commands[1])


def test_a_failed_run_is_reported_and_leaves_no_receipt(cell, fake_runs, capsys):
    fake_runs.status, argv = 3, [*CELL, str(cell)]
    assert main(argv) == 1
    assert OneLine("doctor` refuses") in capsys.readouterr().out.splitlines()
    assert main([*argv, "--unchecked"]) == 1
    assert OneLine("status 3") in capsys.readouterr().out.splitlines()
    assert not (cell / "demo-tiny-pretraining/receipt.json").exists()


def test_the_receipt_names_the_weights_by_their_hash(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    named = weights_identity(str(weights))
    assert named == {"path": str(weights), "bytes": 7, "sha256": named["sha256"]}
    assert named["sha256"] == hashlib.sha256(b"weights").hexdigest()


def test_a_damaged_receipt_is_omitted_from_the_page(tmp_path):
    whole = {"cell": "demo/tiny/a", "numbers": [], "remarks": []}
    damaged = ({**whole, "cell": "demo"}, {"cell": "demo/tiny/b", "remarks": []}, {**whole, "remarks": None}, [])
    for number, content in enumerate((whole, *damaged)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "receipt.json").write_text(json.dumps(content))
    assert read_receipts(tmp_path, "demo") == [whole]


def test_a_finished_run_is_recognised_by_the_content_of_its_weights(tmp_path, monkeypatch, capsys):
    weights, folder = tmp_path / "model.safetensors", tmp_path / "run"
    commands: list[Any] = []

    def done(command):
        commands.append(command)
        (folder / "evaluation.json").write_text("{}")
        return 0

    monkeypatch.setattr(runs_module, "run_command", done)
    evaluation = runs_module.RunToMake("c.yaml", folder, evaluates=True, weights=str(weights))
    for content, count in ((b"a", 1), (b"a", 1), (b"b", 2)):
        weights.write_bytes(content)
        runs_module.make(evaluation)
        assert len(commands) == count
    assert OneLine("has changed", "measuring it again") in capsys.readouterr().out.splitlines()
    training = runs_module.RunToMake("c.yaml", folder, weights=str(weights))
    runs_module.make(training)
    weights.write_bytes(b"c")
    with pytest.raises(UserError, match=naming("weights", "--output")):
        runs_module.make(training)
    assert len(commands) == 3


@pytest.mark.night
def test_cells_run_from_their_files_to_their_results_the_second_with_the_weights_of_the_first(
    tmp_path, monkeypatch, capfd
):
    """Runs the same commands as a user, with smaller pictures and a single step, which is not the published setting."""
    scenes(output=FolderFlags(out=tmp_path / "data/scenes"), seed=0, train=40, val=4, test=4, size=(32, 32))
    monkeypatch.chdir(tmp_path)
    model = ["model.vision.image_size=32", "train.steps=1"]
    where = ["--small", "--unchecked", "--output", "out"]
    assert main(["reproduce", "--cell", "demo/tiny/nlvr", *where, *model]) == 1
    assert "python run.py reproduce --cell demo/tiny/pretraining --output out\n" in capfd.readouterr().out
    assert main(["reproduce", "--cell", "demo/tiny/pretraining", "--cpu", "1", *where, *model]) == 0
    assert "not the published setting: " in capfd.readouterr().out
    receipt = json.loads(Path("out/demo-tiny-pretraining/receipt.json").read_text())
    assert all(len(each["measured"]) == 1 for each in receipt["numbers"])
    assert main(["reproduce", "--cell", "demo/tiny/nlvr", *where, *model]) == 0
    made = json.loads(Path("out/demo-tiny-nlvr/receipt.json").read_text())
    assert made["weights"]["path"] == "out/demo-tiny-pretraining/seed-0"
    assert [each["metric"] for each in made["numbers"] if each["measured"]] == ["accuracy"]
    page = Path("out/table_demo.html").read_text()
    assert "masked word" in page and "accuracy" in page
