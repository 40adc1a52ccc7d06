"""Lists the calls of a model: for each call, the tasks whose models support it, and the text that it takes.

This module contains only plain data, so it is fast to import.
"""

from __future__ import annotations

from typing import NamedTuple


class Call(NamedTuple):
    """A call. Models of the ``tasks`` support it. ``text`` describes the value of ``run.py predict CALL --text``; it is empty if
    the call takes no text, and None if ``run.py predict`` does not offer the call."""

    tasks: tuple[str, ...]
    text: str | None


ALIGNED = ("pretrain", "retrieval")
"""The tasks whose models compare images with texts."""

CALLS = {
    "caption": Call(("captioning",), ""),
    "answer": Call(("vqa", "video_qa"), "a question; may be repeated, and each question is asked about every image"),
    "locate": Call(("pretrain", "grounding"), "a phrase; may be repeated, and each phrase is located in every image"),
    "score": Call(ALIGNED, "a phrase; may be repeated, and each phrase is compared with every --box"),
    "match": Call(ALIGNED, "a text; may be repeated, and each text is matched with every image"),
    "embed_images": Call(ALIGNED, None),
    "embed_texts": Call(ALIGNED, None),
    "compare": Call(("nlvr",), "a statement about the images, two at a time; may be repeated"),
    "explain": Call(ALIGNED, "a text, each of whose words is looked for in every image"),
}

EXPORTED = ("locate", "match", "embed_images", "embed_texts")
"""The calls that an ONNX export supports (``run.py export``)."""
EXPORTED_TASKS = ("pretrain", "retrieval", "grounding")
"""The tasks whose models can be exported."""
