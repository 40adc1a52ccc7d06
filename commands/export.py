"""``run.py export MODEL --out X.onnx``: writes a trained model as ONNX graphs."""

from __future__ import annotations

import sys
from typing import Annotated

from utils.flags import File, ModelName, OutputFolder, named


def export(
    model: ModelName,
    /,
    *,
    out: OutputFolder,
    config: File | None = None,
    tokenizer: Annotated[str | None, named("FOLDER")] = None,
) -> int:
    """Write a pre-trained, retrieval or grounding model as ONNX graphs, for machines without a GPU.

    The folder is self-contained: it contains the image encoder, the text encoder, the fusion encoder with its heads, the config
    and the tokenizer. You can use it wherever a model is expected: in predict, index, search and serve, and with load in Python.

    Args:
        model: a run's folder, a weight file, or hub:owner/name.
        out: folder to write, such as X.onnx; it must not exist yet.
        config: config that the weights were trained with, if the file is not in its run's folder.
        tokenizer: folder of a tokenizer to use instead of the model's.

    Examples:
        python run.py export runs/demo/pretrain-seed0 --out pretrain.onnx
        python run.py predict match --model pretrain.onnx --image dog.jpg --text "a dog"

    Returns:
        0 the folder was written, and onnxruntime's results agree with torch's to within 1e-4; 2 nothing was written
    """
    from x2vlm.export import writing
    from x2vlm.export.files import GRAPHS
    from x2vlm.loading import load

    loaded = load(model, device="cpu", config=config, tokenizer=tokenizer)
    metadata = writing.export(loaded, out)
    say = sys.stdout.write
    for graph in GRAPHS:
        size = sum(int(file["bytes"]) for name, file in metadata.files.items() if name.startswith(graph))
        say(f"{out / graph}: {size / 1e6:,.1f} MB\n")
    for name, difference in metadata.differences.items():
        say(f"{name}: at most {difference:.1e} from torch\n")
    call = "match" if loaded.takes("match") else "locate"
    say(f'next: python run.py predict {call} --model {out} --image IMAGE --text "a dog"\n')
    return 0
