"""Converts a config of the authors' code with the table :data:`~tools.migrate.keys.KEYS`, and writes our config, the records
converted from lists, and a report that says what happened to each key."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from models.checkpoints.recognise import recognise
from tasks import ROOT
from tasks.kinds import find_task
from tools.checkpoint.outline import read_outline, weights_at
from tools.migrate.keys import ENCODERS, KEYS, REQUIRED, UNSET, Key, needs, size_of
from tools.migrate.source import SEPARATE, VISION_JSON, Source, read_source
from utils.config import bind
from utils.config_files import Locations, read_config, shown_value, unknown_key
from utils.errors import UserError
from utils.files import new_folder, write_text

CONFIG, TABLE = "config.yaml", "migration.txt"
"""Files in the output folder."""
WIDTH = 120
SECTIONS = ("task", "seed", "model", "init", "loss", "data", "optim", "schedule", "train", "evaluation")
"""Order of the sections in the config."""

PRESETS = {
    "pretrain": "pretrain_1b_stage2",
    "retrieval": "retrieval",
    "nlvr": "nlvr",
    "vqa": "vqa",
    "video_qa": "video_qa",
    "grounding": "refcoco_plus",
    "captioning": "captioning",
}
"""For each task, the preset with the settings that are hard-coded in the authors' code. For pre-training, this is the preset with
all streams of English pre-training."""
SEPARATE_PRESETS = {"pretrain": "pretrain_multilingual"}
"""Presets for models with separate encoders for text and fusion, if they differ."""
OF_PRESETS = (
    *(
        "data.train",
        "data.images.files",
        "data.images.clean",
        "data.regions.files",
        "data.videos.files",
        "data.videos.clean",
    ),
    *("data.translations.files", "evaluation.validation", "evaluation.test", "evaluation.files", "evaluation.answers"),
    *("evaluation.published", "train.steps", "train.global_batch", "model.vision.video", "init"),
)
"""Sections of the presets that are specific to a run: its data, its length and its weights."""


@dataclass(frozen=True)
class Line:
    """A line of the report.

    Attributes:
        kind: one of :data:`KINDS`.
        authors_key: the authors' key.
        value: the authors' value.
        our_key: our key, or "" without a counterpart.
        becomes: our value, or :data:`~tools.migrate.keys.UNSET` if another line shows the value.
        note: the difference, or the reason for a missing counterpart.
    """

    kind: str
    authors_key: str
    value: Any
    our_key: str = ""
    becomes: Any = UNSET
    note: str = ""

    def __str__(self) -> str:
        left, right = f"{self.authors_key} = {_shown(self.value)}", self.our_key
        if self.becomes is not UNSET and not _has_sections(self.becomes):
            right = f"{self.our_key} = {_shown(self.becomes)}"
        text = f"{left}  ->  {right}" if right else left
        wrapped = [
            *textwrap.wrap(text, WIDTH - 2, subsequent_indent="    ", break_on_hyphens=False),
            *textwrap.wrap(self.note, WIDTH - 6),
        ]
        count = len(wrapped) - len(textwrap.wrap(self.note, WIDTH - 6))
        return "\n".join(f"{'  ' if index < count else '      '}{line}" for index, line in enumerate(wrapped))


KINDS = {
    "same": "has the same meaning",
    "changed": "has a different name, format or meaning",
    "always": "requests what our code always does",
    "none": "has no counterpart",
    "unknown": "is unknown, and has no effect",
}
"""Titles of the parts of the table."""


@dataclass(frozen=True)
class Migrated:
    """A converted config: its values, the origin of each value, and the lines of the report."""

    values: dict[str, Any]
    origins: Mapping[str, str]
    lines: Sequence[Line]


def migrate(
    path: Path,
    out: Path,
    overrides: tuple[str, ...] = (),
    *,
    task: str | None = None,
    root: Path = Path("."),
    checkpoint: str | None = None,
    gpus: int | None = None,
) -> str:
    """Converts a config and writes the result to the folder ``out``. Returns the table.

    Args:
        path: a YAML file of the authors' code.
        out: a new folder.
        overrides: ``key=value`` arguments with the authors' keys.
        task: our name of the task; if None, the task is recognised from the config.
        root: folder that relative paths in the config are relative to.
        checkpoint: weights to start from.
        gpus: total number of GPUs of the run.

    Raises:
        UserError: if a file cannot be read, or the config lacks a key or has a value of the wrong type.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("already exists", where=f"--out {out}", remedy="use a new folder")
    weights = None if checkpoint is None else _describe(checkpoint)
    with new_folder(out) as work:
        source = read_source(path, overrides, task, root, out, work, gpus=gpus, checkpoint=checkpoint)
        migrated = convert(source)
        table = "".join(f"{line}\n" for line in _table(source, migrated, weights))
        write_text(work / CONFIG, _yaml(source, migrated))
        write_text(work / TABLE, table)
    return table


