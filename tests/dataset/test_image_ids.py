"""Ids shared by public data sets are found in paths, URLs and records, and nowhere else."""

from __future__ import annotations

import pytest

from dataset.image_ids import guessed_ids_in_path, id_number, ids_in_path, ids_in_url, ids_of_record


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("train2014/COCO_train2014_000000000009.jpg", {"coco:9"}),
        ("/data/images/coco/val2014/COCO_val2014_000000391895.jpg", {"coco:391895"}),
        ("test2015/COCO_test2015_000000000001.jpg", {"coco:1"}),
        ("train2017/000000391895.jpg", {"coco:391895"}),
        ("000000391895.jpg", {"coco:391895"}),
        ("refs/COCO_train2014_000000581857_16.jpg", {"coco:581857"}),
        ("0000003918951.jpg", set()),
        ("00000/000000123.jpg", set()),
        ("VG_100K/1.jpg", {"vg:1"}),
        ("/a/VG_100K_2/2407890.jpg", {"vg:2407890"}),
        ("gqa/images/7.jpg", {"vg:7"}),
        ("visual_genome/image/7.jpg", {"vg:7"}),
        ("images/7.jpg", set()),
        ("flickr30k-images/36979.jpg", {"flickr:36979"}),
        ("Flickr30K/images/36979.jpg", {"flickr:36979"}),
        ("/a/my_flickr30k/36979.jpg", {"flickr:36979"}),
        ("my_svg/3.jpg", set()),
        ("flickr30k/vg/VG_100K/36979.jpg", {"vg:36979"}),
        ("vg/flickr30k-images/36979.jpg", {"flickr:36979"}),
        ("flickr30k/coco/train2014/COCO_train2014_000000000009.jpg", {"coco:9"}),
        ("my_vg/3.jpg", set()),
        ("VG_100K/1.jpg.txt", set()),
    ],
)
def test_the_id_in_a_path_is_found(path, ids):
    assert ids_in_path(path) == ids


@pytest.mark.parametrize(
    ("path", "guessed"),
    [
        ("cam/020240101000.jpg", {"coco:20240101000"}),
        ("000000391895.jpg", {"coco:391895"}),
        ("my_train2017/000000391895.jpg", {"coco:391895"}),
        ("train2017/000000391895.jpg", set()),
        ("a/unlabeled2017/000000391895.jpg", set()),
        ("any/COCO_val2014_000000391895.jpg", set()),
        ("VG_100K/1.jpg", set()),
        ("a.jpg", set()),
    ],
)
def test_twelve_digits_alone_are_only_a_guess(path, guessed):
    assert guessed_ids_in_path(path) == guessed


@pytest.mark.parametrize(
    ("url", "ids"),
    [
        ("http://static.flickr.com/2723/4385058960_b0f291553e.jpg", {"flickr:4385058960"}),
        ("http://farm4.static.flickr.com/3/36979_b0f2.jpg", {"flickr:36979"}),
        ("http://farm1.staticflickr.com/1/7009_0a1b2c_z.jpg", {"flickr:7009"}),
        ("https://live.staticflickr.com/65535/7009_0a1b2c_b.jpg?zz=1", {"flickr:7009"}),
        ("HTTP://Farm1.StaticFlickr.com/1/7009_0A1B2C_z.jpg", {"flickr:7009"}),
        ("https://www.flickr.com/photos/some_one@N00/7009/", {"flickr:7009"}),
        ("http://flickr.com/photos/someone/7009/in/set-1/", {"flickr:7009"}),
        ("https://www.flickr.com/photos/someone/sets/7009/", set()),
        ("https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", set()),
        ("http://example.org/static.flickr.com/1/7009_0a.jpg", set()),
        ("http://example.org/?u=http://static.flickr.com/1/7009_0a.jpg", set()),
        ("http://static.flickr.com/about.html", set()),
        ("", set()),
    ],
)
def test_the_id_in_a_url_is_found(url, ids):
    assert ids_in_url(url) == ids


def test_ids_of_a_record_come_from_its_keys_url_and_path():
    values = {
        "coco_id": 9,
        "flickr_id": "12",
        "vg_id": 3.0,
        "url": "http://static.flickr.com/1/13_a.jpg",
        "image_id": 5,
    }
    path = "train2014/COCO_train2014_000000000011.jpg"
    assert ids_of_record(values, path) == {"coco:9", "flickr:12", "vg:3", "flickr:13", "coco:11"}
    assert ids_of_record({"coco_id": None, "flickr_id": "²", "vg_id": True, "url": 7}, None) == set()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((7, 7), ("007", 7), (7.0, 7), (0, 0), (-7, None), (7.5, None), (float("nan"), None), (float("inf"), None)),
        *(
            (None, None),
            (True, None),
            ("", None),
            ("7a", None),
            ("²", None),
            ("٣", None),
            ([7], None),
            ("9" * 5000, None),
        ),
    ],
)
def test_a_number_is_read_in_any_notation(value, number):
    assert id_number(value) == number
