"""``python run.py export MODEL --out X.onnx``: write a trained model as graphs of ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import one_line_errors

EXAMPLES = """examples:
  python run.py export runs/demo/pretrain-seed0 --out pretrain.onnx
  python run.py predict match --model pretrain.onnx --image dog.jpg --text "a dog"

The folder holds the image encoder, the text encoder, the fusion encoder with its heads, config and tokenizer: it stands alone.
Where a model is given, to predict, index, search, serve or in Python to load, the folder will do.

exit status: 0 it was written, and onnxruntime's results are those of torch to 1e-4; 2 nothing was written"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py export``."""
    parser = argparse.ArgumentParser(
        prog="run.py export",
        description="Write a model of task pretrain, retrieval or grounding as graphs of ONNX, for machines without a GPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("model", metavar="MODEL", help="a run's folder, a weight file, or hub:owner/name")
    flag("--out", type=Path, required=True, metavar="X.onnx", help="folder to write; it must not be there yet")
    flag("--config", metavar="FILE", help="config of the weights, where the file does not lie in its run's folder")
    flag("--tokenizer", metavar="DIR", help="tokenizer, if other than the model's own")
    return parser.parse_args(argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Export, and print the graphs, the differences, and what to do next; returns the exit status."""
    flags = arguments_of(argv)
    from x2vlm.export.files import GRAPHS
    from x2vlm.export.writing import export
    from x2vlm.loading import load

    model = load(flags.model, device="cpu", config=flags.config, tokenizer=flags.tokenizer)
    about = export(model, flags.out)
    say = sys.stdout.write
    for graph in GRAPHS:
        size = sum(int(file["bytes"]) for name, file in about.files.items() if name.startswith(graph))
        say(f"{flags.out / graph}: {size / 1e6:,.1f} MB\n")
    for name, apart in about.differences.items():
        say(f"{name}: at most {apart:.1e} from torch\n")
    call = "match" if model.takes("match") else "locate"
    say(f'next: python run.py predict {call} --model {flags.out} --image IMAGE --text "a dog"\n')
    return 0
