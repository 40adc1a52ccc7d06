"""``run.py checkpoint`` and its subcommands: what weight files are, other forms of them, and how they differ."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from utils.errors import UserError
from utils.flags import Positive, one_of, read_by
from utils.subcommands import Command, with_subcommands

SUBCOMMANDS = {
    "inspect": Command(f"{__name__}:inspect", "kind, task, sizes, resolution, frames, words, and whether it is whole"),
    "convert": Command(f"{__name__}:convert", "from published names to ours, or from ours to the published ones"),
    "compare": Command(f"{__name__}:compare", "tensors in one file alone, of other shapes, and with other numbers"),
    "adapters": Command(f"{__name__}:adapters", "what a run with optim.lora has trained, as a small folder"),
    "merge": Command(
        f"{__name__}:merge", "the whole model again, from such a folder and the weights it was trained on"
    ),
}


@with_subcommands(SUBCOMMANDS)
def checkpoint(command: Annotated[str, read_by(one_of(list(SUBCOMMANDS)))], /) -> int:
    """Say what a weight file is, by the names and shapes in it; write it in the published or in our form; compare two; take the
    adapters out of a run with optim.lora, or merge them. No code of a file is run.

    A FILE is a weight file (.safetensors, .th, .pth, .bin), a run's folder, or a folder step-N of its checkpoints.

    Args:
        command: inspect, convert, compare, adapters or merge; each has its own flags, see run.py checkpoint COMMAND --help.

    Examples:
        python run.py checkpoint inspect weights/*.th runs/pre
        python run.py checkpoint convert weights/x2vlm_base_4m.th --out weights/x2vlm_base_4m.safetensors
        python run.py checkpoint convert runs/pre --out weights/mine.th
        python run.py checkpoint compare weights/x2vlm_base_4m.th runs/pre/checkpoints/step-00000020
        python run.py checkpoint adapters runs/vqa_lora --out vqa_adapters
        python run.py checkpoint merge vqa_adapters --base weights/x2vlm_base_4m.th --out vqa_model

    Returns:
        0 fine, or equal; 1 a file is not whole, or the two differ; 2 a file cannot be read, or the command line is wrong
    """
    raise AssertionError(f"{command} is a subcommand")


def inspect(files: list[str], /, *, no_configs: bool = False) -> int:
    """Say of weight files their kind, task, sizes, resolution, frames, words, and whether each is whole.

    A file that cannot be read is reported in its place, and the others are still inspected.

    Args:
        files: weight files or folders.
        no_configs: without the configs that can start from it.

    Returns:
        0 all files are whole; 1 one is not; 2 one cannot be read, or the command line is wrong
    """
    from tools.checkpoint import inspect as inspecting

    status = 0
    for path in files:
        try:
            whole, text = inspecting.inspect(path, with_configs=not no_configs)
        except UserError as error:
            if len(files) == 1:
                raise
            sys.stdout.flush()
            sys.stderr.write(f"error: {error}\n")
            status = 2
            continue
        sys.stdout.write(text)
        status = max(status, 0 if whole else 1)
    return status


def convert(
    file: str,
    /,
    *,
    out: str,
    form: Literal["published", "ours"] | None = None,
    config: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write a weight file with our names in place of the published ones, or with the published names in place of ours.

    Args:
        file: a weight file or folder.
        out: the file to write.
        form: form to write (default: the other one than the file's).
        config: a config whose model the file must fill, with its shapes.
        overwrite: replace the file that is there.
    """
    from tools.checkpoint import convert as converting

    sys.stdout.write(converting.convert(file, out, form, config, overwrite))
    return 0


def compare(first: str, second: str, /, *, most: Positive = 20, all_: bool = False) -> int:
    """List the tensors that are in only one of two files, that have other shapes, or that hold other numbers.

    Args:
        first: a weight file or folder.
        second: another one.
        most: lines of each kind.
        all_: all lines.

    Returns:
        0 the files are equal; 1 they differ; 2 a file cannot be read, or the command line is wrong
    """
    from tools.checkpoint import compare as comparing

    same, text = comparing.compare(first, second, sys.maxsize if all_ else most)
    sys.stdout.write(text)
    return 0 if same else 1


def adapters(run: str, /, *, out: str) -> int:
    """Write what a run with optim.lora has trained, as a small folder.

    Args:
        run: the folder of a run, or one of its weight files.
        out: a new folder.
    """
    from tools.checkpoint.adapters import extract

    sys.stdout.write(extract(run, out))
    return 0


def merge(folder: str, /, *, base: str, out: str) -> int:
    """Write the whole model again, from a folder of adapters and the weights that they were trained on.

    Args:
        folder: what `checkpoint adapters` wrote.
        base: the weights that the run started from.
        out: a new folder.
    """
    from tools.checkpoint import adapters

    sys.stdout.write(adapters.merge(folder, base, out))
    return 0
