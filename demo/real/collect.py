"""Collects the cut-outs and maps of each split, and skips those that would leak held-out names or pictures into training."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dataset.prepare.folders import SPLITS
from demo.cutouts import Cutout, UnusableCutoutError, read_cutout
from demo.emoji import Annotations
from demo.real.clipart import read_clipart
from demo.real.concepts import Concept, ConceptSplit, concept_of, leaks, parts_of
from demo.real.duplicates import Thumbnails, first_of_each, nearest_duplicates, thumbnail
from demo.real.emoji import STYLES, read_emoji, read_english
from demo.real.maps import Map, read_maps
from demo.stamps import find_stamps

CUTOUT_SOURCES = ("stamps", *STYLES, "clipart")
HELD_OUT = SPLITS[1:]

BySplit = dict[str, dict[str, list[Cutout]]]
"""Cut-outs by split and source."""


@dataclass
class Collection:
    """Cut-outs by split and source, maps by split, and the numbers of skipped items by source and reason."""

    cutouts: BySplit
    maps: dict[str, list[Map]]
    skipped: dict[str, Counter[str]]
    common: list[str] = field(default_factory=list)
    """Concepts that are in training although their hash would hold them out."""

    def training_texts(self) -> list[str]:
        """Returns all texts of training records."""
        texts = [text for members in self.cutouts["train"].values() for item in members for text in texts_of(item)]
        texts += [found.caption for found in self.maps["train"] if found.captioned]
        return texts + [division.name for found in self.maps["train"] for division in found.divisions]

    def held_out_names(self) -> list[str]:
        """Returns the names of all cut-outs, and of all map divisions, in val and test."""
        names = [item.captions["en"] for split in HELD_OUT for group in self.cutouts[split].values() for item in group]
        maps = [found for split in HELD_OUT for found in self.maps[split]]
        return names + [division.name for found in maps for division in found.divisions]


def collect(packages: Path) -> Collection:
    """Reads all sources and splits them by concept.

    Raises:
        UserError: if a package is missing or damaged.
    """
    share = share_folder_of(packages)
    annotations = read_english(packages)
    cutouts: dict[str, list[Cutout]] = {}
    skipped: dict[str, Counter[str]] = {}
    stamps, skipped["stamps"] = find_stamps(share("tuxpaint") / "tuxpaint/stamps")
    cutouts["stamps"] = [_in_english(stamp) for stamp in stamps]
    for source in STYLES:
        cutouts[source], skipped[source] = read_emoji(packages, source, annotations)
    english = english_words(annotations, cutouts["stamps"])
    cutouts["clipart"], skipped["clipart"] = read_clipart(share("openclipart"), english)
    maps, skipped["maps"] = read_maps(share("kgeography"))
    names = [cutout.captions["en"] for members in cutouts.values() for cutout in members]
    names += [found.caption for found in maps if not found.is_worldwide]
    split = ConceptSplit.of(map(concept_of, names))
    by_split = split_cutouts(cutouts, split, skipped)
    texts = [text for members in by_split["train"].values() for cutout in members for text in texts_of(cutout)]
    maps_by_split = split_maps(maps, split, texts, skipped["maps"])
    common = sorted(" ".join(concept) for concept in split.common)
    collection = Collection(by_split, maps_by_split, skipped, common)
    found = leaks(collection.training_texts(), collection.held_out_names())
    assert not found, f"held-out names in training texts: {found[:3]}"
    return collection


def share_folder_of(packages: Path) -> Callable[[str], Path]:
    """Returns a function that maps the name of a Debian package's folder to the ``share`` folder that contains it: the one
    unpacked in ``packages``, or the system's."""

    def share(name: str) -> Path:
        unpacked = packages / "usr/share"
        return unpacked if (unpacked / name).is_dir() else Path("/usr/share")

    return share


def _in_english(stamp: Cutout) -> Cutout:
    """Returns a stamp with only its English caption, and its concept as key."""
    caption = stamp.captions["en"]
    return Cutout(stamp.name, stamp.content, {"en": caption}, " ".join(concept_of(caption)))


def english_words(annotations: Annotations, stamps: Sequence[Cutout]) -> set[str]:
    """Returns the words, in the singular, in the names and keywords of emoji and in the captions of stamps."""
    texts = [text for name, keywords in annotations.values() for text in (name, *keywords)]
    texts += [stamp.captions["en"] for stamp in stamps]
    return {word for text in texts for word in concept_of(text)}


def texts_of(cutout: Cutout) -> list[str]:
    """Returns the texts of a cut-out that training chooses from: the name and, if there are keywords, the name followed by the
    keywords."""
    name = cutout.captions["en"]
    return [name, ", ".join([name.removesuffix("."), *cutout.keywords])] if cutout.keywords else [name]


