"""Reading weight files: safetensors, or PyTorch files without running code from their pickles."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import UserError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or PyTorch file by name; a nested ``model`` or ``module`` dictionary is opened.

    Raises:
        UserError: if the file is missing, damaged, or would need code to run.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Published checkpoints hold their command line beside the weights; an argparse namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: no weight file of torch or safetensors, or one that holds more than weights (no code in it is run)"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable weight file: {str(error).splitlines()[0]}") from None
    for key in ("model", "module", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no weights")
    return tensors


def read_hub_weights(source: str, key: str) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder or name; ``key`` is the config key that named it.

    Raises:
        UserError: if there is neither such a folder nor, on the hub or in its cache, such a model.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        return read_weights(folder)
    if folder.is_dir():
        for name in WEIGHT_FILES:
            if (folder / name).is_file():
                return read_weights(folder / name)
        raise UserError(f"{key}: {folder} holds neither {' nor '.join(WEIGHT_FILES)}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    for name in WEIGHT_FILES:
        try:
            return read_weights(hf_hub_download(source, name))
        except LocalEntryNotFoundError:
            break
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError):
            break
    raise UserError(
        f"{key}: {source!r} is no folder, and no weights of that name could be fetched from the Hugging Face hub"
    )
