"""Objects365, V3Det and OpenImages: small files in their official formats, and expected records written by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataset.prepare import line_shards
from tests.dataset.prepare import official
from tests.dataset.prepare.official import counted, image, prepared, records, write
from tests.dataset.prepare.set_errors import files_left_in, one_line
from tests.messages import OneLine


@pytest.fixture(autouse=True)
def serial(monkeypatch):
    monkeypatch.setattr(line_shards, "in_order", official.in_this_process)


@pytest.fixture
def raw(tmp_path) -> Path:
    official.karpathy(tmp_path / "raw/coco")
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def objects365(root: Path, name: str = "zhiyuan_objv2_train.json", categories_first: bool = False) -> None:
    """Names with capitals, spaces and slashes; boxes across the border; crowds; an image without boxes, and a missing one."""
    names = {
        420917: "images/v1/patch8/objects365_v1_00420917.jpg",
        900002: "images/v2/patch16/objects365_v2_00900002.jpg",
        7: "images/v1/patch0/objects365_v1_00000007.jpg",
        8: "images/v1/patch0/objects365_v1_00000008.jpg",
    }
    images = [
        {"id": n, "file_name": file, "width": 64, "height": 48, "license": 5, "url": ""} for n, file in names.items()
    ]
    boxes = [
        (900002, [1.25, 2.5, 20.0, 10.0], 5, 0),
        (420917, [50.0, 40.0, 20.0, 20.0], 12, 0),
        (420917, [0.5, 1.0, 30.0, 40.0], 1, 0),
        (420917, [0, 0, 60, 40], 1, 1),
        (420917, [5, 5, 0, 9], 1, 0),
        (420917, [5, 5, 9, 9], 400, 0),
        (8, [5, 5, 9, 9], 1, 0),
        (555, [5, 5, 9, 9], 1, 0),
    ]
    annotations = [
        {"id": n, "iscrowd": crowd, "isfake": 0, "area": 1.0, "image_id": i, "bbox": box, "category_id": c}
        for n, (i, box, c, crowd) in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "Person"}, {"id": 5, "name": "Picture/Frame"}, {"id": 12, "name": "Wild Bird "}]
    first, last = {"images": images, "annotations": annotations}, {"categories": categories}
    write(root / name, {"info": {}, **(last | first if categories_first else first | last)})
    image(root / "train/patch8/objects365_v1_00420917.jpg", shade=1)
    image(root / "patch16/objects365_v2_00900002.jpg", shade=2)
    image(root / "objects365_v1_00000007.jpg", shade=3)


@pytest.mark.parametrize("layout", ["version 2", "version 1", "categories first"])
def test_objects365_becomes_regions(raw, out, layout):
    name = "objects365_train.json" if layout == "version 1" else "zhiyuan_objv2_train.json"
    objects365(raw / "o365", name, layout == "categories first")
    reported = prepared("objects365", raw, out)
    assert records(out / "objects365") == [
        {
            "image": "../../raw/o365/train/patch8/objects365_v1_00420917.jpg",
            "elems": [
                {"caption": "wild bird", "bb": [50, 40, 14, 8], "grain": "object"},
                {"caption": "person", "bb": [0.5, 1, 30, 40], "grain": "object"},
            ],
        },
        {
            "image": "../../raw/o365/patch16/objects365_v2_00900002.jpg",
            "elems": [{"caption": "picture frame", "bb": [1.25, 2.5, 20, 10], "grain": "object"}],
        },
    ]
    assert counted(out / "objects365") == {
        "read": {"objects": 8, "images": 4},
        "written": {"images": 2, "objects": 3, "records": 2},
        "fixed": {"box clamped": 1},
        "skipped": {
            "crowd": 1,
            "degenerate box": 1,
            "unknown category": 1,
            "unknown image": 1,
            "missing image": 1,
            "image without boxes": 1,
        },
    }
    assert OneLine("4", "1,742,289", "images") in reported.splitlines()
    assert (out / "objects365/_prepare/missing.txt").read_text().split() == ["patch0/objects365_v1_00000008.jpg"]


def v3det(root: Path) -> None:
    """Two Flickr photographs, one of which Flickr30K contains too, and a category with a description."""
    names = {
        1: "images/n07745046/21_371_29405651261_633d076053_c.jpg",
        2: f"images/a00000066/28_5_{official.FLICKR_TEST}_47807516a3_b.jpg",
    }
    images = [{"id": n, "file_name": file, "width": 64, "height": 48} for n, file in names.items()]
    annotations = [
        {"id": n, "image_id": n, "category_id": 7, "bbox": [1.5, 2, 10, 20], "iscrowd": 0, "area": 200} for n in names
    ]
    about = {"name_zh": "草莓", "cat_info": ["a fruit"], "cat_info_gpt": ["red"], "novel": False}
    categories = [{"id": 7, "name": "Garden Strawberry", **about}]
    write(
        root / "annotations/v3det_2023_v1_train.json",
        {"images": images, "categories": categories, "annotations": annotations},
    )
    for number, file in names.items():
        image(root / file, shade=number)


def test_v3det_is_converted_without_photographs_of_flickr30k(raw, out):
    v3det(raw / "V3Det")
    prepared("v3det", raw, out)
    assert records(out / "v3det") == [
        {
            "image": "../../raw/V3Det/images/n07745046/21_371_29405651261_633d076053_c.jpg",
            "elems": [{"caption": "garden strawberry", "bb": [1.5, 2, 10, 20], "grain": "object"}],
        }
    ]
    assert counted(out / "v3det")["skipped"] == {"held out by Flickr30K (Karpathy) test": 1}


def test_objects365_without_images_names_their_usual_location(raw, out):
    objects365(raw / "o365")
    for path in (raw / "o365").rglob("*.jpg"):
        path.unlink()
    prepared("objects365", raw, out)
    assert [record["image"] for record in records(out / "objects365")] == [
        "../../raw/patch8/objects365_v1_00420917.jpg",
        "../../raw/patch16/objects365_v2_00900002.jpg",
        "../../raw/patch0/objects365_v1_00000008.jpg",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, ("images", "Objects365's")),
        (
            {"images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}], "annotations": []},
            ("no list categories",),
        ),
        ({"images": [{"id": 1, "width": 1, "height": 1}]}, ("images[0]", "Objects365's", "KeyError: 'file_name'")),
        ({"categories": [{"id": 1}]}, ("categories[0]", "Objects365's")),
    ],
)
def test_other_files_in_place_of_objects365_are_reported_in_one_line(raw, out, content, message):
    write(raw / "zhiyuan_objv2_train.json", content)
    assert one_line("objects365", raw, out) == OneLine(*message)
    assert files_left_in(out) == []


HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
A, B, C, D = "000002b66c9c498e", "fffffff0a1b2c3d4", "00000b4dcff7f799", "0123456789abcdef"


def openimages(root: Path, *, optional: bool = True, shuffled: bool = False) -> None:
    """Boxes as fractions in the order left, right, top, bottom; rows of two images interleaved; a group; a box across the border;
    a label without a name."""
    rows = [
        f"{A},xclick,/m/01g317,1,0.25,0.5,0.125,0.875,0,0,0,0,0",
        f"{B},xclick,/m/0dv5r,1,0,1,0.5,1,0,0,0,0,0",
        f"{A},activemil,/m/0342h,1,0.5,1.25,0.25,0.5,0,0,0,1,0",
        f"{A},xclick,/m/01g317,1,0.1,0.9,0.1,0.9,0,0,1,0,0",
        f"{A},xclick,/m/none,1,0.1,0.9,0.1,0.9,0,0,0,0,0",
        f"{B},xclick,/m/0dv5r,1,0.5,0.5,0.5,1,0,0,0,0,0",
        f"{C},xclick,/m/01g317,1,0.25,0.5,0.125,0.875,0,0,0,0,0",
        f"{D},xclick,/m/01g317,1,0.25,0.5,0.125,0.875,0,0,0,0,0",
    ]
    header = HEADER
    if shuffled:  # the columns that version 6 appends, with the others reordered
        order = [0, 10, 2, 1, 3, 7, 6, 5, 4, 8, 9, 11, 12]
        turn = lambda line: ",".join(line.split(",")[n] for n in order) if line.count(",") == 12 else line  # noqa: E731
        header, rows = turn(header), [turn(row) for row in rows]
    write(root / "oidv6-train-annotations-bbox.csv", "\n".join([header, *rows]) + "\n")
    write(
        root / "class-descriptions-boxable.csv",
        '/m/01g317,Person\n/m/0dv5r,"Bread, sliced"\n/m/0342h,Fixed-wing guitar\n',
    )
    image(root / f"train_0/{A}.jpg", shade=1, size=(80, 40))
    image(root / f"somewhere/{B}.jpg", shade=2, size=(60, 100))
    image(root / f"train_0/{D}.jpg", shade=3, size=(40, 40))
    if optional:
        sides = ",".join(f"{side}{n}" for n in "12" for side in ("XMin", "XMax", "YMin", "YMax"))
        relations = [
            f"ImageID,LabelName1,LabelName2,{sides},RelationshipLabel",
            f"{A},/m/01g317,/m/0342h,0.25,0.5,0.125,0.875,0.5,1,0.25,0.5,interacts_with",
            f"{A},/m/01g317,/m/02gy9n,0.25,0.5,0.125,0.875,0.25,0.5,0.125,0.875,is",
            f"{B},/m/0342h,/m/02gy9n,0,1,0.5,1,0,1,0.5,1,is",
        ]
        write(root / "oidv6-train-annotations-vrd.csv", "\n".join(relations) + "\n")
        write(root / "oidv6-attributes-description.csv", "LabelName,DisplayName\n/m/02gy9n,Transparent\n")
        addresses = [
            "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title",
            f'{D},train,https://farm1.staticflickr.com/1/{official.FLICKR_TEST}_0a1b_o.jpg,u,l,p,"Doe, Jo","One, two"',
            f"{A},train,https://farm1.staticflickr.com/1/4385058960_0a1b_o.jpg,u,l,p,a,t",
        ]
        write(root / "train-images-boxable-with-rotation.csv", "\n".join(addresses) + "\n")


PERSON = {"caption": "person", "bb": [20, 5, 20, 30], "grain": "object"}
GUITAR = {"caption": "fixed wing guitar", "bb": [40, 10, 40, 10], "grain": "object"}
BREAD = {"caption": "bread sliced", "bb": [0, 50, 60, 50], "grain": "object"}


def test_openimages_becomes_regions(raw, out):
    openimages(raw / "oi")
    prepared("openimages", raw, out)
    assert records(out / "openimages") == [
        {
            "image": f"../../raw/oi/train_0/{A}.jpg",
            "elems": [
                {**PERSON, "attributes": ["transparent"]},
                GUITAR,
                {"caption": "person interacts with fixed wing guitar", "bb": [20, 5, 60, 30], "grain": "region"},
            ],
        },
        {
            "image": f"../../raw/oi/somewhere/{B}.jpg",
            "elems": [BREAD, {**GUITAR, "bb": [0, 50, 60, 50], "attributes": ["transparent"]}],
        },
    ]
    assert counted(out / "openimages") == {
        "read": {"objects": 8, "relations": 3, "images": 4},
        "written": {"images": 2, "objects": 4, "regions": 1, "records": 2},
        "fixed": {"box clamped": 1},
        "skipped": {
            "group of objects": 1,
            "unknown category": 1,
            "degenerate box": 1,
            "missing image": 1,
            "held out by Flickr30K (Karpathy) test": 1,
        },
    }


def test_boxes_of_openimages_with_unknown_flags_are_counted(raw, out):
    openimages(raw / "oi", optional=False)
    path = raw / "oi/oidv6-train-annotations-bbox.csv"
    rows = path.read_text().replace(
        f"{B},xclick,/m/0dv5r,1,0,1,0.5,1,0,0,0,0,0", f"{B},xclick,/m/0dv5r,1,0,1,0.5,1,0,0,-1,-1,0"
    )
    write(path, rows.replace("0,0,0,1,0", "0,0,0,-1,0"))
    lines = prepared("openimages", raw, out)
    unknown = counted(out / "openimages")["read"]
    assert (unknown["objects with unknown IsGroupOf"], unknown["objects with unknown IsDepiction"]) == (1, 2)
    assert OneLine("1 objects with unknown IsGroupOf", "2 objects with unknown IsDepiction") in lines.splitlines()
    assert [record["elems"] for record in records(out / "openimages")][1] == [BREAD]


def test_openimages_without_optional_files_and_with_columns_in_another_order(raw, out):
    openimages(raw / "oi", optional=False, shuffled=True)
    prepared("openimages", raw, out)
    found = [record["elems"] for record in records(out / "openimages")]
    assert found == [[PERSON, GUITAR], [BREAD], [{**PERSON, "bb": [10, 5, 10, 30]}]]


def test_openimages_needs_the_images_and_its_own_files(raw, out):
    openimages(raw / "oi")
    for path in (raw / "oi").rglob("*.jpg"):
        path.rename(path.with_suffix(".gone"))
    assert one_line("openimages", raw, out) == OneLine("OpenImages", "fractions of the image size")
    for path in (raw / "oi").rglob("*.gone"):
        path.rename(path.with_suffix(".jpg"))
    boxes = raw / "oi/oidv6-train-annotations-bbox.csv"
    whole = boxes.read_text()
    for row, fault in [
        (f"{D},xclick,/m/01g317", "wrong columns"),
        (f"{B},x,/m/01g317,1,0,one,0,1,0,0,0,0,0", "wrong type"),
    ]:
        write(boxes, f"{whole}{row}\n")
        assert one_line("openimages", raw, out) == OneLine(f"1 {fault}", "oidv6-train-annotations-bbox.csv:10")
    write(boxes, "a,b\n1,2\n")
    message = one_line("openimages", raw, out)
    assert message == OneLine("ImageID, LabelName, XMin, XMax, YMin, YMax, IsGroupOf, IsDepiction", "OpenImages'")
    write(boxes, whole)
    write(raw / "oi/class-descriptions-boxable.csv", "one column\n")
    message = one_line("openimages", raw, out)
    assert message == OneLine("class-descriptions-boxable.csv:1", "1")
    assert files_left_in(out) == []


def test_ids_of_objects365_may_be_written_as_floats(raw, out):
    objects365(raw / "o365")
    path = raw / "o365/zhiyuan_objv2_train.json"
    text = re.sub(r'"(image_id|category_id)": (\d+)', r'"\1": \2.0', path.read_text())
    write(path, text)
    prepared("objects365", raw, out)
    assert [element["caption"] for record in records(out / "objects365") for element in record["elems"]] == [
        "wild bird",
        "person",
        "picture frame",
    ]


def test_relations_of_an_image_without_objects_are_counted(raw, out):
    openimages(raw / "oi")
    relations = raw / "oi/oidv6-train-annotations-vrd.csv"
    row = relations.read_text().splitlines()[1].replace(A, "f" * 16)
    write(relations, relations.read_text() + f"{row}\n{row}\n")
    assert "2 unknown image, first " in prepared("openimages", raw, out)
    assert counted(out / "openimages")["skipped"]["unknown image"] == 2


def test_openimages_may_have_blank_lines_windows_line_ends_and_a_repeated_relation(raw, out):
    openimages(raw / "oi")
    prepared("openimages", raw, out)
    expected = records(out / "openimages")
    relations = raw / "oi/oidv6-train-annotations-vrd.csv"
    write(relations, relations.read_text() + relations.read_text().splitlines()[2] + "\n")
    addresses = raw / "oi/train-images-boxable-with-rotation.csv"
    write(addresses, addresses.read_text() + f'{A},train,u,u,l,p,a\rb,"One, two"\n')
    for path in (raw / "oi").glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    prepared("openimages", raw, out, overwrite=True)
    assert records(out / "openimages") == expected
