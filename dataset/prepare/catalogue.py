"""The data sets that ``run.py prepare`` knows."""

from __future__ import annotations

from dataset.prepare.sets.any_instances import INSTANCES, LVIS
from dataset.prepare.sets.base import DataSet
from dataset.prepare.sets.blip3_grounding import BLIP3_GROUNDING
from dataset.prepare.sets.coco import COCO
from dataset.prepare.sets.datacomp import DATACOMP
from dataset.prepare.sets.finehard import FINEHARD
from dataset.prepare.sets.flickr30k_entities import ENTITIES
from dataset.prepare.sets.gbc import GBC
from dataset.prepare.sets.gqa import GQA
from dataset.prepare.sets.grefcoco import GREFCOCO, GREFCOCO_EVAL
from dataset.prepare.sets.grit import GRIT
from dataset.prepare.sets.laion import LAION
from dataset.prepare.sets.multi30k import MULTI30K
from dataset.prepare.sets.multilingual_coco import MULTILINGUAL_COCO
from dataset.prepare.sets.objects365 import OBJECTS365
from dataset.prepare.sets.odvg import ODVG
from dataset.prepare.sets.openimages import OPENIMAGES
from dataset.prepare.sets.pixelprose import PIXELPROSE
from dataset.prepare.sets.ref_l4 import REF_L4
from dataset.prepare.sets.refcoco import REFCOCO
from dataset.prepare.sets.v3det import V3DET
from dataset.prepare.sets.videos import HOWTO100M, WEBVID, YT_TEMPORAL
from dataset.prepare.sets.visual_genome import VISUAL_GENOME
from dataset.prepare.sets.web import CC3M, CC12M, SBU
from dataset.prepare.sets.wikimatrix import WIKIMATRIX
from dataset.prepare.sets.wit import WIT

SETS: dict[str, DataSet] = {
    "coco": COCO,
    "visual_genome": VISUAL_GENOME,
    "sbu": SBU,
    "cc3m": CC3M,
    "refcoco": REFCOCO,
    "gqa": GQA,
    "flickr30k_entities": ENTITIES,
    "objects365": OBJECTS365,
    "openimages": OPENIMAGES,
    "v3det": V3DET,
    "cc12m": CC12M,
    "laion": LAION,
    "webvid": WEBVID,
    "howto100m": HOWTO100M,
    "yt_temporal": YT_TEMPORAL,
    "multi30k": MULTI30K,
    "multilingual_coco": MULTILINGUAL_COCO,
    "wit": WIT,
    "wikimatrix": WIKIMATRIX,
    "odvg": ODVG,
    "instances": INSTANCES,
    "lvis": LVIS,
    "grit": GRIT,
    "finehard": FINEHARD,
    "grefcoco": GREFCOCO,
    "grefcoco_eval": GREFCOCO_EVAL,
    "ref_l4": REF_L4,
    "blip3_grounding": BLIP3_GROUNDING,
    "gbc": GBC,
    "pixelprose": PIXELPROSE,
    "datacomp": DATACOMP,
}
"""Data sets by name."""

GROUPS = {
    "4m": ("coco", "visual_genome", "sbu", "cc3m", "refcoco", "gqa", "flickr30k_entities"),
    "1b": ("cc12m", "objects365", "openimages", "laion"),
    "videos": ("webvid", "howto100m", "yt_temporal"),
}
"""Groups of data sets by name. A config reads the data sets of its group and of all groups before it."""

READERS = {
    "4m": "configs/pretrain/{base,large}_4m.yaml",
    "1b": "configs/pretrain/{base,large}_1b.yaml",
    "videos": "configs/pretrain/{base,large}_1b_stage2.yaml",
}
"""The configs of each group."""
