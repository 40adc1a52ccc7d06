"""``run.py migrate``: converts a config of the authors' code to our formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from utils.errors import UserError
from utils.flags import File, OutputFolder, Override, Positive, one_of, read_by


def _task(text: str) -> str:
    from tools.migrate.migration import PRESETS  # imported here, since it imports torch

    return one_of(list(PRESETS))(text)


def migrate(
    config: Path | None = None,
    /,
    *overrides: Override,
    out: OutputFolder | None = None,
    task: Annotated[str | None, read_by(_task)] = None,
    root: Path = Path("."),
    checkpoint: File | None = None,
    gpus: Positive | None = None,
    keys: bool = False,
) -> int:
    """Convert a YAML config of the authors' code (github.com/zengyan-97/X2-VLM) to our format, convert the lists that it names to
    records, and report what happened to each key. docs/migrating.md has a table of all keys.

    The command creates the folder --out with config.yaml; migration.txt, which is also printed; and records/, which contains the
    lists that had to be converted because our readers do not accept the originals.

    Args:
        config: a YAML file of the authors' code.
        overrides: values that replace values in the file, as key=value with the authors' keys.
        out: a new folder.
        task: pretrain, retrieval, nlvr, vqa, video_qa, grounding or captioning (default: recognised from the keys).
        root: folder that the paths in the file are relative to, which is the folder from which you run the authors' run.py.
        checkpoint: weights to start from, which you would pass to the authors' run.py.
        gpus: total number of GPUs of the run; determines the global batch.
        keys: print the table of all keys as Markdown.

    Examples:
        python run.py migrate X2-VLM/configs/finetune/vqa2_base.yaml --root X2-VLM --out vqa2 --checkpoint x2vlm.th --gpus 16
        python run.py migrate X2-VLM/configs/pretrain/x2vlm_base_4m.yaml --root X2-VLM --out 4m optimizer.lr=2e-4
        python run.py migrate --keys
    """
    from tools.migrate.keys import markdown
    from tools.migrate.migration import migrate as migrating

    if keys:
        if config is not None:
            raise UserError("prints the table of all keys", where="--keys", remedy=f"remove {config}")
        sys.stdout.write(markdown())
        return 0
    if config is None or out is None:
        raise UserError(
            "pass a YAML file of the authors' code, and a new folder: run.py migrate CONFIG.yaml --out FOLDER"
        )
    sys.stdout.write(migrating(config, out, overrides, task=task, root=root, checkpoint=checkpoint, gpus=gpus))
    return 0
