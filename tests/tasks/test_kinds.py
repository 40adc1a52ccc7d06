"""The table of tasks, and tasks outside the checkout: how they are found, and the messages if they are not."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from launch.command import run_of_command_line
from tasks import TASKS
from tasks.binding import bind_run
from tasks.config import NLVRConfig
from tasks.kinds import TaskSource, find_task, task_of_run
from tasks.nlvr import NLVRTask
from tasks.run_flags import RunFlags
from tasks.video_qa import VideoQATask
from tasks.vqa import VQATask
from tests.messages import OneLine, naming
from utils.errors import UserError

ROOT = Path(__file__).parent.parent.parent
TASK = """from tasks.kinds import TaskKind
from tasks.nlvr import NLVRConfig, NLVRTask


class CountingTask(NLVRTask):
    pass


TASK = TaskKind(NLVRConfig, CountingTask)
"""


@pytest.fixture(autouse=True)
def modules_of_a_process(monkeypatch):
    """Restores the modules, because a command imports one task and all tests share one process."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("tasks", "models", "dataset", "engine", "utils", "torch")):
            del sys.modules[name]


def outside(folder: Path, task: str = TASK, **files: str) -> Path:
    """The folder of a task."""
    folder.mkdir(parents=True)
    (folder / "task.py").write_text(task)
    (folder / "config.yaml").write_text(f"base: {ROOT}/configs/demo/nlvr.yaml\n")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_each_row_of_the_table_is_a_task_with_its_own_config(name):
    source = find_task(name)
    kind = source.load()
    assert source.name == name
    assert kind.config.model_fields["task"].default == name
    assert bind_run(source.default_config, [], None).source == source


def test_a_config_names_its_task():
    assert bind_run(ROOT / "configs/demo/nlvr.yaml", []).source.load()[:2] == (NLVRConfig, NLVRTask)
    assert bind_run(ROOT / "configs/demo/nlvr.yaml", [], "nlvr").source.load()[:2] == (NLVRConfig, NLVRTask)
    assert bind_run(ROOT / "configs/demo/vqa_clips.yaml", []).source.load().task is VideoQATask
    assert bind_run(ROOT / "configs/demo/vqa.yaml", []).source.load().task is VQATask


