"""Objects365: version 2 (2020), or version 1 (2019), which matches the number of images in the paper."""

from __future__ import annotations

import re
from functools import partial
from pathlib import PurePosixPath

from dataset.prepare.coco_format import read_objects
from dataset.prepare.declarations import DataSet, Records, files_named
from dataset.prepare.finders import ImageFiles, MediaNames

FILES = ("zhiyuan_objv2_train.json", "objects365_train.json")
"""Names of the files of version 2 and version 1."""


def image_names(file_name: str) -> MediaNames:
    """Returns the possible names of an image. Paths in the annotations contain a version folder and a patch folder
    (``images/v1/patch8/…``), whereas unpacked archives have only the patch folder, or no folder."""
    path = PurePosixPath(file_name)
    patch = path.parent.name
    usual = f"{patch}/{path.name}" if re.fullmatch(r"patch\d+", patch) else path.name
    return MediaNames(frozenset({f"objects365:{path.stem}"}), [path.name], usual)


OBJECTS365 = DataSet(
    name="objects365",
    title="Objects365",
    home="www.objects365.org",
    licence="CC BY 4.0",
    files={
        FILES[0]: "objects, version 2",
        FILES[
            1
        ]: "objects, version 1, used if version 2 is missing; its number of images is close to that in the paper",
        "patch0/, patch1/, …": "images, in any folders",
    },
    sizes={"images": 1_742_289},
    makes=(
        Records(
            "objects365",
            "an image and its objects",
            files=files_named(objects=FILES),
            read=partial(read_objects, "Objects365", image_names),
            image_files=ImageFiles(
                "objects365", re.compile(r"(?:objects365_v[12]_\d{8}|obj365_(?:train|val)_\d{12})\.jpg")
            ),
        ),
    ),
    group="1b",
    paper="0.58M images, 2.0M objects",
)
