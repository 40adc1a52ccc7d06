"""Checks the records for retrieval, reasoning over two images and referring expressions again, using only the texts."""

import itertools
import json
import re
from collections import Counter, defaultdict

import pytest
from transformers import AutoTokenizer

from dataset.text.processors import mentions_side
from demo.folder import FolderFlags
from demo.scenes import statements
from demo.scenes.build import scenes
from demo.scenes.compose import compose_scene
from demo.scenes.describe import describe_scene, looks_of, refer_in_scene
from demo.scenes.records import referring_records
from demo.scenes.statements import statement_sets
from tests.demo.scene_texts import COUNTS, SIDES, fitting, meant_by, read, scene_of

HELD_OUT = ("val", "test")
PLACES = {"leftmost": (0, 1), "rightmost": (0, -1), "topmost": (1, 1), "bottommost": (1, -1)}


def is_true(sentence: str, left, right) -> bool:
    def number(scene, text):
        return len(fitting(scene, text))

    if match := re.fullmatch(r"the (left|right) picture has (an? .*)", sentence):
        return number({"left": left, "right": right}[match[1]], match[2]) > 0
    if match := re.fullmatch(r"both pictures have (an? .*)", sentence):
        return number(left, match[1]) > 0 and number(right, match[1]) > 0
    if match := re.fullmatch(r"at least one picture has (an? .*)", sentence):
        return number(left, match[1]) > 0 or number(right, match[1]) > 0
    if match := re.fullmatch(r"only one picture has (an? .*)", sentence):
        return (number(left, match[1]) > 0) + (number(right, match[1]) > 0) == 1
    match = re.fullmatch(r"the (left|right) picture has more (.*shape)s than the (left|right) picture", sentence)
    assert match is not None, sentence
    assert match[1] != match[3]
    difference = number(left, match[2]) - number(right, match[2])
    return difference > 0 if match[1] == "left" else difference < 0


def sets_of(folder, split) -> dict[str, list[dict]]:
    """The examples by set and sentence of their identifiers, without the field of the image pair."""
    sets = defaultdict(list)
    for example in read(folder, f"nlvr_{split}"):
        first, number, _, sentence = example["identifier"].split("-")
        assert first == split
        sets[number, sentence].append(example)
    return sets


@pytest.mark.parametrize("split", COUNTS)
def test_retrieval_records_have_each_image_with_its_captions(folder, split):
    expected = [
        {"image": record["image"], "caption": record["caption"], "image_id": record["id"]}
        for record in read(folder, split)
    ]
    assert read(folder, f"retrieval_{split}") == expected
    assert len(expected) == COUNTS[split]
    assert all((folder / record["image"]).exists() and len(record["caption"]) == 2 for record in expected)


@pytest.mark.parametrize("split", COUNTS)
def test_each_label_matches_the_two_images(folder, split):
    for example in read(folder, f"nlvr_{split}"):
        truth = is_true(example["sentence"], *(scene_of(image) for image in example["images"]))
        assert example["label"] == str(truth), example