def test_vqa_accepts_configs_of_video_qa_and_keeps_its_name():
    choice = bind_run(ROOT / "configs/demo/vqa_clips.yaml", [], "vqa")
    assert choice.source.name == "vqa"
    assert choice.source.load().task is VideoQATask


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        ("configs/demo/vqa.yaml", "nlvr", ("configs/demo/vqa.yaml", "task vqa", "nlvr", "--task vqa")),
        ("configs/demo/vqa.yaml", "video_qa", ("task vqa", "video_qa", "--task vqa")),
        ("configs/presets/tiny.yaml", None, ("tiny.yaml", "None", "pretrain, retrieval, nlvr")),
        ("configs/none.yaml", "nlvr", ("--config", "configs/none.yaml")),
        (None, None, ("--task TASK", "--config FILE")),
        (None, "retreival", ("task retreival", "'retrieval'")),
        (None, "xyz", ("pretrain, retrieval, nlvr, grounding, vqa, video_qa, captioning",)),
        (None, "json", ("json/__init__.py", "TASK")),
        (None, "./nowhere", ("--task", "./nowhere")),
    ],
)
def test_a_name_that_is_not_a_task_is_reported_in_one_line(config, task, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        bind_run(config, [], task)
    assert str(error.value) == OneLine(*message)
    assert "\n" not in str(error.value)


def test_an_unreadable_config_is_not_reported_as_lacking_a_task(tmp_path):
    (tmp_path / "c.yaml").write_text("base: gone.yaml")
    with pytest.raises(UserError, match=r"base file .* does not exist"):
        bind_run(tmp_path / "c.yaml", [], None)


@pytest.mark.slow
def test_a_task_imports_no_other_task():
    code = (
        "import sys; from tasks.binding import bind_run; bind_run('configs/demo/nlvr.yaml', []).source.load(); "
        "assert 'tasks.nlvr' in sys.modules; assert 'tasks.captioning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_folder_is_a_task_with_its_name_and_its_config(tmp_path):
    task = TASK.replace("pass", "words = WORDS").replace("\n\n\nclass", "\nfrom .words import WORDS\n\n\nclass", 1)
    folder = outside(tmp_path / "counting_apples", task, words="WORDS = 'one two'")
    choice = bind_run(None, [], str(folder))
    assert (choice.source.name, choice.file) == ("counting_apples", folder / "config.yaml")
    kind = choice.source.load()
    assert kind.task.words == "one two"
    assert kind.task.__module__ == "counting_apples.task"
    assert pickle.loads(pickle.dumps(kind.task)) is kind.task


def test_a_config_next_to_a_task_belongs_to_that_task(tmp_path):
    folder = outside(tmp_path / "counting_pears")
    assert bind_run(folder / "config.yaml", [], None).source.name == "counting_pears"
    assert bind_run(folder / "config.yaml", [], "nlvr").source.name == "nlvr"


def test_a_relative_folder_is_found_from_the_working_directory(tmp_path, monkeypatch):
    folder = outside(tmp_path / "counting_plums")
    for working_directory, text in (
        (tmp_path, "counting_plums"),
        (tmp_path, "counting_plums/"),
        (folder, "."),
        (folder, "../counting_plums"),
    ):
        monkeypatch.chdir(working_directory)
        assert find_task(text).name == "counting_plums"


@pytest.mark.parametrize(
    ("text", "name"),
    [("orchard.counting", "counting"), ("orchard.counting.task", "counting"), ("orchard.single", "single")],
)
def test_a_module_can_be_a_task(tmp_path, monkeypatch, text, name):
    outside(tmp_path / "orchard" / "counting")
    (tmp_path / "orchard" / "single.py").write_text(TASK)
    (tmp_path / "orchard" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    source = find_task(text)
    assert source.name == name
    assert source.default_config == (tmp_path / "orchard/counting/config.yaml" if name == "counting" else None)
    assert source.load().task.__name__ == "CountingTask"


def test_a_task_without_its_own_config_needs_one(tmp_path):
    folder = outside(tmp_path / "counting_figs")
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=naming(f"--task {folder}", "config.yaml", "task.py", "--config FILE")):
        bind_run(None, [], str(folder))


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("counting_a", None, ("task.py", "TASK = TaskKind(config class, task class)")),
        ("counting_b", "x = 1", ("task.py", "TASK = TaskKind(config class, task class)")),
        ("counting_c", "TASK = {}", ("task.py", "TASK is {}", "TaskKind(config class, task class)")),
        (
            "counting_d",
            TASK.replace("(NLVRConfig, CountingTask)", "(CountingTask, NLVRConfig)"),
            ("task.py", "CountingTask", "RunConfig", "TaskKind(config class, task class)"),
        ),
        (
            "counting_e",
            TASK.replace("(NLVRConfig, CountingTask)", "(NLVRConfig, NLVRConfig)"),
            ("task.py", "NLVRConfig", "BaseTask", "TaskKind(config class, task class)"),
        ),
        ("my-counting", TASK, ("'my-counting'", "rename")),
        ("json", TASK, ("'json'",)),
        ("dataset", TASK, ("'dataset'",)),
    ],
)
def test_a_folder_that_is_not_a_task_is_reported_in_one_line(tmp_path, name, task, message):
    folder = outside(tmp_path / name, task or "")
    if task is None:
        (folder / "task.py").unlink()
    with pytest.raises(UserError) as error:
        find_task(str(folder)).load()
    assert str(error.value) == OneLine(*message)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_is_rejected_and_its_folder_named(tmp_path):
    folder = outside(tmp_path / "counting_f")
    with pytest.raises(UserError, match=naming(f"--task {folder}/task.py", f"folder {folder}")):
        find_task(f"{folder}/task.py")


