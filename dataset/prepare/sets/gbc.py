"""GBC10M and GBC1M (Hsieh et al., 2024, "Graph-Based Captioning"): images of CC12M, described by graphs of regions.

The README of huggingface.co/datasets/graph-based-captions/GBC10M describes the JSON lines, and ``src/gbc/data`` of
github.com/apple/ml-gbc defines their classes. A graph has ``img_url``, ``original_caption`` and ``vertices``. A vertex has a
``bbox`` (left, top, right, bottom as fractions of the image's sides), a ``label`` (image, entity, composition, relation),
``descs`` (texts with a label such as short or detail), and ``in_edges`` and ``out_edges``, whose ``text`` is the name that the
source gives to the target.

- The image vertex has the captions: the original and the short caption, and the detailed caption as long caption.
- An entity is an element with the texts of its edges and its short texts as alternatives, and its details as long caption.
- A composition, such as two trees, is an element with the boxes of its entities, named by the texts of its edges.
- A relation is an element with its text and its box.

Bags of words and the texts that the authors' program wrote about the arrangement of a composition are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataset.prepare.cleaning import cleaned_text, long_text, relative_box
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Annotations, DataSet, Urls
from dataset.prepare.phrases import Phrases

SIDES = ("left", "top", "right", "bottom")


def gbc_record(row: Mapping[str, Any], size: tuple[int, int], counts: Counts, location: str) -> dict[str, Any] | None:
    """Returns the record of an image, given its columns and the size of the stored image."""
    vertices = row["vertices"]
    if not isinstance(vertices, list):
        counts.skip("wrong type", location, f"vertices is {str(vertices)[:40]}")
        return None
    counts.read["vertices"] += len(vertices)
    by_id: dict[str, Mapping[str, Any]] = {}
    for index, vertex in enumerate(vertices):
        if isinstance(vertex, dict) and isinstance(vertex.get("vertex_id"), str):
            by_id[vertex["vertex_id"]] = vertex
        else:
            counts.skip("wrong type", f"{location}: vertices[{index}]", f"{str(vertex)[:40]} has no vertex_id")
    captions = [row["original_caption"]] if row["original_caption"] is not None else []
    details: list[str] = []
    phrases = Phrases(counts)
    for name, vertex in by_id.items():
        where, label = f"{location}: {name!r:.40}", vertex.get("label")
        texts_of = _texts_by_label(vertex, counts, where)
        if label == "image":
            captions += texts_of.get("short", [])
            details = _long(texts_of.get("detail", []), counts, where)
        elif label == "entity":
            _add(phrases, [vertex], _named(vertex) + texts_of.get("short", []), texts_of, "object", size, counts, where)
        elif label == "composition":
            parts = [by_id[target] for target in _targets(vertex) if target in by_id]
            _add(phrases, parts, _named(vertex), {}, "object", size, counts, where)
        elif label == "relation":
            _add(phrases, [vertex], texts_of.get("relation", []), {}, "region", size, counts, where)
        else:
            counts.skip("unknown label", where, f"{label!r:.40}")
    elements = phrases.elements()
    if not elements:
        counts.skip("image without boxes", location)
        return None
    for element in elements:
        if isinstance(element["bb"], list) and element.pop("long_caption", None) is not None:
            counts.skip("long caption of one of several boxes", location, f"{element['caption']!r:.80}")
    counts.written["boxes"] += phrases.boxes
    texts = list(dict.fromkeys(text for each in captions if (text := cleaned_text(each, counts, location)) is not None))
    record: dict[str, Any] = {"caption": texts} if texts else {}
    if details:
        record["long_caption"] = details[0] if len(details) == 1 else details
    return {**record, "elems": elements}


def _list(vertex: Mapping[str, Any], key: str) -> list[Any]:
    value = vertex.get(key)
    return value if isinstance(value, list) else []


def _texts_by_label(vertex: Mapping[str, Any], counts: Counts, location: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in _list(vertex, "descs"):
        if isinstance(each, dict) and isinstance(each.get("text"), str):
            found.setdefault(str(each.get("label")), []).append(each["text"])
        else:
            counts.skip("wrong type", location, f"descs contains {str(each)[:40]}")
    return found


def _named(vertex: Mapping[str, Any]) -> list[str]:
    """Returns the names that other vertices give to a vertex. The parts of a composition are named "tree 1" and "tree 2", where
    the number is meaningless, so it is removed."""
    texts = [each.get("text") for each in _list(vertex, "in_edges") if isinstance(each, dict)]
    return [text.rstrip(" 0123456789") or text for text in texts if isinstance(text, str)]


def _targets(vertex: Mapping[str, Any]) -> Iterator[str]:
    for each in _list(vertex, "out_edges"):
        if isinstance(each, dict) and isinstance(each.get("target"), str):
            yield each["target"]


def _long(texts: list[str], counts: Counts, location: str) -> list[str]:
    return [text for each in dict.fromkeys(texts) if (text := long_text(each, counts, location)) is not None]


def _add(
    phrases: Phrases,
    vertices: list[Mapping[str, Any]],
    texts: list[str],
    texts_of: Mapping[str, list[str]],
    grain: str,
    size: tuple[int, int],
    counts: Counts,
    location: str,
) -> None:
    """Adds the boxes of vertices to the phrase with the alternative wordings ``texts``. The detailed captions in ``texts_of``
    become the long captions of the phrase."""
    cleaned = (cleaned_text(text, counts, location) for text in texts)
    alternatives = list(dict.fromkeys(text for text in cleaned if text is not None))
    if not alternatives:
        counts.skip("vertex without a text", location)
        return
    details = _long(texts_of.get("detail", []), counts, location)
    for vertex in vertices:
        corners = vertex.get("bbox")
        values = [corners.get(side) for side in SIDES] if isinstance(corners, dict) else corners
        box = relative_box(values, *size, counts, location)
        if box is None:
            continue
        element = phrases.add(alternatives, box, grain, location)
        if details:
            known = element.get("long_caption", [])
            merged = list(dict.fromkeys([*([known] if isinstance(known, str) else known), *details]))
            element["long_caption"] = merged[0] if len(merged) == 1 else merged


COLUMNS = {"url": ("img_url", "url"), "text": ("original_caption", "caption")}

GBC = DataSet(
    name="gbc",
    title="GBC10M and GBC1M",
    home="huggingface.co/datasets/graph-based-captions/GBC10M",
    licence="CC BY-NC 4.0; images under their own terms",
    files={
        "gbc*/*.jsonl, gbc*/*.jsonl.gz": "URLs and graphs",
        "gbc*/*.tar": "or shards of img2dataset with their *_stats.json, already downloaded, and the JSON lines in that folder",
    },
    sizes={},
    makes=Urls(
        columns=COLUMNS,
        in_shards=COLUMNS,
        annotations=Annotations(
            "an image, its captions, and its entities and relations", ("original_caption", "vertices"), gbc_record
        ),
    ),
)