@pytest.mark.parametrize("split", COUNTS)
def test_each_statement_is_true_of_one_pair_of_its_split_and_false_of_another(folder, split):
    sets = sets_of(folder, split)
    assert len(sets) == (COUNTS[split] // 3 if split == "train" else COUNTS[split])
    for examples in sets.values():
        assert len({example["sentence"] for example in examples}) == 1
        assert sorted(example["label"] for example in examples) == ["False", "True"]
        assert [example["identifier"].split("-")[2] for example in examples] == ["0", "1"]
        assert examples[0]["images"] != examples[1]["images"]
        for example in examples:
            assert example["images"][0] != example["images"][1]
            for image in example["images"]:
                assert image.startswith(f"images/{split}/")
                assert (folder / image).exists()


def test_the_order_of_the_examples_reveals_nothing(folder):
    first = Counter(examples[0]["label"] for split in COUNTS for examples in sets_of(folder, split).values())
    assert min(first.values()) > 0.35 * sum(first.values())


@pytest.mark.parametrize("split", HELD_OUT)
def test_no_statement_of_a_held_out_split_is_repeated(folder, split):
    sentences = [examples[0]["sentence"] for examples in sets_of(folder, split).values()]
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("split", COUNTS)
def test_object_counts_predict_a_label_only_if_the_statement_is_about_them(folder, split):
    for examples in sets_of(folder, split).values():
        if "more shapes" not in examples[0]["sentence"]:
            first, second = ([len(scene_of(image).objects) for image in example["images"]] for example in examples)
            assert first == second


def test_all_kinds_of_statements_occur_for_both_sides(folder):
    examples = [*read(folder, "nlvr_train"), *read(folder, "nlvr_test")]
    starts = Counter(" ".join(example["sentence"].split()[:4]) for example in examples)
    assert set(starts) >= {
        "the left picture has",
        "the right picture has",
        "only one picture has",
        "at least one picture",
    }
    assert sum(number for start, number in starts.items() if start.startswith("both pictures have")) > 6
    more = Counter(example["sentence"].split()[1] for example in examples if " more " in example["sentence"])
    assert set(more) == {"left", "right"}


def images(split: str, number: int):
    return [tuple(looks_of(obj) for obj in compose_scene(0, split, index).objects) for index in range(number)]


def test_statements_depend_only_on_seed_split_and_index():
    seen = images("val", 30)
    longer = list(statement_sets(0, "val", seen, 20))
    assert list(statement_sets(0, "val", seen, 8)) == longer[:8]
    assert list(statement_sets(1, "val", seen, 8)) != longer[:8]
    assert list(statement_sets(0, "test", seen, 8)) != longer[:8]


@pytest.mark.slow
def test_a_set_without_a_possible_statement_is_skipped():
    assert list(statement_sets(0, "train", [], 3)) == []
    assert list(statement_sets(0, "train", images("train", 1), 3)) == []
    few = [stated.text for stated in statement_sets(0, "val", images("val", 4), 200)]
    assert 0 < len(few) < 200
    assert len(set(few)) == len(few)


def test_a_long_split_is_searched_piece_by_piece(monkeypatch):
    monkeypatch.setattr(statements, "N_SEARCHED", 25)
    seen = images("val", 80)
    places = [(*stated.true, *stated.false) for stated in statement_sets(0, "val", seen, 60)]
    assert all(max(four) - min(four) < 25 for four in places)
    assert min(map(min, places)) < 10
    assert max(map(max, places)) >= 70
    for stated in statement_sets(0, "val", seen, 60):
        if stated.text.startswith("both"):
            requested = set(stated.text.split()[4:]) - {"shape"}
            assert all(any(requested <= set(obj) for obj in seen[place]) for place in stated.true)


NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


def singular(text: str) -> tuple[str, int | None]:
    """A phrase for a set without its first words and in the singular, and the number of objects that it states."""
    start, *words = text.split()
    assert start in ("all", "the")
    number = NUMBERS.get(words[0]) if start == "the" else None
    words = words[1:] if number else words
    if start == "all" or number:
        words[-1] = re.sub(r"(?<=s)es$|s$", "", words[-1])
    return " ".join(words), number


def test_set_phrases_match_exactly_their_boxes_with_a_third_each_of_none_one_and_several(folder):
    forms = defaultdict(Counter)
    for split in COUNTS:
        grains = Counter()
        for record in read(folder, f"sets_{split}"):
            scene = scene_of(record["image"])
            for elem in record["elems"]:
                text, number = singular(elem["caption"])
                boxes = [list(obj.box) for obj in fitting(scene, text)]
                assert boxes == elem["bb"], elem
                assert elem["grain"] == ("absent", "one", "several")[min(2, len(boxes))]
                assert number is None or len(boxes) in (0, number)
                grains[elem["grain"]] += 1
                form = "all" if elem["caption"].startswith("all ") else "number" if number else "the"
                forms[form][elem["grain"]] += 1
        assert len(set(grains.values())) == 1 and len(grains) == 3
    for form, counts in forms.items():
        assert counts["absent"] / counts.total() == pytest.approx(1 / 3, abs=0.12), form


def phrases(folder, grain):
    """(scene, box, text) of every referring phrase of a grain, in all splits."""
    for split in COUNTS:
        for record in read(folder, f"refer_{split}"):
            scene = scene_of(record["image"])
            assert record["id"] == f"{scene.split}/{scene.index:06d}"
            yield from ((scene, elem["bb"], elem["caption"]) for elem in record["elems"] if elem["grain"] == grain)


def test_a_relation_phrase_matches_one_object_and_all_phrases_of_a_scene_exist(folder):
    seen = set()
    for scene, box, text in phrases(folder, "relation"):
        (subject,), relation, _ = meant_by(scene, text)
        assert list(subject.box) == box
        seen.add(relation)
    assert seen == set(SIDES)
    for index in range(20):
        scene = compose_scene(0, "train", index)
        elems = [elem for record in referring_records(scene) for elem in record["elems"]]
        texts = [elem["caption"] for elem in elems if elem["grain"] == "relation"]
        assert texts == [phrase.text for phrase in describe_scene(scene).relations]


def test_an_attribute_phrase_matches_one_object_and_needs_each_of_its_words(folder):
    numbers = Counter()
    for scene, box, text in phrases(folder, "attribute"):
        assert [list(obj.box) for obj in fitting(scene, text)] == [box]
        needed = set(text.split()) - {"the", "shape"}
        for word in needed:
            assert len(fitting(scene, " ".join(needed - {word}))) > 1
        numbers[len(needed)] += 1
    assert numbers[1] and numbers[2]


def test_a_place_phrase_matches_one_object_by_a_clear_margin(folder):
    seen = set()
    for scene, box, text in phrases(folder, "place"):
        place = text.split()[1]
        axis, sign = PLACES[place]
        candidates = fitting(scene, text.replace(f"{place} ", ""))
        assert len(candidates) > 1

        def edge(obj, axis=axis, sign=sign):
            return sign * (obj.box[axis] if sign > 0 else obj.box[axis] + obj.box[axis + 2])

        def centre(obj, axis=axis, sign=sign):
            return sign * obj.centre[axis]

        for reach in (edge, centre):
            first, second = sorted(candidates, key=reach)[:2]
            assert list(first.box) == box
            assert reach(second) - reach(first) >= 0.1 * min(scene.width, scene.height)
        seen.add(place)
    assert seen == set(PLACES)


@pytest.mark.parametrize("split", COUNTS)
def test_only_scenes_with_several_objects_have_referring_phrases(folder, split):
    recorded = {record["id"] for record in read(folder, f"refer_{split}")}
    several = {
        f"{split}/{index:06d}" for index in range(COUNTS[split]) if len(compose_scene(0, split, index).objects) > 1
    }
    assert recorded == several
    assert len(several) < COUNTS[split]


def test_referring_phrases_are_unique_and_depend_only_on_their_scene(folder):
    for record in itertools.chain.from_iterable(read(folder, f"refer_{split}") for split in COUNTS):
        texts = [elem["caption"] for elem in record["elems"]]
        assert len(set(texts)) == len(texts)
    forwards = [refer_in_scene(compose_scene(0, "val", index)) for index in range(6)]
    assert forwards[::-1] == [refer_in_scene(compose_scene(0, "val", index)) for index in reversed(range(6))]


def test_a_phrase_that_becomes_false_by_mirroring_is_recognised(folder):
    for grain in ("relation", "attribute", "place"):
        for _, _, text in phrases(folder, grain):
            assert mentions_side(text) == ("left" in text or "right" in text)


def test_every_word_of_the_held_out_texts_is_one_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    words = set()
    for split in HELD_OUT:
        words.update(word for example in read(folder, f"nlvr_{split}") for word in example["sentence"].split())
        for record in read(folder, f"refer_{split}"):
            words.update(word for elem in record["elems"] for word in elem["caption"].split())
        for record in read(folder, f"retrieval_{split}"):
            words.update(word for text in record["caption"] for word in re.findall(r"\w+", text))
        for record in read(folder, f"vqa_{split}"):
            words.update([*re.findall(r"\w+", record["question"]), record["answer"][0]])
    assert {"pictures", "more", "bottommost", "striped", "how", "many", "there", "yes", "no", "0"} <= words
    assert {word: tokenizer.tokenize(word) for word in words} == {word: [word] for word in words}


def test_the_facts_count_statements_phrases_and_questions(folder):
    facts = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    for split in COUNTS:
        assert facts["sentences"][split] == len(sets_of(folder, split))
        assert facts["questions"][split] == len(read(folder, f"vqa_{split}"))
        grains = Counter(elem["grain"] for record in read(folder, f"refer_{split}") for elem in record["elems"])
        assert facts["referring"][split] == grains


def test_the_same_arguments_give_the_same_files_and_overwriting_removes_old_ones(folder, tmp_path):
    counts = {"train": 12, "val": 4, "test": 4}
    for name in ("a", "b"):
        scenes(output=FolderFlags(out=tmp_path / name), seed=2, **counts)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in folder.iterdir()}
    assert {f"{task}_{split}.jsonl" for task in ("retrieval", "nlvr", "refer", "vqa") for split in COUNTS} < names
    for name in names - {"images", "tokenizer", "tokenizer_multilingual"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    scenes(output=FolderFlags(out=tmp_path / "a", overwrite=True), seed=2, train=1, val=1, test=1)
    assert read(tmp_path / "a", "nlvr_train") == []
    assert len(read(tmp_path / "a", "retrieval_train")) == 1
