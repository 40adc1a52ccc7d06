"""V3Det (Wang et al., 2023): objects of 13,204 categories on photographs of Flickr.

The README of github.com/V3Det/V3Det describes the files.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import PurePosixPath

from dataset.prepare.coco_format import read_objects
from dataset.prepare.declarations import DataSet, Records, files_named
from dataset.prepare.finders import ImageFiles, MediaNames

FILE = "v3det_2023_v1_train.json"
PHOTOGRAPH = re.compile(r"\d+_\d+_(\d+)_[0-9a-f]+(?:_\w)?\.(?:jpe?g|png)")
"""Two numbers of the data set, then the name of the photograph on Flickr: its id and its secret, and often a letter for the
size."""


def image_names(file_name: str) -> MediaNames:
    """Returns the possible names of an image, given its path in the annotations, for example
    ``images/n07745046/21_371_29405651261_633d076053_c.jpg``. The image's id on Flickr shows whether Flickr30K or COCO holds out
    the image."""
    path = PurePosixPath(file_name)
    photograph = PHOTOGRAPH.fullmatch(path.name)
    ids = {f"v3det:{path.parent.name}/{path.stem}", *([f"flickr:{int(photograph[1])}"] if photograph else [])}
    return MediaNames(frozenset(ids), [path.name], file_name)


V3DET = DataSet(
    name="v3det",
    title="V3Det",
    home="v3det.openxlab.org.cn",
    licence="annotations CC BY 4.0; images under the terms of Flickr",
    files={FILE: "objects", "images/": "images, as v3det_image_download.py stores them"},
    sizes={"images": 183_354},
    makes=(
        Records(
            "v3det",
            "an image and its objects",
            files=files_named(objects=FILE),
            read=partial(read_objects, "V3Det", image_names),
            image_files=ImageFiles("v3det", PHOTOGRAPH),
        ),
    ),
    required=("karpathy_flickr30k",),
)
