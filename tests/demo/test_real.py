"""Records of real images, from packages that the tests create. Concepts that are held out are held out in all sources."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from dataset.prepare.folders import split_by_hash
from demo.cutouts import UnusableCutoutError
from demo.folder import FolderFlags
from demo.real import __main__ as command
from demo.real import clipart, concepts, duplicates, maps
from demo.real.concepts import MAX_CONTAINING, ConceptSplit, concept_of, leaks
from tests.demo.real_packages import NAMES, encoded, picture, write_clipart, write_emoji, write_maps, write_stamps
from tests.demo.scene_texts import read
from utils.commands import call
from utils.errors import UserError

SOURCES = ("stamps", "emoji_google", "emoji_fluent", "clipart")
HELD_OUT_NAMES = [name for name in NAMES if split_by_hash(name) != "train"]
TEST_NAME = next(name for name in NAMES if split_by_hash(name) == "test")
TRAIN_NAME = next(name for name in NAMES if split_by_hash(name) == "train")
LEAK = next(leak for word in ("shiny", "big", "new", "old") if split_by_hash(leak := f"{word} {TEST_NAME}") == "train")
"""A name whose own concept may be trained on, although it contains a held-out concept."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """Packages with every name in every source. The clip art also contains leaks."""
    folder = tmp_path_factory.mktemp("packages")
    share = folder / "usr/share"
    write_stamps(share, [*(f"A {name}." for name in NAMES), f"A {LEAK}!"])
    pictures = {
        f"things/{name.replace(' ', '_')}_anna_01": (
            name.title(),
            ["toy", "hash(0x8a)", ""],
            encoded(picture(3000 + n)),
        )
        for n, name in enumerate(NAMES)
    }
    copied = encoded(picture(NAMES.index(TEST_NAME)))  # the stamp's image
    pictures["things/leaks_a_picture"] = (f"{TRAIN_NAME} toy", [], copied)
    pictures["things/leaks_with_a_keyword"] = (
        f"{TRAIN_NAME} {TEST_NAME.split()[0]}", [TEST_NAME.split()[1], "toy"], encoded(picture(4001))
    )  # fmt: skip
    pictures["things/leaks_a_keyword"] = (f"{TRAIN_NAME} of a toy", [TEST_NAME, "toy"], encoded(picture(4000)))
    write_clipart(share, pictures)
    write_maps(share)
    write_emoji(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    command.real(output=FolderFlags(out=out), packages=packages, side=64, composites=20)
    return out


def texts_of(record: dict) -> list[str]:
    caption = record.get("caption", [])
    texts = [caption] if isinstance(caption, str) else list(caption)
    return texts + [elem["caption"] for elem in record.get("elems", [])]


def records_of(built: Path, split: str) -> list[dict]:
    names = (split, f"regions_{split}_composites", f"regions_{split}_maps")
    return [record for name in names for record in read(built, name)]


def test_no_name_of_a_held_out_record_is_in_a_training_text(built):
    """Searches for the words of the names as plain text, independently of the code that builds the records."""
    training = [text.lower() for record in records_of(built, "train") for text in texts_of(record)]
    names = {split: {text.lower().removeprefix("a ").rstrip(".") for r in read(built, split) for text in texts_of(r)}
             for split in ("val", "test")}  # fmt: skip
    assert names["val"] and names["test"] and not names["val"] & names["test"]
    assert names["val"] | names["test"] <= set(HELD_OUT_NAMES)
    assert not [(name, text) for name in names["val"] | names["test"] for text in training if name in text]
    for split in ("val", "test"):
        divisions = {elem["caption"].lower() for r in read(built, f"regions_{split}_maps") for elem in r["elems"]}
        assert divisions and not [(name, text) for name in divisions for text in training if name in text]


def test_a_concept_has_one_split_in_all_sources_and_each_source_has_its_files(built):
    for split in ("val", "test"):
        of_source = {source: read(built, f"{split}_{source}") for source in SOURCES}
        assert all(of_source.values())
        assert [record for records in of_source.values() for record in records] == read(built, split)
        for records in of_source.values():
            names = [concept_of(record["caption"]) for record in records]
            assert len(set(names)) == len(names)
            assert {split_by_hash(" ".join(name)) for name in names} == {split}


def test_leaks_in_names_images_and_keywords_are_excluded_and_counted(built):
    skipped = json.loads((built / "real.json").read_text())["skipped"]
    assert skipped["stamps"]["held-out concept in the name"] == 1
    assert skipped["clipart"]["near-duplicate of a held-out picture, in train"] == 1
    training = {record["id"]: record for record in read(built, "train")}
    assert "clipart/things/leaks_a_picture" not in training
    assert training["clipart/things/leaks_a_keyword"]["caption"] == f"{TRAIN_NAME} of a toy"
    first, second = training["clipart/things/leaks_with_a_keyword"]["caption"]
    assert first == f"{TRAIN_NAME} {TEST_NAME.split()[0]}" and second == f"{first}, toy"
    assert skipped["emoji_google"] == {"skin tone": 1}
    assert skipped["emoji_fluent"] == {"no name": 1}


def test_the_counts_match_the_files(built):
    facts = json.loads((built / "real.json").read_text())
    for split in ("train", "val", "test"):
        sources = Counter(record["source"] for record in records_of(built, split))
        assert {name: count for name, count in facts[split].items() if name != "divisions of maps"} == sources
        assert facts[split]["composites"] == (20 if split == "train" else 2)


def test_keywords_are_only_in_alternative_captions_of_training(built):
    emoji = [record for record in read(built, "train") if record["source"] == "emoji_google"]
    assert all(record["caption"] == [name := record["caption"][0], f"{name}, toy"] for record in emoji)
    assert all(isinstance(record["caption"], str) for split in ("val", "test") for record in read(built, split))


def test_training_images_are_also_listed_with_names_only(built):
    named = {record["id"]: record["caption"] for record in read(built, "train_names")}
    firsts = {record["id"]: record["caption"] for record in read(built, "train")}
    assert named == {name: text if isinstance(text, str) else text[0] for name, text in firsts.items()}
    assert any(isinstance(text, list) for text in firsts.values())


def test_every_image_is_square_and_shows_the_whole_cutout_on_white(built):
    for record in read(built, "test"):
        with Image.open(built / record["image"]) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert pixels.shape[0] == pixels.shape[1] <= 64
        assert pixels[:2].min() > 220 and pixels[:, -2:].min() > 220  # JPEG
        assert pixels[5:-5, 5:-5].std() > 20


def test_the_boxes_of_a_map_enclose_its_colours(built):
    seen = 0
    for split in ("train", "val", "test"):
        for record in read(built, f"regions_{split}_maps"):
            elems = {elem["caption"].split()[0]: elem for elem in record["elems"]}
            assert elems.keys() <= {"East", "West"}
            with Image.open(built / record["image"]) as image:
                assert image.size == (40, 30)
            assert [elems[side]["bb"] for side in elems] == [{"East": [12, 5, 8, 20], "West": [22, 8, 18, 12]}[side]
                                                             for side in elems]  # fmt: skip
            assert {side: elem["attributes"] for side, elem in elems.items()} == {
                side: {"East": ["green"], "West": ["blue"]}[side] for side in elems
            }
            assert record["caption"].startswith("map of ") and "Regions" not in record["caption"]
            seen += len(elems)
    assert seen == 60


def test_composites_use_cutouts_of_their_split_from_all_sources(built):
    names = {split: {text for record in read(built, split) for text in texts_of(record)} for split in ("train", "test")}
    for split, known in names.items():
        for record in read(built, f"regions_{split}_composites"):
            assert {elem["caption"] for elem in record["elems"]} <= known
            for elem in record["elems"]:
                x, y, w, h = elem["bb"]
                assert x >= 0 and y >= 0 and x + w <= 64 and y + h <= 64 and min(w, h) > 5


def test_the_same_arguments_give_the_same_records(built, packages, tmp_path):
    command.real(output=FolderFlags(out=tmp_path / "again"), packages=packages, side=64, composites=20)
    for name in command.FILES:
        assert (built / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_missing_package_is_reported_in_one_line_with_the_remedy(packages, tmp_path, monkeypatch, capsys):
    for path in packages.glob("*.tgz"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "usr/share").mkdir(parents=True)
    for name in ("tuxpaint", "openclipart"):
        (tmp_path / "usr/share" / name).symlink_to(packages / "usr/share" / name)
    (tmp_path / "usr/share/kgeography").mkdir()
    argv = ["--out", str(tmp_path / "out"), "--packages", str(tmp_path)]
    assert call(command.real, argv, "python -m demo.real") == 2
    error = capsys.readouterr().err
    assert "kgeography contains no map: apt install kgeography-data" in error and error.count("\n") == 1
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").unlink()
    with pytest.raises(UserError, match="run `npm pack emoji-datasource-google` there"):
        command.real(output=FolderFlags(out=tmp_path / "out"), packages=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "names",
    [
        ("A red kangaroo.", "red kangaroos", "Red Kangaroo"),
        ("woman playing water polo", "person playing water polo", "man playing water polo: medium-dark skin tone"),
        ("man in motorized wheelchair: facing right", "woman in motorized wheelchair"),
        ("woman mage", "mage", "mage: light skin tone"),
        ("kiss: man, man", "kiss", "kiss: woman, man, light skin tone, dark skin tone"),
        ("flag: Ireland", "flag of Ireland"),
        ("woman’s boot", "A man's boot"),
        ("two boxes of cherries", "Two box, cherry"),
    ],
)
def test_variants_of_a_name_are_one_concept(names):
    assert len({concept_of(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("flag: Ireland", "flag: Iceland"), ("man: red hair", "man: white hair"), ("bus", "glass")]
)
def test_different_things_are_different_concepts(one, other):
    assert concept_of(one) != concept_of(other)


def test_the_text_after_a_colon_stays_in_the_concept():
    assert concept_of("woman: white hair, medium-light skin tone") == ("white", "hair")
    assert leaks(["person: white hair"], ["Hair"]) == [("Hair", "person: white hair")]


def test_only_plural_words_are_made_singular():
    assert concept_of("glasses buses dresses foxes bus glass iris peaches") == (
        "glass", "buse", "dress", "fox", "bus", "glass", "iris", "peach"
    )  # fmt: skip


def test_a_concept_within_many_others_is_trained_on_unless_a_text_contains_a_held_out_one():
    held_out = concept_of(TEST_NAME)
    split = ConceptSplit.of([held_out, concept_of(TRAIN_NAME)])
    assert split.split(held_out) == "test"
    assert not split.may_train(f"A big {TEST_NAME}, toy") and split.may_train(TRAIN_NAME)
    assert split.may_train(TEST_NAME.split()[1])
    many = [(*held_out, f"toy{number}") for number in range(MAX_CONTAINING + 1)]
    assert ConceptSplit.of([held_out, *many]).split(held_out) == "train"
    assert ConceptSplit.of([held_out, *many[1:]]).split(held_out) == "test"


def test_leaks_finds_a_held_out_name_within_a_text():
    assert leaks(["A big red bus, toy", "redder buses"], ["red bus", "blue bus"]) == [("red bus", "A big red bus, toy")]


@pytest.mark.parametrize(
    ("path", "title", "name"),
    [
        ("food/x", "Cherry_Pie2 (b and w)", "cherry pie"),
        ("animals/x", "BigCat clip art", "big cat"),
        ("signs_and_symbols/flags/europe/x", "national flag of Eire", "flag of Eire"),
        ("plants/x", "tree - RPG map elements", "tree"),
    ],
)
def test_titles_are_cleaned(path, title, name):
    assert clipart.clean_title(PurePosixPath(path), title, {"cherry", "pie", "cat", "big", "tree"}) == name


@pytest.mark.parametrize(
    ("title", "reason"),
    [("2005", "no title"), ("People", "generic title"), ("Gatto", "title not English"), ("cat " * 9, "long title")],
)
def test_uninformative_titles_are_dropped(title, reason):
    with pytest.raises(UnusableCutoutError, match=reason):
        clipart.clean_title(PurePosixPath("people/x"), title, {"cat"})


def test_the_title_of_a_collection_is_replaced_by_the_file_name_without_its_author(tmp_path):
    drawings = {f"animals/{kind}_anna_auth_01": ("Lemon theme", [], encoded(picture(n)))
                for n, kind in enumerate(["red_fox", "cow", "owl", "pig", "hen", "emu"])}  # fmt: skip
    write_clipart(tmp_path, drawings | {"computer/icons/lemon-theme/cow": ("cow", [], encoded(picture(9)))})
    cutouts, skipped = clipart.read_clipart(tmp_path, {"red", "fox", "cow", "owl", "pig", "hen", "emu"})
    assert {cutout.captions["en"] for cutout in cutouts} == {"red fox", "cow", "owl", "pig", "hen", "emu"}
    assert skipped == {"folder without subjects": 1}


def test_a_drawing_that_only_links_an_image_is_dropped(tmp_path):
    """The PNG version of such a drawing only says that the image was not found."""
    link, shape = '<image width="9" xlink:href="duck.png"/>', '<path d="M0 0"/>'
    embedded = '<image xlink:href="data:image/png;base64,"/>'
    contents = {"cow": link, "fox": link + shape, "owl": embedded, "pig": shape}
    write_clipart(tmp_path, {name: (name, [], encoded(picture(n))) for n, name in enumerate(contents)})
    for name, content in contents.items():
        path = tmp_path / f"openclipart/svg/{name}.svg"
        path.write_text(path.read_text().replace("</svg>", f"{content}</svg>"))
    cutouts, skipped = clipart.read_clipart(tmp_path, set(contents))
    assert [cutout.captions["en"] for cutout in cutouts] == ["fox", "owl", "pig"]
    assert skipped == {"link to a missing image": 1}


def test_keywords_are_english_and_informative():
    english = {"fruit", "green", "apple", "tree"}
    keywords = ["", "hash(0x8a8)", "food", "Green_Apple", "apple", "frutta", "tree"]
    assert clipart.clean_keywords(keywords, "apple", english) == ("green apple", "tree")


def test_near_duplicates_are_resized_copies_and_not_other_images():
    first, second = picture(1), picture(2)
    copies = [first.resize((96, 96)), first, second]
    rows = [duplicates.thumbnail(image.crop(image.getbbox())) for image in copies]
    assert duplicates.first_of_each(rows) == [0, 2]
    thin = [Image.new("RGBA", size, (0, 0, 0, 255)) for size in ((4, 60), (60, 4))]
    assert duplicates.first_of_each([duplicates.thumbnail(image) for image in thin]) == [0, 1]


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((250, 10, 10), "red"), ((130, 130, 130), "grey"), ((120, 60, 10), "brown"), ((255, 255, 250), "white"),
     ((90, 200, 90), "green"), ((255, 0, 110), "pink"), ((5, 5, 5), "black"), ((255, 0, 10), "red")],
)  # fmt: skip
def test_colours_have_common_names(rgb, name):
    assert maps.colour_name(*rgb) == name


def test_two_maps_of_a_country_share_a_concept():
    assert {maps.place_of(name) for name in ("Portugal (Regions)", "Portugal Districts")} == {"Portugal"}
    assert maps.place_of("Great-Britain (Historic Counties)") == "Great Britain"
    assert concepts.concept_of(maps.place_of("The Netherlands")) == ("netherland",)
