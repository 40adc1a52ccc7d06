"""``run.py checkpoint`` and its subcommands: inspect, convert and compare weight files, extract and merge adapters, and average
weights."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from utils.errors import UserError
from utils.flags import File, OutputFile, OutputFolder, Positive, number_within, one_of, read_by
from utils.subcommands import Command, with_subcommands

Coefficient = Annotated[float, read_by(number_within(0, 1))]

SUBCOMMANDS = {
    "inspect": Command(
        f"{__name__}:inspect",
        "show a file's kind, task, sizes, resolution, frames, vocabulary, and whether it is intact",
    ),
    "convert": Command(f"{__name__}:convert", "rename tensors from the published names to ours, or vice versa"),
    "compare": Command(f"{__name__}:compare", "list tensors that are in only one file, or differ in shape or in value"),
    "adapters": Command(
        f"{__name__}:adapters", "save only the weights that a run with optim.lora trained, in a small folder"
    ),
    "merge": Command(
        f"{__name__}:merge",
        "rebuild the full model from a folder of adapters and the weights that the run started from",
    ),
    "interpolate": Command(
        f"{__name__}:interpolate", "average the starting and the final weights of a fine-tuned run, to forget less"
    ),
    "average": Command(f"{__name__}:average", "average the weights of several runs"),
}


@with_subcommands(SUBCOMMANDS)
def checkpoint(command: Annotated[str, read_by(one_of(list(SUBCOMMANDS)))], /) -> int:
    """Identify a weight file by the names and shapes in it; convert it between the published form and ours; compare two files;
    extract the adapters that a run with optim.lora trained, or merge them; average weights. Code in a weight file is never
    executed.

    A FILE is a weight file (.safetensors, .th, .pth, .bin), a run's folder, or a folder step-N of its checkpoints.

    Args:
        command: inspect, convert, compare, adapters, merge, interpolate or average; for its flags, see run.py checkpoint COMMAND
            --help.

    Examples:
        python run.py checkpoint inspect weights/*.th runs/pre
        python run.py checkpoint convert weights/x2vlm_base_4m.th --out weights/x2vlm_base_4m.safetensors
        python run.py checkpoint convert runs/pre --out weights/mine.th
        python run.py checkpoint compare weights/x2vlm_base_4m.th runs/pre/checkpoints/step-00000020
        python run.py checkpoint adapters runs/vqa_lora --out vqa_adapters
        python run.py checkpoint merge vqa_adapters --base weights/x2vlm_base_4m.th --out vqa_model
        python run.py checkpoint interpolate runs/mine --out runs/mine_between
        python run.py checkpoint average runs/mine-seed0 runs/mine-seed1 runs/mine-seed2 --out runs/mine_average --greedy

    Returns:
        0 success, or the files are equal; 1 a file is damaged, or the two files differ; 2 a file cannot be read, or the command
        line is wrong
    """
    raise AssertionError(f"{command} is a subcommand")


def inspect(files: list[File], /, *, no_configs: bool = False) -> int:
    """Print the kind, task, sizes, resolution, frames and vocabulary of weight files, and whether each file is intact.

    If a file cannot be read, the error is reported and the other files are still inspected.

    Args:
        files: weight files or folders.
        no_configs: do not list the configs that can start from the file.

    Returns:
        0 all files are intact; 1 a file is damaged; 2 a file cannot be read, or the command line is wrong
    """
    from tools.checkpoint import inspect as inspecting

    status = 0
    for path in files:
        try:
            is_intact, text = inspecting.inspect(path, with_configs=not no_configs)
        except UserError as error:
            if len(files) == 1:
                raise
            sys.stdout.flush()
            sys.stderr.write(f"error: {error}\n")
            status = 2
            continue
        sys.stdout.write(text)
        status = max(status, 0 if is_intact else 1)
    return status


def convert(
    file: File,
    /,
    *,
    out: OutputFile,
    form: Literal["published", "ours"] | None = None,
    config: File | None = None,
    overwrite: bool = False,
) -> int:
    """Rename the tensors in a weight file from the published names to ours, or from ours to the published names.

    Args:
        file: a weight file or folder.
        out: the file to write.
        form: form to convert to (default: ours for a published file, published for one of ours).
        config: a config whose model must match all names and shapes in the file.
        overwrite: replace an existing file.
    """
    from tools.checkpoint import convert as converting

    sys.stdout.write(converting.convert(file, out, form, config, overwrite))
    return 0


def compare(first: File, second: File, /, *, most: Positive = 20, all_: bool = False) -> int:
    """List the tensors that are in only one of two files, or differ in shape or in value.

    Args:
        first: a weight file or folder.
        second: the weight file or folder to compare it with.
        most: maximum number of lines per type of difference.
        all_: print all lines.

    Returns:
        0 the files are equal; 1 they differ; 2 a file cannot be read, or the command line is wrong
    """
    from tools.checkpoint import compare as comparing

    same, text = comparing.compare(first, second, sys.maxsize if all_ else most)
    sys.stdout.write(text)
    return 0 if same else 1


def adapters(run: str, /, *, out: OutputFolder) -> int:
    """Save only the weights that a run with optim.lora trained, in a small folder.

    Args:
        run: the folder of a run, or one of its weight files.
        out: a new folder.
    """
    from tools.checkpoint.adapters import extract

    sys.stdout.write(extract(run, out))
    return 0


def merge(folder: str, /, *, base: File, out: OutputFolder) -> int:
    """Rebuild the full model from a folder of adapters and the weights that their run started from.

    Args:
        folder: a folder that `checkpoint adapters` wrote.
        base: the weights that the run started from.
        out: a new folder.
    """
    from tools.checkpoint import adapters

    sys.stdout.write(adapters.merge(folder, base, out))
    return 0


def interpolate(
    run: str, /, *, out: OutputFolder, points: Positive = 10, coefficient: Coefficient | None = None
) -> int:
    """Average the starting and the final weights of a fine-tuned run, so that the model forgets less of what it could do before.

    The coefficient 0 stands for the starting weights, and 1 for the final weights. By default, all coefficients are measured on
    evaluation.validation and evaluation.keep.validation of the run's config, and the one with the best mean is written.

    Args:
        run: the folder of a run with init.checkpoint.
        out: a new folder, which loads like a run.
        points: number of intervals between 0 and 1; their ends are measured.
        coefficient: write the weights with this coefficient, and measure nothing.
    """
    from tools.checkpoint import averages

    sys.stdout.write(averages.interpolate(run, out, points, coefficient))
    return 0


def average(runs: list[str], /, *, out: OutputFolder, greedy: bool = False) -> int:
    """Average the weights of several runs with the same model.

    Args:
        runs: folders of runs.
        out: a new folder, which loads like a run; its config and tokenizer are those of the first run.
        greedy: begin with the run that is best on evaluation.validation (and evaluation.keep.validation) of the first run's
            config, and add another run only if the mean becomes better.
    """
    from tools.checkpoint import averages

    sys.stdout.write(averages.average(runs, out, greedy=greedy))
    return 0