def test_errors_raised_by_a_task_keep_their_traceback(tmp_path):
    folder = outside(tmp_path / "counting_g", "import nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        find_task(str(folder)).load()


def test_an_outside_task_rejects_a_config_of_a_built_in_task(tmp_path):
    own = TASK.replace(
        "TASK = TaskKind(NLVRConfig",
        "class CountingConfig(NLVRConfig):\n    task: str = 'counting'\n\n\nTASK = TaskKind(CountingConfig",
    )
    folder = outside(tmp_path / "counting_h", own)
    with pytest.raises(UserError, match=naming("vqa.yaml", "task vqa", str(folder), "--task vqa")):
        bind_run(ROOT / "configs/demo/vqa.yaml", [], str(folder)).source.load()[:2]
    (folder / "config.yaml").write_text(f"base: {ROOT}/configs/demo/nlvr.yaml\ntask: counting\n")
    assert bind_run(None, [], str(folder)).source.load().task.__name__ == "CountingTask"


def test_a_task_without_the_parameter_for_the_plan_is_reported(tmp_path):
    old = "@staticmethod\n    def training_data(config, tokenizer, model):\n        return None"
    folder = outside(tmp_path / "counting_old", TASK.replace("pass", old))
    with pytest.raises(UserError, match=naming("CountingTask.training_data", "config, tokenizer, model", "add plan")):
        find_task(str(folder)).load()


def run_of(folder: Path, source: TaskSource) -> Path:
    """The folder of a run of a task."""
    folder.mkdir()
    source.remember(folder)
    return folder


def test_a_run_remembers_where_its_task_is(tmp_path, monkeypatch):
    folder = outside(tmp_path / "counting_kiwis")
    run = run_of(tmp_path / "run", find_task(str(folder)))
    monkeypatch.chdir(tmp_path / "run")
    (run / "config.yaml").write_text(f"base: {ROOT}/configs/demo/nlvr.yaml\n")
    assert task_of_run(run, "counting_kiwis").load().task.__name__ == "CountingTask"
    assert bind_run(run / "config.yaml", ["task=nlvr"]).source.entry == "nlvr"
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=naming("task.json", str(folder), "--task FOLDER")):
        task_of_run(run, "counting_kiwis")


def test_a_run_of_a_built_in_task_needs_no_note(tmp_path):
    run = run_of(tmp_path / "run", find_task("nlvr"))
    assert [*run.iterdir()] == [] and task_of_run(run, "nlvr").entry == "nlvr" and task_of_run(run, "other") is None


def test_code_in_the_folder_of_a_run_is_never_executed(tmp_path):
    """A run's folder may have been downloaded."""
    run = tmp_path / "run"
    folder = outside(run / "counting_evil", "raise SystemExit('executed')")
    source = TaskSource("counting_evil", "counting_evil", None, module="counting_evil.task", folder=run)
    source.remember(run)
    with pytest.raises(UserError, match=naming("task.json", str(folder), "outside the run")):
        task_of_run(run, "counting_evil")
    for damaged in ("{", "[]", '{"module": "x"}', '{"module": "x.task", "folder": "../x"}'):
        (run / "task.json").write_text(damaged)
        with pytest.raises(UserError, match=r"task\.json"):
            task_of_run(run, "counting_evil")


def test_resuming_a_downloaded_run_does_not_execute_code_in_its_folder(tmp_path):
    folder = outside(tmp_path / "counting_trap", "raise SystemExit('executed')")
    (folder / "config.yaml").write_text(f"base: {ROOT}/configs/demo/nlvr.yaml\ntask: counting_trap\n")
    with pytest.raises(UserError, match=naming("config.yaml", "'counting_trap'", "pass --task TASK")):
        run_of_command_line(RunFlags(output=folder, resume=True), [], None)
