"""Effect of newer components on the demo: ``python -m benchmarks.ingredients``, after ``make scenes``."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.sweep import sweep
from launch.placement import Placement
from tools.reproduce.runs import Seeds
from utils.commands import call

SCENES = Path("data/scenes")
WIDE = Path("data/scenes_wide")
BATCH = 64
"""Number of image-text pairs in a step of the demo on two processes, from which we compute the sigmoid loss's initial bias."""


def modern_bert(folder: Path) -> Path:
    """Writes a folder with the demo's tokenizer and a ModernBERT of the same size as the demo's text encoder. Its gated
    feed-forward layer has three matrices instead of two, and therefore two thirds of the width."""
    from transformers import ModernBertConfig

    shutil.copytree(SCENES / "tokenizer", folder, dirs_exist_ok=True)
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    special: dict[str, Any] = {f"{name}_token_id": words[f"[{name.upper()}]"] for name in ("pad", "cls", "sep")}
    special |= {"bos_token_id": special["cls_token_id"], "eos_token_id": special["sep_token_id"]}
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 344,
    }
    config = ModernBertConfig(
        vocab_size=len(words), max_position_embeddings=64, initializer_range=0.08, **sizes, **special
    )
    config.save_pretrained(str(folder))
    return folder


def square_scene_variants(folder: Path) -> dict[str, list[str]]:
    """Returns the variants on the demo's own scenes."""
    encoder = modern_bert(folder / "modernbert")
    fusion = "{layers: 2, width: 128, heads: 4, intermediate: 512}"
    return {
        "the demo": [],
        "sigmoid loss": [f"model.contrastive={{loss: sigmoid, bias: {-math.log(BATCH):.2f}}}"],
        "ModernBERT": [f"model.text.encoder={encoder}", "model.text.arch=null", f"model.fusion={fusion}"],
    }


def wide_scene_variants() -> dict[str, list[str]]:
    """Returns the variants on scenes of 96 x 64 pixels. Draws the scenes if they do not exist."""
    if not (WIDE / "test.jsonl").is_file():
        subprocess.run(
            [sys.executable, "-m", "demo.scenes", "--out", str(WIDE), "--seed", "0", "--size", "96x64"], check=True
        )
    files = f"[{WIDE}/train.jsonl]"
    shared = [
        f"model.text.encoder={WIDE}/tokenizer",
        f"data.images.files={files}",
        f"data.regions.files={files}",
        f"evaluation.files=[{WIDE}/test.jsonl]",
    ]
    squeezed = [*shared, "data.images.augment.ratio=[1.5, 1.5]"]
    return {
        "squeezed to 64 x 64": squeezed,
        "squeezed to 80 x 80": [*squeezed, "model.vision.image_size=80"],
        "64 high, 96 wide": [*shared, "model.vision.image_size=[64, 96]"],
    }


def run_sweep(variants: Mapping[str, Sequence[str]], steps: int, seeds: Seeds, folder: Path) -> int:
    """Runs the missing runs of the variants and prints their table. Returns the exit status."""
    quoted = {name: " ".join(f"'{override}'" for override in overrides) for name, overrides in variants.items()}
    return sweep(
        f"train.steps={steps}",
        "model.vision.stem=linear",  # docs/ablations.md was measured before the demo had a stem of convolutions
        config="configs/demo/pretrain.yaml",
        variant=tuple(f"{name}: {words}" for name, words in quoted.items()),
        seeds=seeds,
        output=folder,
        placement=Placement(cpu=2),
    )


def main(*, steps: int = 300, seeds: Seeds = (0, 1, 2), output: Path = Path("runs/ingredients")) -> int:
    """Effect of newer components on the demo; run make scenes first.

    The demo is pre-trained for 300 steps: unchanged, with the sigmoid loss, and with a ModernBERT text encoder of the same size.
    It is then pre-trained on scenes of 96 x 64 pixels, which are squeezed into squares or keep their aspect ratio. run.py sweep
    starts the runs and prints both tables; docs/ablations.md has the results.

    Args:
        steps: number of steps per run.
        seeds: seeds of the runs.
        output: folder of the runs.

    Examples:
        python -m benchmarks.ingredients
    """
    output.mkdir(parents=True, exist_ok=True)
    status = run_sweep(square_scene_variants(output), steps, seeds, output / "square")
    return status | run_sweep(wide_scene_variants(), steps, seeds, output / "wide")


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.ingredients"))
