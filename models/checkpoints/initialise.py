"""Initialisation of models.

Pre-training starts from a BEiT-2 file and a BERT folder or name (section 4.2 of the paper). All other runs start from a
checkpoint, whose text encoder may be replaced (section 4.6 of the paper).
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from models.checkpoints.files import read_hub_weights, read_weights
from models.checkpoints.loading import BACKBONE, assign, load_weights
from models.checkpoints.rename import DROPPED, bert_to_ours
from models.checkpoints.report import LoadReport, by_module
from models.config import InitConfig
from models.core.backbones import pretrained_weights
from models.core.hub import part_weights, type_of_folder
from models.core.hub_text import BERT_FAMILY, HubTextEncoder, hub_config_of
from models.core.text import TextEncoder
from models.core.vision import FRAME_POSITIONS
from models.core.xvlm import XVLM
from utils.errors import UserError
from utils.events import LoadedWeights
from utils.files import expanded
from utils.inputs import remedy_of
from utils.printing import counted

IGNORED_MODULES = {
    "head": "classifier",
    "lm_head": "BEiT's own pre-training head",
    "mask_token": "BEiT's own pre-training input",
    "pooler": "BERT's pooler",
    "seq_relationship": "BERT's next-sentence head",
}
"""Modules of published BEiT and BERT files that X²-VLM does not have, with the reason that is reported."""
_SAME = {"model_type": "type", "hidden_size": "width", "num_hidden_layers": "depth", "vocab_size": "vocabulary"}
"""Settings in which a text encoder and its weights must be equal, with what they are called in messages."""
_TEXT_ALONE = ("text.",)
_TEXT_AND_ABOVE = ("text.", "fusion.", "word_head.")
WORDS = "text.embeddings.word_embeddings.weight"
"""Name of the word table of a text encoder that is built from our blocks."""
LAYER_SCALE = re.compile(r"\.(gamma(_[12])?|ls[12]\.\w+|layer_scale\d?\.\w+|lambda[12])$")
"""Suffixes of the names of LayerScale factors in timm and transformers."""
TIED_TO_EMBEDDING = re.compile(r"(cls\.predictions|lm_head)\.decoder\.(weight|bias)")


def initialise(model: XVLM, config: InitConfig) -> list[LoadReport]:
    """Loads the weights that ``config`` names. The reports say what was loaded, resized, copied or left fresh.

    Raises:
        UserError: if a file cannot be read or does not fit the model.
    """
    if config.checkpoint:
        replaced = config.new_text or config.text is not None
        report = load_weights(model, config.checkpoint, new_text=replaced)
        if not report.loaded:
            raise UserError(
                f"{config.checkpoint} contains no tensor of this model",
                where="init.checkpoint",
                remedy="use a checkpoint of X²-VLM or a run",
            )
        if config.text is None:
            return [report]
        text = init_text(model, _text_weights(model, config.text), config.text, alone=True)
        replacing = set(text.loaded)
        report.fresh = [name for name in report.fresh if name not in replacing]
        return [report, text]
    reports = []
    if config.vision:
        published = pretrained_weights(config.vision, "init.vision")
        if published is None and not expanded(config.vision).is_file():
            remedy = remedy_of(config.vision, ["init.vision"])
            raise UserError(f"{config.vision} does not exist", where="init.vision", remedy=remedy)
        report = init_vision(model, published or read_weights(config.vision), config.vision)
        if published is None:
            _require_same_blocks(report, model)
        else:
            _require_same_model(report, model)
        reports.append(report)
    if config.text:
        reports.append(init_text(model, _text_weights(model, config.text), config.text))
    return reports


def fresh_parameters(model: XVLM, reports: list[LoadReport]) -> set[str]:
    """The parameters that train at ``lr * lr_mult``: all parameters that a loaded file did not contain, and all randomly
    initialised heads.

    They include a table of frame positions of which the file fills only a part (as in the authors' code).

    An encoder for which no file was given starts from scratch on purpose, so it trains at ``lr``. Heads train at ``lr * lr_mult``
    even if the whole model starts from scratch (as in the authors' code).
    """
    loaded = {name for report in reports for name in (*report.loaded, *report.copied)}
    covered = {name for report in reports for name in report.fresh} - loaded
    covered |= {name for report in reports for name in report.partly}
    return covered | {name for name, _ in model.named_parameters() if name not in loaded and _is_head(name)}


def random_parameters(model: XVLM, reports: list[LoadReport]) -> list[str]:
    """The parameters that were not initialised from a file."""
    loaded = {name for report in reports for name in (*report.loaded, *report.copied)}
    return [name for name, _ in model.named_parameters() if name not in loaded]


def loaded_weights(model: XVLM, reports: list[LoadReport]) -> LoadedWeights:
    """Returns where the weights come from. The summary counts the parameters from each file and the random parameters in each
    module of the model. The details list the random parameters and what happened to the tensors of each file."""
    random = random_parameters(model, reports)
    counts = [
        f"{_parts(sorted(report.loaded))} from {report.source}{f' ({report.depth})' if report.depth else ''}"
        for report in reports
    ]
    lines = []
    if reports and reports[0].text_skipped:
        fusion = model.fusion.config
        sizes = f"width {fusion.width}, {fusion.heads} heads, intermediate {fusion.intermediate}, eps {fusion.eps:g}"
        lines.append("  the text encoder differs from the checkpoint's")
        lines.append(
            f"  the fusion encoder has {sizes}; if the checkpoint's fusion encoder has different values, set them in model.fusion"
        )
    partly = {name.split(".")[0] for name in {name for name, _ in model.named_parameters()} - set(random)}
    lines += [
        f"  random {part}.*" for part in dict.fromkeys(name.split(".")[0] for name in random) if part not in partly
    ]
    lines += [f"  random {name}" for name in by_module([name for name in random if name.split(".")[0] in partly])]
    lines += [f"  {line}" for report in reports for line in report.lines()]
    return LoadedWeights(sources="; ".join([*counts, f"{_parts(random)} randomly initialised"]), details=lines)


def _parts(names: Sequence[str]) -> str:
    """The number of parameter names in each top-level module of the model."""
    parts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{count} of {part}" for part, count in parts.items()) or "none"


def _is_head(name: str) -> bool:
    """True if a parameter belongs to a head. Frame positions count as a head, because published files have them outside the
    vision encoder."""
    return name == FRAME_POSITIONS or not name.startswith(("vision.", "text.", "fusion.", "word_head."))


def init_vision(model: XVLM, state: dict[str, Tensor], source: str) -> LoadReport:
    """Loads the weights of a backbone into the vision encoder."""
    report = LoadReport(source)
    kept: dict[str, Tensor] = {}
    parameters = model.state_dict()
    wrapper = f"{next(iter(state), '').partition('.')[0]}."
    if all(name.startswith(wrapper) and f"{BACKBONE}{name}" not in parameters for name in state):
        state = {
            name.removeprefix(wrapper): tensor for name, tensor in state.items()
        }  # of a module that has the backbone
    for name, tensor in state.items():
        why = IGNORED_MODULES.get(name.split(".")[0]) or DROPPED.get(name.rsplit(".", 1)[-1])
        if f"{BACKBONE}{name}" in parameters:
            why = None
        if why:
            report.dropped[name] = why
            continue
        for target in model.vision.vision_backbone.targets(name):
            kept[target] = tensor
            if target != name:
                report.copied[f"{BACKBONE}{target}"] = name
    assign(model, kept, report, lambda name: f"{BACKBONE}{name}")
    report.fresh = [name for name in report.fresh if name.startswith("vision.")]
    _drop_last_blocks(report, model)
    if not report.loaded:
        raise UserError(
            f"{source} contains no tensor of {model.config.vision.backbone}; its tensors are {_first(state)}",
            where="init.vision",
            remedy="use a file of this backbone, or set model.vision.backbone to the model that the file belongs to",
        )
    return report


def _first(state: Mapping[str, Tensor]) -> str:
    """Lists the first names of tensors in a file."""
    return ", ".join([*itertools.islice(state, 3), *(["…"] if len(state) > 3 else [])]) or "none"


def _backbone_blocks(model: XVLM) -> tuple[list[str], bool]:
    """Returns the names of the backbone's blocks, ending with a dot, and whether they form one list, unlike in a model with
    stages."""
    backbone = model.vision.vision_backbone
    names = {module: name for name, module in backbone.module.named_modules()}
    blocks = [f"{names[block]}." for block in backbone.blocks]
    return blocks, len({block.rsplit(".", 2)[0] for block in blocks}) == 1


def _drop_last_blocks(report: LoadReport, model: XVLM) -> None:
    """Drops the last blocks of the file if ``model.vision.depth`` is smaller than the depth of the file: the first blocks of an
    encoder are an encoder, too."""
    blocks, has_depth = _backbone_blocks(model)
    last = tuple(_surplus(blocks, report.unused))
    if has_depth and last:
        report.depth = f"the first {len(blocks)} of {len(blocks) + len(last)} blocks"
        report.dropped |= {name: f"not in {report.depth}" for name in report.unused if name.startswith(last)}
        report.unused = [name for name in report.unused if not name.startswith(last)]


def _require_same_blocks(report: LoadReport, model: XVLM) -> None:
    """Raises :class:`UserError` if a file lacks a block of the backbone, or has a block of a stage that the backbone lacks."""
    blocks, has_depth = _backbone_blocks(model)
    missing = [block for block in blocks if not any(name.startswith(f"{BACKBONE}{block}") for name in report.loaded)]
    surplus = _surplus(blocks, report.unused)
    if missing or surplus:
        what = f"lacks {len(missing)} of" if missing else f"has {len(surplus)} more than"
        name = model.vision.vision_backbone.name
        raise UserError(
            f"{report.source} {what} the {len(blocks)} blocks of {name} ({(missing or surplus)[0]}*)",
            where="init.vision",
            remedy=f"{'set model.vision.depth to the depth of the file, or' if has_depth else 'set'} model.vision.backbone to "
            "its model, or name another file",
        )


def _require_whole_text(report: LoadReport, blocks: Sequence[str] = (), prefix: str = "") -> None:
    """Raises :class:`UserError` if a file lacks a parameter of the text encoder, or has a layer that the encoder lacks.

    Args:
        report: what was loaded.
        blocks: names of the encoder's layers in the file, ending with a dot.
        prefix: beginning of the names in the file that may be missing.
    """
    missing = [name for name in report.fresh if name.startswith("text.") and not name.startswith("text.projection.")]
    surplus = _surplus(blocks, [name.removeprefix(prefix) for name in report.unused])
    if missing or surplus:
        what = f"has {counted(len(surplus), 'more layer', 'more layers')} than the text encoder ({', '.join(surplus[:1])}*)"
        if missing:
            what = f"lacks {counted(len(missing), 'parameter', 'parameters')} of the text encoder ({missing[0]}, …)"
        raise UserError(
            f"{report.source} {what}",
            where="init.text",
            remedy="name an encoder in model.text.encoder, and the weights of the same encoder in init.text",
        )


def _surplus(blocks: Sequence[str], unused: Sequence[str]) -> list[str]:
    """The names of the blocks in a file for which the model has none. ``blocks`` are the names of the model's blocks."""
    lists = {block.removesuffix(".").rpartition(".")[0] for block in blocks}
    of_blocks = re.compile(rf"(?:{'|'.join(map(re.escape, lists))})\.\d+\." if lists else r"(?!)")
    return list(dict.fromkeys(match[0] for name in unused if (match := of_blocks.match(name))))


def _require_same_model(report: LoadReport, model: XVLM) -> None:
    """Raises :class:`UserError` if weights from timm or transformers do not fit the backbone: a parameter is missing from the
    weights, or a block in the weights is missing from the model. Other tensors, such as those of a head, may remain unused."""
    missing = [name for name in report.fresh if name.startswith(BACKBONE)]
    surplus = [name for name in report.unused if re.search(r"\.\d+\.", name)]
    if missing and not surplus and all(LAYER_SCALE.search(name) for name in missing):
        raise UserError(
            f"{report.source} has no LayerScale ({missing[0]}, …), but model.vision.layer_scale is "
            f"{model.config.vision.layer_scale}",
            where="init.vision",
            remedy="set it to null",
        )
    if surplus and not missing and all(LAYER_SCALE.search(name) for name in surplus):
        raise UserError(
            f"{report.source} has LayerScale ({surplus[0]}, …), but model.vision.layer_scale is null",
            where="init.vision",
            remedy="set it to backbone",
        )
    if missing or surplus:
        what = f"lacks {len(missing)} of its parameters ({missing[0]}, …)" if missing else f"has more ({surplus[0]}, …)"
        raise UserError(
            f"{report.source} is a different model from model.vision.backbone, {model.config.vision.backbone}: "
            f"it {what}",
            where="init.vision",
            remedy="name the same model in both keys",
        )


def _text_weights(model: XVLM, source: str) -> dict[str, Tensor]:
    """The weights of a text encoder. Encoders from transformers are loaded by transformers, which also knows their older
    parameter names."""
    if isinstance(model.text, HubTextEncoder) and not expanded(source).is_file():
        config, found = copy.deepcopy(model.text.model.config), hub_config_of(source, "init.text")
        for name, what in _SAME.items():
            ours, theirs = getattr(config, name, None), getattr(found, name, None)
            if ours != theirs:
                raise UserError(
                    f"{source} has {what} {theirs}, but model.text.encoder has {what} {ours}",
                    where="init.text",
                    remedy="name the same encoder in both keys",
                )
        if model.config.text.max_positions is not None:  # transformers does not load a table of a different size
            config.max_position_embeddings = found.max_position_embeddings
        return part_weights(source, config, "init.text")
    if isinstance(model.text, TextEncoder) and (found_type := type_of_folder(source)) is not None:
        family = BERT_FAMILY.get(found_type)
        if family != model.text.arch.family:
            raise UserError(
                f"{source} is a {found_type}, but model.text is a {model.text.arch.family}",
                where="init.text",
                remedy=f"set model.text.arch=null and model.text.encoder={source}, or name other weights",
            )
    return read_hub_weights(source, "init.text")


def init_text(model: XVLM, state: dict[str, Tensor], source: str, *, alone: bool = False) -> LoadReport:
    """Loads BERT weights into the text encoder, and copies its last layers to the fusion layers, whose cross-attention keeps its
    random weights.

    With ``alone``, only the text encoder is loaded, because the fusion encoder and the word head come from a checkpoint.

    If the file has k times as many layers as the text encoder, every k-th layer is used. For example, layers 1, 3, … 23 reduce 24
    layers to 12, as the authors' code does for BERT large. The authors have not published how they made the 12-layer file for
    their `large` model.
    """
    report = LoadReport(source)
    if isinstance(model.text, HubTextEncoder):
        return _init_hub_text(model, model.text, state, report, alone)
    kept, file_layers = _bert_state(state, report)
    if alone:
        for name in [name for name in kept if not name.startswith("text.")]:
            report.dropped[name] = "kept from the checkpoint"
            del kept[name]
    text_layers, fusion_layers = len(model.text.encoder.layer), len(model.fusion.layer)
    if not file_layers:
        raise UserError(
            f"{source} contains no layer of a BERT or RoBERTa encoder; its tensors are {_first(state)}",
            where="init.text",
            remedy="name the weights of a text encoder; for another family, set model.text.arch=null",
        )
    if file_layers % text_layers:
        raise UserError(
            f"{source} has {file_layers} layers, which cannot be reduced to the {text_layers} of model.text",
            where="init.text",
            remedy=f"set model.text.arch.layers to {file_layers}, or name other weights",
        )
    words, table = kept.get(WORDS), model.text.word_embeddings
    if words is not None and words.shape[0] != table.shape[0]:
        raise UserError(
            f"{source} has {words.shape[0]:,} words, but the text encoder has {table.shape[0]:,}",
            where="init.text",
            remedy="name the tokenizer of these weights in model.text.encoder",
        )
    if fusion_layers > text_layers and not alone:
        raise UserError(
            f"the {fusion_layers} fusion layers cannot be copied from {text_layers} text layers", where="init.text"
        )
    step = file_layers // text_layers
    chosen: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        match = re.fullmatch(r"text\.encoder\.layer\.(\d+)\.(.*)", name)
        if not match:
            chosen[name] = tensor
            continue
        layer, suffix = int(match[1]), match[2]
        if (layer + 1) % step:
            report.dropped[name] = f"one layer in {step} is kept"
            continue
        target = (layer + 1) // step - 1
        chosen[f"text.encoder.layer.{target}.{suffix}"] = tensor
        if target >= text_layers - fusion_layers and not alone:
            copy = f"fusion.layer.{target - (text_layers - fusion_layers)}.{suffix}"
            chosen[copy] = tensor
            report.copied[copy] = f"text.encoder.layer.{target}.{suffix}"
    assign(model, chosen, report)
    report.fresh = [name for name in report.fresh if name.startswith(_TEXT_ALONE if alone else _TEXT_AND_ABOVE)]
    _require_whole_text(report)
    return report


def _init_hub_text(
    model: XVLM, text: HubTextEncoder, state: dict[str, Tensor], report: LoadReport, alone: bool
) -> LoadReport:
    """Loads a text encoder outside the BERT and RoBERTa families, whose file uses Hugging Face's names. The fusion encoder keeps
    its random weights."""
    prefix = f"{text.model.base_model_prefix}."
    assign(model, state, report, lambda name: f"text.model.{name.removeprefix(prefix)}")
    report.fresh = [name for name in report.fresh if name.startswith(_TEXT_ALONE if alone else _TEXT_AND_ABOVE)]
    if not report.loaded:
        raise UserError(
            f"{report.source} contains no tensor of {type(text.model).__name__}; its tensors are {_first(state)}",
            where="init.text",
            remedy="name the weights of the encoder in model.text.encoder",
        )
    names = {module: name for name, module in text.model.named_modules()}
    _require_whole_text(report, [f"{names[block]}." for block in text.blocks_to_shard], prefix)
    return report


def _bert_state(state: dict[str, Tensor], report: LoadReport) -> tuple[dict[str, Tensor], int]:
    """The tensors of a BERT file under our names, and its number of layers."""
    tensors: dict[str, Tensor] = {}
    layers = 0
    for name, tensor in state.items():
        modules = set(name.split(".")) - {"lm_head"}  # lm_head is RoBERTa's word head
        reason = next((reason for module, reason in IGNORED_MODULES.items() if module in modules), None)
        if name.rsplit(".", 1)[-1] in DROPPED:
            reason = DROPPED[name.rsplit(".", 1)[-1]]
        if TIED_TO_EMBEDDING.fullmatch(name):
            reason = "tied to the word embeddings"
        our_name = None if reason else bert_to_ours(name)
        if reason:
            report.dropped[name] = reason
        elif our_name is None:
            report.unused.append(name)
        else:
            tensors[our_name] = tensor
            match = re.match(r"text\.encoder\.layer\.(\d+)\.", our_name)
            layers = max(layers, int(match[1]) + 1) if match else layers
    return tensors, layers
