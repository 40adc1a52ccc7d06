"""``run.py doctor``: checks a run before it starts."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from tasks.binding import bind_run
from tasks.flag import TaskName
from tasks.run_flags import RunFlags, output_folder
from utils.flags import File, OutputFolder, Override, Positive


def doctor(
    *overrides: Override,
    config: File | None = None,
    task: TaskName | None = None,
    gpus: Positive = 1,
    output: Path | None = None,
    out: OutputFolder = Path("."),
) -> int:
    """Check a run before it starts: missing files, versions, a sample of the records, weights, memory, disk, and one training
    step of each stream on a tiny batch. The check takes half a minute, and reports all findings at once, each with a remedy.

    Args:
        overrides: values that replace the config's, as key=value.
        config: YAML file; see configs/ (default: the task's default config).
        task: a task's name, a folder with task.py, or a module (default: the config's task).
        gpus: total number of GPUs, or of processes on CPUs, over all nodes of the run.
        output: folder of the run (default: runs/<task>/<config's name>).
        out: folder for first_batch.png.

    Examples:
        python run.py doctor --config configs/demo/retrieval.yaml
        python run.py doctor --config configs/own/grounding.yaml data.train.annotations=my/regions.jsonl
        python run.py doctor --config configs/pretrain/base_4m.yaml --gpus 8
        python run.py doctor --task examples/entailment

    Returns:
        0 no findings, or only warnings; 1 the run would not start; 2 the config or the command line is wrong
    """
    started = time.perf_counter()
    run = bind_run(config, overrides, task)
    # Imported here, so that --help and mistakes in the config do not wait for torch.
    from tools.doctor.checks import CHECKS
    from tools.doctor.findings import Report
    from tools.doctor.subject import Subject
    from utils.distributed import process_group

    logging.getLogger().addHandler(logging.NullHandler())  # the report contains what would be logged

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    write(f"{run.file}: {run.source.name}\n")
    with process_group() as device:
        folder = output_folder(run, RunFlags(output=output))
        subject = Subject(
            run.config,
            run.source.load().task,
            gpus,
            output=folder,
            device=device,
            out=out,
            file=run.file,
            locations=run.read.locations,
        )
        report = Report(write)
        for check in CHECKS:
            report.run(check, subject)
        return report.end(time.perf_counter() - started)