def convert(source: Source) -> Migrated:
    """Returns our values for a config, validated by the schema of its task.

    Raises:
        UserError: if a key is missing or a value is invalid.
    """
    values, origins, lines = _preset(source), dict[str, str](), list[Line]()
    rows = [key for key in KEYS if key.is_for(source)]
    missing: list[str] = []
    for key in rows:
        get = source.values.get if VISION_JSON in key.authors_key else source.get
        value = get(key.authors_key, UNSET)
        lacking = needs(key, source)
        if lacking is not None:
            lines += (
                [] if value is UNSET else [Line("none", key.authors_key, value, note=f"the config has no {lacking}")]
            )
        elif value is UNSET:
            missing += [f"{key.authors_key} ({key.our_key})"] if key.default is REQUIRED else []
            if key.default not in (REQUIRED, UNSET):
                _put(values, key.our_key, key.default)
        elif not key.sets:
            lines.append(_not_set(key, value))
        else:
            our_value = key.read(value, key.authors_key, source)
            _put(values, key.our_key, our_value)
            origins[key.our_key] = key.authors_key
            is_same = not key.note and _equal(our_value, value)
            kind = "same" if is_same else "changed"
            lines.append(Line(kind, key.authors_key, value, key.our_key, our_value, key.note))
    if missing:
        listed = ", ".join(dict.fromkeys(missing))
        raise UserError(
            f"lacks {listed}, which the authors' script also requires",
            where=source.path,
            remedy="add them, or pass KEY=VALUE after --out",
        )
    if source.checkpoint is not None:
        _put(values, "init.checkpoint", source.checkpoint)
    if source.gpus is not None:
        _put(values, "train.global_batch", _global_batch(values, source))
    locations: Locations = {
        tuple(our_key.split(".")): f"{source.place(key)} ({key})" for our_key, key in origins.items()
    }
    bind(values, find_task(source.task).config_class(), locations, str(source.path))
    return Migrated(values, origins, [*_effective(lines, origins), *_unknown(source, rows)])


def _effective(lines: Sequence[Line], origins: Mapping[str, str]) -> list[Line]:
    """Drops lines whose value was replaced by another key, unless a line is the only line for its key."""
    elsewhere = {line.authors_key for line in lines if line.our_key}
    lines = [line for line in lines if line.kind != "none" or line.authors_key not in elsewhere]
    by_key = Counter(line.authors_key for line in lines)
    replaced = [
        line
        for line in lines
        if by_key[line.authors_key] > 1 and origins.get(line.our_key, line.authors_key) != line.authors_key
    ]
    return [line for line in lines if line not in replaced]


def _preset(source: Source) -> dict[str, Any]:
    """Returns the settings that are hard-coded in the authors' code, and the sizes of the encoders."""
    folder = ROOT / "configs" / "presets"
    names = {**PRESETS, **(SEPARATE_PRESETS if source.layout == SEPARATE else {})}
    values = read_config(folder / f"{names[source.task]}.yaml").values
    for key in OF_PRESETS:
        _remove(values, key)
    if source.task == "pretrain":
        values["evaluation"] = None
        for stream, files in (
            ("images", "train_file"),
            ("regions", "train_file_regions"),
            ("videos", "train_file_videos"),
        ):
            if not source.get(files):
                values["data"].pop(stream, None)
    size = size_of(source.get("vision_config"), "vision_config", source)
    text = _preset_of_encoder("text_encoder", source)
    fusion = _preset_of_encoder("cross_encoder", source) if source.layout == SEPARATE else text
    for part, preset in (("vision", size), ("text", text), ("fusion", fusion)):
        sizes = read_config(folder / f"{preset}.yaml").values["model"][part]
        values.setdefault("model", {})[part] = {**sizes, **values.get("model", {}).get(part, {})}
    return values


def _preset_of_encoder(key: str, source: Source) -> str:
    name = PurePath(str(source.get(key))).name
    if name not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UserError(
            f"{key} = {shown_value(source.get(key))}: only the sizes of {known} are known",
            where=source.place(key),
            remedy="start from a config in configs/, and set model.text.encoder (docs/encoders.md)",
        )
    return ENCODERS[name]


def _global_batch(values: Mapping[str, Any], source: Source) -> Any:
    """Returns the number of examples per step over all GPUs, or None if it is unknown."""
    data = values["data"]
    batch = data["images"]["batch_size"] if source.task == "pretrain" and "images" in data else data.get("batch_size")
    key = "accelerator.GRAD_ACCUMULATE_STEPS" if source.task == "pretrain" else "accumulate_steps"
    steps = source.get(key, 1)
    return batch * steps * source.gpus if isinstance(batch, int) and isinstance(steps, int) and source.gpus else None


def _not_set(key: Key, value: Any) -> Line:
    """Returns the line for a key that does not set any of our values."""
    if key.our_key:
        return Line("changed", key.authors_key, value, key.our_key, note=key.note)
    if key.only is UNSET:
        return Line("none", key.authors_key, value, note=key.note)
    if _equal(value, key.only):
        return Line("always", key.authors_key, value, note=key.note)
    return Line("none", key.authors_key, value, note=f"always {_shown(key.only)} in our code: {key.note}")


