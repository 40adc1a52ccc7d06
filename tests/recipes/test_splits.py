"""Every shipped config trains, validates and tests on the splits that its keys promise: ``testB`` reads testB, and nothing trains
on val or test.

The rules look at names only, so they hold for all configs, including our own, which the oracle (``oracle.py``) does not cover.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.mutations import OTHER_NAMES
from tests.recipes.test_configs import RUNS, load

SPLIT = re.compile(r"(?<![A-Za-z])(train|restval|valid|val|dev|testdev|testA|testB|test)(?![A-Za-z])")
SAME = {"restval": "train", "valid": "val", "dev": "val", "testdev": "test"}
"""Official names of splits that have another role: xGQA's test questions are in GQA's testdev split."""
OTHERS = {"restval": "test", "valid": "train", "dev": "test1", "testdev": "val"}
FILES = ("annotations", "questions", "listed", "files", "region_files")
"""Keys of files that contain a single split."""
NOT_DATA = re.compile(r"reviewed|\d+k")
"""Words in the name of a test split that do not belong to the name of its data set."""

Section = Mapping[str, Any]


def split_of(text: str) -> set[str]:
    """The splits that a text names, such as {"test"} for "test_1k.jsonl"."""
    return {SAME.get(name, name) for name in SPLIT.findall(text)}


def files_of(section: Section) -> list[str]:
    return [name for key in FILES for name in _listed(section.get(key))]


def splits_of(section: Section) -> set[str]:
    """The splits that a section names, in its list of splits and in the names of its files."""
    texts = [*(section.get("splits") or ()), *(Path(name).name for name in files_of(section))]
    return {split for text in texts for split in split_of(text)}


def training_in(data: Section) -> Iterator[tuple[str, Section]]:
    for key, value in data.items():
        for index, section in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(section, Mapping) and (files_of(section) or section.get("refs")):
                yield f"data.{key}.{index}" if isinstance(value, list) else f"data.{key}", section
                if section.get("clean"):
                    yield f"data.{key}.clean", section["clean"]


def problems(config: Section) -> list[str]:
    """One line for each key that reads another split than it promises."""
    evaluation = config["evaluation"]
    found, validation = [], evaluation.get("validation")
    for key, section in training_in(config["data"]):
        if not splits_of(section) <= {"train"} and not (validation and are_disjoint(section, validation)):
            found.append(f"{key} trains on {splits_of(section)}")
    if validation and splits_of(validation) != {"val"}:
        found.append(f"evaluation.validation is {splits_of(validation)}")
    for key in ("files", "region_files"):
        for name in _listed(evaluation.get(key)):
            if split_of(Path(name).name) not in ({"val"}, {"test"}):
                found.append(f"evaluation.{key} reads {name}")
    for key, section in (evaluation.get("test") or {}).items():
        found += [f"evaluation.test.{key} {problem}" for problem in problems_of_test(key, section, validation)]
    sections = [*dict(training_in(config["data"])).values(), *(evaluation.get("test") or {}).values(), validation or {}]
    return [*found, *(problem for section in sections for problem in problems_of_refs(section))]


def are_disjoint(section: Section, validation: Section) -> bool:
    """True if both read the same file, and no image is in both (as for VQA v2, which trains on 95% of val)."""
    same = all(section.get(key) == validation.get(key) for key in ("questions", "annotations"))
    (low, high), (first, last) = (each.get("image_share") or (0, 1) for each in (section, validation))
    return same and (high <= first or last <= low)


def problems_of_test(key: str, section: Section, validation: Section | None) -> Iterator[str]:
    if key == "held-out":  # the held-out part of the training data that also selects the weights
        if section != validation:
            yield "is not the validation split"
        return
    files = [*files_of(section), *_listed(section.get("refs")), *_listed(section.get("instances"))]
    if re.fullmatch("[a-z]{2}", key):
        names = [section.get("language"), *re.findall("[A-Za-z0-9]+", " ".join(files))]
        if key not in names and (key != "en" or "nlvr2" not in names):  # NLVR2 is in English only
            yield f"is in another language: {files}"
    else:
        data = "_".join(word for word in key.split("_") if not split_of(word) and not NOT_DATA.fullmatch(word))
        if any(data and not re.search(rf"(?<![\w+]){re.escape(data)}(?![\w+])", spaced(name)) for name in files):
            yield f"reads another data set: {files}"
    wanted = split_of(key) or {"test"}
    if splits_of(section) != wanted and not any("marvl-" in name for name in files):  # MaRVL consists of a single split
        yield f"reads {splits_of(section) or 'no named split'}"


def spaced(path: str) -> str:
    """The path without the split in its name: "test_emoji_google.jsonl" becomes " emoji_google.jsonl"."""
    return re.sub(rf"_?{SPLIT.pattern}_?", " ", path)


def problems_of_refs(section: Section) -> Iterator[str]:
    """The official files of RefCOCO and its relatives: the author of the splits, and the folder of both files."""
    if section.get("refs"):
        refs, instances = Path(section["refs"]), Path(section["instances"])
        official = {"refcocog": ("umd", ".p"), "grefcoco": ("unc", ".json")}.get(refs.parent.name, ("unc", ".p"))
        if refs.parent != instances.parent or (refs.stem[-4:-1], refs.suffix) != official:
            yield f"{refs} does not belong to {instances}"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def resolved(path: Path) -> dict[str, Any]:
    return load(path).model_dump(mode="json")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_reads_the_splits_that_its_keys_name(path):
    assert problems(resolved(path)) == []


def mutated(config: Section) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies of a config in which a single value names another split."""

    def leaves(node: Any, key: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for part, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            if isinstance(value, Mapping | list):
                yield from leaves(value, (*key, part))
            elif isinstance(value, str) and {*key, part} & {*FILES, "splits"}:
                yield (*key, part)

    for key in leaves({name: config[name] for name in ("data", "evaluation")}, ()):
        changed: Any = copy.deepcopy(config)
        node = changed
        for part in key[:-1]:
            node = node[part]
        folder, _, name = node[key[-1]].rpartition("/")
        other = SPLIT.sub(lambda found: (OTHER_NAMES | OTHERS)[found[0]], name)
        if other != name:
            node[key[-1]] = f"{folder}/{other}" if folder else other
            yield f"{'.'.join(map(str, key))}={other}", changed


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_name_of_another_split_is_noticed(path):
    """Pre-training may be evaluated on val as well as on test; and files that contain several splits name none."""
    missed = [change for change, changed in mutated(resolved(path)) if not problems(changed)]
    assert [change for change in missed if not re.match(r"evaluation\.(region_)?files", change)] == []


def test_the_data_set_of_a_key_is_checked():
    path = next(path for path in RUNS if path.stem == "grounding_refcoco_family")
    changes = [
        ("refcoco_testA", "refs", "data/refcoco+/refs(unc).p"),
        ("refcoco+_testB", "instances", "data/refcoco/instances.json"),
        ("refcocog_val", "refs", "data/refcocog/refs(google).p"),
        ("grefcoco_val", "refs", "data/refcoco/refs(unc).p"),
        ("refcoco+_val_reviewed", "annotations", "data/ref_l4/refcoco_val.jsonl"),
        ("refcoco_testB_reviewed", "annotations", "data/ref_l4/refcocog_testB.jsonl"),
    ]
    for name, key, value in changes:
        config = resolved(path)
        assert config["evaluation"]["test"][name][key] != value
        config["evaluation"]["test"][name][key] = value
        assert problems(config), (name, key)
