"""The data sets that ``run.py prepare`` knows."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from dataset.prepare.declarations import DataSet

MODULES = (
    "coco",
    "visual_genome",
    "web",
    "refcoco",
    "gqa",
    "flickr30k_entities",
    "objects365",
    "openimages",
    "v3det",
    "laion",
    "videos",
    "multi30k",
    "multilingual_coco",
    "wit",
    "wikimatrix",
    "odvg",
    "instances",
    "grit",
    "finehard",
    "grefcoco",
    "ref_l4",
    "blip3_grounding",
    "gbc",
    "pixelprose",
    "datacomp",
)
"""The modules of :mod:`dataset.prepare.sets` in the order in which data sets are listed. Each declares one or more data sets."""

READERS = {
    "4m": "configs/pretrain/{base,large}_4m.yaml",
    "1b": "configs/pretrain/{base,large}_1b.yaml",
    "videos": "configs/pretrain/{base,large}_1b_stage2.yaml",
}
"""The configs that read each group of data sets. A config also reads the data sets of all groups before its own."""


def _declared() -> Iterator[DataSet]:
    for module in MODULES:
        values = vars(import_module(f"dataset.prepare.sets.{module}")).values()
        yield from (value for value in values if isinstance(value, DataSet))


SETS = {data_set.name: data_set for data_set in _declared()}
"""Data sets by name."""

GROUPS = {group: tuple(name for name, data_set in SETS.items() if data_set.group == group) for group in READERS}
"""Names of the data sets in each group."""


def users_of(option: str) -> list[str]:
    """Returns the names of the data sets that use an option (:attr:`~dataset.prepare.declarations.DataSet.options`)."""
    return [name for name, data_set in SETS.items() if option in data_set.options]


def listing() -> str:
    """Returns the files, licence, size and records of each data set, and the configs that read it, for ``--list``."""
    lines = ["Licences are as stated on the data sets' own pages; none was verified here.", ""]
    for name, data_set in SETS.items():
        rows = [("from", data_set.home), ("licence", data_set.licence)]
        rows += _labelled("files", [f"{files}: {what}" for files, what in data_set.files.items()])
        rows += [("size", official_sizes(data_set) or "not known")]
        rows += _labelled("makes", [f"{folder}/: {content}" for folder, content in data_set.folders])
        readers = READERS.get(data_set.group, data_set.read_by)
        rows += [("read by", readers or "no config here; add its folder to data.images.files or data.regions.files")]
        lines += [f"{name}: {data_set.title}", *(f"  {label:9} {text}" for label, text in rows), ""]
    lines += [f"{group}: {', '.join(names)}" for group, names in GROUPS.items()]
    return "\n".join(lines) + "\n"


def _labelled(label: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(label if not index else "", text) for index, text in enumerate(texts)]


def official_sizes(data_set: DataSet) -> str:
    """Returns the official counts of a data set as a text, such as "123,287 images"; "" if none is known."""
    return ", ".join(f"{number:,} {unit}" for unit, number in data_set.sizes.items())