def split_cutouts(
    cutouts: Mapping[str, Sequence[Cutout]], split: ConceptSplit, skipped: Mapping[str, Counter[str]]
) -> BySplit:
    """Groups cut-outs by split and source. Skips cut-outs that would leak a held-out concept into training, are repeated, or
    cannot be read.

    A held-out concept has one picture per source. Training texts do not contain held-out concepts, and training pictures have no
    near-duplicates among held-out pictures.
    """
    result: BySplit = {name: {source: [] for source in cutouts} for name in SPLITS}
    thumbnails: dict[int, np.ndarray] = {}
    for source, members in cutouts.items():
        seen: set[str] = set()
        for cutout in members:
            name = split.split(tuple(cutout.key.split()))
            if name != "train" and cutout.key in seen:
                skipped[source][f"same concept in {name}"] += 1
                continue
            if name == "train":
                if not split.may_train(cutout.captions["en"]):
                    skipped[source]["held-out concept in the name"] += 1
                    continue
                cutout = _with_harmless_keywords(cutout, split)
            try:
                thumbnails[id(cutout)] = thumbnail(read_cutout(cutout.content))
            except UnusableCutoutError as error:
                skipped[source][str(error)] += 1
                continue
            seen.add(cutout.key)
            result[name][source].append(cutout)
    _drop_near_duplicates(result, thumbnails, skipped)
    return result


def _with_harmless_keywords(cutout: Cutout, split: ConceptSplit) -> Cutout:
    """Removes keywords that would add a held-out concept to the text, alone or together with the words before them: "flower"
    after "magnolia white" if "white flower" is held out."""
    kept: tuple[str, ...] = ()
    for keyword in cutout.keywords:
        longer = replace(cutout, keywords=(*kept, keyword))
        if all(map(split.may_train, texts_of(longer))):
            kept = longer.keywords
    return replace(cutout, keywords=kept)


def _drop_near_duplicates(
    result: BySplit, thumbnails: Mapping[int, np.ndarray], skipped: Mapping[str, Counter[str]]
) -> None:
    """Drops near-duplicates.

    If two splits have near-duplicates, the picture in test is kept rather than in val, and in val rather than in train. Within a
    split and source, the first picture is kept. In train, only pictures with equal concepts are dropped, because icons with the
    same design may have different names.
    """
    taken = np.empty((0, 768), dtype=np.float32)
    for name in ("test", "val", "train"):
        for source, members in result[name].items():
            stack = _stack(members, thumbnails)
            indices = nearest_duplicates(stack, taken)
            for index in indices:
                skipped[source][f"near-duplicate of a held-out picture, in {name}"] += int(index >= 0)
            free = [cutout for cutout, index in zip(members, indices, strict=True) if index < 0]
            groups: dict[str, list[Cutout]] = defaultdict(list)
            for cutout in free:
                groups[cutout.key if name == "train" else ""].append(cutout)
            kept = {
                id(group[index])
                for group in groups.values()
                for index in first_of_each([thumbnails[id(cutout)] for cutout in group])
            }
            skipped[source][f"near-duplicate within {name}"] += len(free) - len(kept)
            result[name][source] = [cutout for cutout in free if id(cutout) in kept]
        if name != "train":
            held_out = [cutout for members in result[name].values() for cutout in members]
            taken = np.concatenate([taken, _stack(held_out, thumbnails)])


def _stack(members: Sequence[Cutout], thumbnails: Mapping[int, np.ndarray]) -> Thumbnails:
    return np.array([thumbnails[id(cutout)] for cutout in members], dtype=np.float32).reshape(len(members), 768)


def split_maps(
    maps: Sequence[Map], split: ConceptSplit, training_texts: Iterable[str], skipped: Counter[str]
) -> dict[str, list[Map]]:
    """Groups maps by the split of the concept "map of PLACE", so that two maps of a country are in the same split.

    A division of a held-out map is dropped if its name occurs in a training text or in a map of the other held-out split.
    Divisions and captions of training maps are dropped if they contain a concept that is held out for cut-outs ("Orange", if the
    fruit is held out).
    """
    by_split: dict[str, list[Map]] = {name: [] for name in SPLITS}
    for found in maps:
        by_split["train" if found.is_worldwide else split.split(concept_of(found.caption))].append(found)
    held_out = {
        name: {division.concept for found in by_split[name] for division in found.divisions} for name in HELD_OUT
    }
    texts = [*training_texts, *(found.caption for found in by_split["train"])]
    trained: set[Concept] = {part for text in texts for part in parts_of(concept_of(text))}
    for name in SPLITS:
        for index, found in enumerate(by_split[name]):
            kept = [division for division in found.divisions if split.may_train(division.name)]
            if name == "train":
                trained |= {part for division in kept for part in parts_of(division.concept)}
            else:
                other = held_out["val" if name == "test" else "test"]
                kept = [division for division in kept if division.concept not in trained | other]
            skipped[f"division that another split names, in {name}"] += len(found.divisions) - len(kept)
            captioned = name != "train" or split.may_train(found.caption)
            by_split[name][index] = found._replace(divisions=kept, captioned=captioned)
        by_split[name] = [found for found in by_split[name] if found.divisions]
    return by_split
