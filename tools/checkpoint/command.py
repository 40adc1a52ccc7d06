"""The command line of ``run.py checkpoint``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools.checkpoint.adapters import extract, merge
from tools.checkpoint.compare import compare
from tools.checkpoint.convert import SUFFIXES, convert
from tools.checkpoint.inspect import inspect
from utils.errors import UserError, one_line_errors
from utils.flags import positive

EXAMPLES = """examples:
  python run.py checkpoint inspect weights/*.th runs/pre
  python run.py checkpoint convert weights/x2vlm_base_4m.th --out weights/x2vlm_base_4m.safetensors
  python run.py checkpoint convert runs/pre --out weights/mine.th
  python run.py checkpoint compare weights/x2vlm_base_4m.th runs/pre/checkpoints/step-00000020
  python run.py checkpoint adapters runs/vqa_lora --out vqa_adapters
  python run.py checkpoint merge vqa_adapters --base weights/x2vlm_base_4m.th --out vqa_model

A FILE is a weight file (.safetensors, .th, .pth, .bin), a run's folder, or a folder step-N of its checkpoints.

exit status: 0 fine, or equal; 1 a file is not whole, or the two differ; 2 a file cannot be read, or the command line is wrong"""
SHOWN = 20
"""Lines of each kind that ``compare`` prints."""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments after ``run.py checkpoint``."""
    parser = argparse.ArgumentParser(
        prog="run.py checkpoint",
        description="Say what a weight file is, by the names and shapes in it; write it in the published or in our form; "
        "compare two; take the adapters out of a run with optim.lora, or merge them. No code of a file is run.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|convert|compare|adapters|merge")
    one = commands.add_parser("inspect", help="kind, task, sizes, resolution, frames, words, and whether it is whole")
    one.add_argument("files", nargs="+", metavar="FILE", help="weight files or folders")
    one.add_argument("--no-configs", action="store_true", help="without the configs that can start from it")
    two = commands.add_parser("convert", help="from published names to ours, or from ours to the published ones")
    two.add_argument("file", metavar="FILE", help="a weight file or folder")
    two.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    two.add_argument("--form", choices=tuple(SUFFIXES), help="form to write (default: the other one than the file's)")
    two.add_argument("--config", metavar="FILE", help="a config whose model the file must fill, with its shapes")
    two.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    three = commands.add_parser("compare", help="tensors in one file alone, of other shapes, and with other numbers")
    three.add_argument("first", metavar="A")
    three.add_argument("second", metavar="B")
    three.add_argument(
        "--most", type=positive, default=SHOWN, metavar="N", help="lines of each kind (default: %(default)s)"
    )
    three.add_argument("--all", action="store_true", help="all lines")
    four = commands.add_parser("adapters", help="what a run with optim.lora has trained, as a small folder")
    four.add_argument("run", metavar="RUN", help="the folder of a run, or one of its weight files")
    four.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    five = commands.add_parser(
        "merge", help="the whole model again, from such a folder and the weights it was trained on"
    )
    five.add_argument("folder", metavar="FOLDER", help="what `checkpoint adapters` wrote")
    five.add_argument("--base", required=True, metavar="FILE", help="the weights that the run started from")
    five.add_argument("--out", required=True, metavar="FOLDER", help="a new folder")
    return parser.parse_args(argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Run one of the five; returns the exit status."""
    arguments = arguments_of(argv)
    if arguments.command == "inspect":
        return _inspect(arguments)
    if arguments.command == "convert":
        given = (arguments.file, arguments.out, arguments.form, arguments.config, arguments.overwrite)
        sys.stdout.write(convert(*given))
        return 0
    if arguments.command == "adapters":
        sys.stdout.write(extract(arguments.run, arguments.out))
        return 0
    if arguments.command == "merge":
        sys.stdout.write(merge(arguments.folder, arguments.base, arguments.out))
        return 0
    same, text = compare(arguments.first, arguments.second, sys.maxsize if arguments.all else arguments.most)
    sys.stdout.write(text)
    return 0 if same else 1


def _inspect(arguments: argparse.Namespace) -> int:
    """A file that cannot be read is told in its place, and the others are still inspected."""
    status = 0
    for path in arguments.files:
        try:
            whole, text = inspect(path, with_configs=not arguments.no_configs)
        except UserError as error:
            if len(arguments.files) == 1:
                raise
            sys.stdout.flush()
            sys.stderr.write(f"error: {error}\n")
            status = 2
            continue
        sys.stdout.write(text)
        status = max(status, 0 if whole else 1)
    return status
