"""Configurations and weights of Hugging Face models, by name or folder. Code in a folder is never run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from models.config import MAX_BLOCKS, MAX_HEADS, MAX_ROWS, MAX_WIDTH
from utils.errors import UserError
from utils.files import expanded, parse_json
from utils.hub import local_folder

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "*.safetensors", "pytorch_model.bin")

_LIMITS = {
    "num_hidden_layers": MAX_BLOCKS,
    "num_attention_heads": MAX_HEADS,
    "hidden_size": MAX_WIDTH,
    "intermediate_size": MAX_WIDTH,
    "vocab_size": MAX_ROWS,
    "max_position_embeddings": MAX_ROWS,
}
"""Maximum sizes in a configuration. Without them, building a model from a damaged file could take hours."""


def part_config(name: str, part: Literal["text", "vision"], key: str, extra_files: Sequence[str] = ()) -> Any:
    """Returns the configuration of an encoder, which may be part of a vision-language model.

    Args:
        name: a name on the Hub, or a folder.
        part: name of the encoder in a vision-language model.
        key: config key that contains the name, for error messages.
        extra_files: additional files to download if they exist.

    Raises:
        UserError: if the configuration does not exist, or if a size in it is implausibly large.
    """
    from transformers import AutoConfig

    folder = local_folder(name, (CONFIG,), key, extra_files=extra_files)
    try:
        found: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name} has no usable configuration: {_reason(error)}",
            where=key,
            remedy="name a folder with the config.json of a model, or a model on the Hub",
        ) from None
    found = getattr(found, f"{part}_config", found)
    for size, limit in _LIMITS.items():
        value = getattr(found, size, None)
        if isinstance(value, int) and value > limit:
            raise UserError(
                f"{size} = {value:,} in its config.json is more than {limit:,}",
                where=name,
                remedy="is the file damaged?",
            )
    return found


def type_of_folder(folder: str) -> str | None:
    """Returns the type of the model in a folder, such as "bert"; None if ``folder`` does not contain a model."""
    try:
        content = parse_json((expanded(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = content.get("model_type") if isinstance(content, dict) else None
    return found if isinstance(found, str) else None


def model_class(hub_config: Any) -> Any:
    """Returns the class in transformers for an encoder, given its configuration.

    Raises:
        UserError: if transformers has no such encoder.
    """
    import transformers

    mapped = transformers.MODEL_MAPPING.get(type(hub_config), None)
    if mapped is None:  # text encoders of vision-language models have classes, but no entry in the mapping
        mapped = getattr(transformers, f"{type(hub_config).__name__.removesuffix('Config')}Model", None)
    if mapped is None:
        raise UserError(f"transformers has no encoder for {hub_config.model_type!r}", remedy="choose another model")
    return mapped[0] if isinstance(mapped, tuple) else mapped


def part_weights(name: str, hub_config: Any, key: str) -> dict[str, Tensor]:
    """Returns the weights of an encoder, keyed by the parameter names in transformers.

    Args:
        name: a name on the Hub, or a folder; the weights come from the Hub cache, or are downloaded.
        hub_config: the configuration of the encoder.
        key: config key that contains the name, for error messages.

    Raises:
        UserError: if the weights do not exist, or are not in the cache and cannot be downloaded.
    """
    folder: Path = local_folder(name, WEIGHTS, key, extra_files=("*.json",))
    try:
        with _quiet():
            model, info = model_class(hub_config).from_pretrained(
                str(folder), config=hub_config, trust_remote_code=False, weights_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} has no usable weights: {_reason(error)}", where=key) from None
    random = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    return {name: weight for name, weight in model.state_dict().items() if name not in random}


@contextmanager
def _quiet() -> Iterator[None]:
    """A context that silences transformers' progress bars and tables of unused weights. Our load report lists these weights."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def set_gradient_checkpointing(model: Any, enabled: bool, part: str) -> None:
    """Turns gradient checkpointing of a model's blocks on or off.

    Raises:
        UserError: if the model does not support gradient checkpointing. The message suggests removing ``part`` from the config
            key ``train.recompute``.
    """
    if not model.supports_gradient_checkpointing:
        if enabled:
            raise UserError(
                f"{type(model).__name__} does not support gradient checkpointing",
                where="train.recompute",
                remedy=f"remove `{part}`",
            )
        return
    # Only newer versions of transformers call this activation checkpointing.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enabled:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


def longest_module_list(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, which are its longest list of modules; empty if the model has no list of modules."""
    lists = [list(each) for each in model.modules() if isinstance(each, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "its config.json asks to run code from the folder, which we never do"
    return str(error).split("\n")[0]