def _unknown(source: Source, rows: Sequence[Key]) -> Iterator[Line]:
    """Yields a line for each value that no row of the table covers."""
    known = {key.authors_key for key in rows}
    elsewhere = {key.authors_key for key in KEYS}
    for path, value in _leaves(source.values, ()):
        names = [".".join(path[:end]) for end in range(1, len(path) + 1)]
        if known.intersection(names):
            continue
        if elsewhere.intersection(names):
            yield Line("none", names[-1], value, note=f"not used by the authors' script for {source.task}")
        else:
            hint = unknown_key(names[-1], source.place(names[-1]), sorted(known)).remedy
            yield Line("unknown", names[-1], value, note=hint if "mean" in hint else "")


def _leaves(node: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _equal(ours: Any, theirs: Any) -> bool:
    return isinstance(ours, bool) == isinstance(theirs, bool) and bool(ours == theirs)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key. A mapping is merged with existing values."""
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    if isinstance(value, dict) and isinstance(values.get(last), dict):
        for name, each in value.items():
            _put(values[last], name, each)
    else:
        values[last] = value


def _remove(values: dict[str, Any], key: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.get(section, {})
    values.pop(last, None)


def _describe(checkpoint: str) -> str:
    """Describes the weights. Code in the file is never executed.

    Raises:
        UserError: if the file is missing or is not a weight file.
    """
    file, _ = weights_at(checkpoint)
    found = recognise(read_outline(file).shapes)
    kind = found.kind or "not recognised; python run.py checkpoint inspect shows details"
    return f"{checkpoint}: {kind}" + (f", {found.size}" if found.size else "")


def _table(source: Source, migrated: Migrated, weights: str | None) -> Iterator[str]:
    """Yields the lines of the table."""
    yield f"{source.path}: task {source.task}"
    for kind, title in KINDS.items():
        lines = [line for line in migrated.lines if line.kind == kind]
        if lines:
            yield f"\n{title} ({len(lines)})"
        yield from map(str, lines)
    if source.task != "pretrain":
        yield "\nnot in the authors' configs"
        yield f"  train.precision = {migrated.values['train'].get('precision', 'bf16')}"
        yield "      the authors fine-tune in fp32; set train.precision=fp32 to do the same"
    if source.files:
        yield "\nfiles"
        for path, did in dict.fromkeys(source.files):
            yield from textwrap.wrap(
                f"{path}: {did}", WIDTH, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False
            )
    yield "\nweights"
    if weights is not None:
        yield f"  init.checkpoint = {weights}"
    elif source.task == "pretrain":
        yield "  init.vision and init.text; pass --checkpoint FILE.th to start from a whole model"
    else:
        yield "  none: the model starts from random weights; set init.checkpoint=FILE.th, which is read without conversion"
    yield f"\nnext: python run.py doctor --config {source.out / CONFIG}"


def _shown(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else shown_value(value)
    )


def _has_sections(value: Any) -> bool:
    """Returns True for a section or a list of sections."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))


def _yaml(source: Source, migrated: Migrated) -> str:
    """Returns our config as YAML. Comments name the authors' key that a value comes from."""
    yaml, stream = YAML(), StringIO()
    yaml.width = WIDTH
    yaml.representer.add_representer(
        type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    ordered = {name: migrated.values[name] for name in SECTIONS if name in migrated.values}
    document = _commented({**ordered, **migrated.values}, "", migrated.origins)
    document.yaml_set_start_comment(
        f"Converted from {source.path.name}. Comments name the keys in that file that set the values. The other "
        f"values are\nhard-coded in the authors' code, or our defaults, as in the presets in configs/. {TABLE} "
        f"reports on each key.\n  python run.py --config {source.out / CONFIG} --gpus {source.gpus or 8} --output "
        f"runs/{source.path.stem}"
    )
    yaml.dump(document, stream)
    return stream.getvalue()


def _commented(values: Mapping[str, Any], prefix: str, origins: Mapping[str, str]) -> CommentedMap:
    section = CommentedMap()
    for name, value in values.items():
        key = f"{prefix}{name}"
        section[name] = _commented(value, f"{key}.", origins) if isinstance(value, dict) and value else _sequence(value)
        if key in origins:
            comment = origins[key].replace(VISION_JSON, "vision_config: ")
            if isinstance(section[name], CommentedMap | CommentedSeq):
                section.yaml_set_comment_before_after_key(name, before=comment, indent=2 * key.count("."))
            else:
                section.yaml_add_eol_comment(comment, name)
    return section


def _sequence(value: Any) -> Any:
    """Returns a list of numbers in flow style, and any other value unchanged."""
    if not isinstance(value, list):
        return value
    sequence = CommentedSeq(value)
    if not any(isinstance(each, str | dict) for each in value):
        sequence.fa.set_flow_style()
    return sequence
