"""Benchmarks for models that have not been fine-tuned for them: ``python run.py benchmark SUITE``.

To add a suite, add a file to this folder with a :class:`~x2vlm.suites.cases.CaseSuite`, and add its name to :data:`SUITES`.
docs/composition.md has an example.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from x2vlm.suites.suite import Suite

SUITES = {
    "drawn-pairs": "x2vlm.suites.drawn_pairs:SUITE",
    "sugarcrepe": "x2vlm.suites.sugarcrepe:SUGARCREPE",
    "sugarcrepe++": "x2vlm.suites.sugarcrepe:SUGARCREPE_PP",
    "winoground": "x2vlm.suites.winoground:SUITE",
    "aro-relation": "x2vlm.suites.aro:RELATION",
    "aro-attribution": "x2vlm.suites.aro:ATTRIBUTION",
    "valse": "x2vlm.suites.valse:SUITE",
    "fg-ovd": "x2vlm.suites.fg_ovd:SUITE",
    "retrieval-coco": "x2vlm.suites.retrieval:COCO",
    "retrieval-flickr30k": "x2vlm.suites.retrieval:FLICKR",
    "classification": "x2vlm.suites.classification:SUITE",
    "refcoco": "x2vlm.suites.refcoco:REFCOCO",
    "refcoco+": "x2vlm.suites.refcoco:REFCOCO_PLUS",
    "refcocog": "x2vlm.suites.refcoco:REFCOCOG",
    "coco-boxes": "x2vlm.suites.detection:COCO",
    "lvis-boxes": "x2vlm.suites.detection:LVIS",
    "odinw": "x2vlm.suites.detection:ODINW",
    "flickr30k-entities": "x2vlm.suites.entities:SUITE",
}


def suite_named(name: str) -> Suite:
    """Returns the suite with this name in :data:`SUITES`."""
    module, _, variable = SUITES[name].partition(":")
    suite: Suite[Any] = getattr(import_module(module), variable)
    return suite
