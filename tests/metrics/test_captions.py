"""Caption metrics compared with the standard evaluation, which uses Java. It was run once (``tests/golden/captions/make.py``)."""

import doctest
import gc
import importlib
import io
import json
import math
import os
import pickle
import random
import shutil
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from metrics.captions import caption_metrics, caption_scores, java, tokenize, tokenize_references
from metrics.captions.bleu import corpus_bleu
from metrics.captions.cider import CiderD, DocumentFrequencies, cider_d
from metrics.captions.frequencies import read_document_frequencies
from metrics.captions.java import check_java_metrics, java_metrics
from metrics.captions.rouge import rouge_l
from tests.messages import naming
from utils.errors import UserError

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/captions/captions.json").read_text(encoding="utf-8"))
TOKENS, REFERENCE_TOKENS = GOLDEN["candidate_tokens"], GOLDEN["reference_tokens"]


@pytest.mark.parametrize("name", ["ptb", "ngrams", "bleu", "rouge", "cider"])
def test_the_examples_in_the_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(f"metrics.captions.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_tokens_equal_the_java_tokenizer():
    captions = [*GOLDEN["candidates"], *(caption for own in GOLDEN["references"] for caption in own)]
    assert len(set(captions)) > 1000
    made = list(zip(GOLDEN["candidates"], tokenize(GOLDEN["candidates"]), TOKENS, strict=True))
    for own, tokens, expected in zip(
        GOLDEN["references"], tokenize_references(GOLDEN["references"]), REFERENCE_TOKENS, strict=True
    ):
        made += zip(own, tokens, expected, strict=True)
    assert [each for each in made if each[1] != each[2]] == []


def test_scores_equal_the_standard_evaluation_without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    scores = caption_metrics(GOLDEN["candidates"], GOLDEN["references"])
    assert scores == pytest.approx(GOLDEN["scores"], abs=1e-9)
    assert all(score > 0.1 for score in scores.values())


def test_scores_per_image_equal_the_standard_evaluation():
    np.testing.assert_allclose(rouge_l(TOKENS, REFERENCE_TOKENS), GOLDEN["ROUGE-L"], atol=1e-9)
    np.testing.assert_allclose(cider_d(TOKENS, REFERENCE_TOKENS), GOLDEN["CIDEr"], atol=1e-9)


def test_the_tokens_of_a_caption_may_depend_on_the_next_caption():
    assert tokenize(["a man says no.", "5 dogs"]) == ["a man says no.", "5 dogs"]
    assert tokenize(["a man says no.", "dogs"]) == ["a man says no", "dogs"]


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_a_line_break_in_a_caption_counts_as_a_space(line_break):
    assert tokenize([f"a{line_break}dog", "", "a cat"]) == ["a dog", "", "a cat"]


def test_an_empty_list_of_captions_has_no_tokens():
    assert tokenize([]) == []
    assert tokenize([""]) == [""]
    assert tokenize(["", " ?! \U0001f600 ..."]) == ["", "?!"]


def test_bleu_uses_the_shorter_of_two_equally_close_references():
    assert corpus_bleu(["a b c"], [["a b c d", "a b"]], max_n=1) == pytest.approx([1.0])
    assert corpus_bleu(["a b c"], [["a b c d", "x"]], max_n=1) == pytest.approx([math.exp(1 - 4 / 3)])


def test_bleu_clips_word_counts_to_the_best_reference():
    """The example in Papineni et al., 2002, sec. 2.1 with seven times "the", whose precision is 2/7."""
    references = [["the cat is on the mat", "there is a cat on the mat"]]
    assert corpus_bleu(["the the the the the the the"], references, max_n=1) == pytest.approx([2 / 7])


def test_cider_d_of_a_reference_is_10_and_falls_with_repetition():
    references = [["a dog runs on the wide beach"], ["two cats sleep under some red car"]]
    same = [own[0] for own in references]
    np.testing.assert_allclose(cider_d(same, references), [10, 10])
    twice = [f"{caption} {caption}" for caption in same]
    assert (cider_d(twice, references) < 5).all()


def test_an_empty_candidate_scores_nothing():
    assert cider_d([""], [["a dog"]]).tolist() == [0]
    assert rouge_l([""], [["a dog"]]).tolist() == [0]
    assert corpus_bleu([""], [["a dog"]]) == pytest.approx([0] * 4, abs=1e-6)


def test_cider_d_with_the_table_of_a_corpus_scores_a_subset_as_in_the_corpus():
    scorer = CiderD(DocumentFrequencies.of(REFERENCE_TOKENS))
    part = slice(5, None, 7)
    np.testing.assert_allclose(scorer.scores(TOKENS[part], REFERENCE_TOKENS[part]), GOLDEN["CIDEr"][part], atol=1e-9)
    alone = cider_d(TOKENS[part], REFERENCE_TOKENS[part])
    assert np.abs(alone - GOLDEN["CIDEr"][part]).max() > 0.01, "without the table, the scores must differ"


def test_cider_d_caches_references_and_repeats_its_scores():
    scorer = CiderD(DocumentFrequencies.of(REFERENCE_TOKENS), max_cached=20)
    for _ in range(2):
        np.testing.assert_allclose(scorer.scores(TOKENS[:9], REFERENCE_TOKENS[:9]), GOLDEN["CIDEr"][:9], atol=1e-9)


def test_document_frequencies_count_images_not_captions():
    frequencies = DocumentFrequencies.of([["a cat", "a cat a"], ["a dog"]])
    assert frequencies.images == 2
    assert frequencies.counts[("a",)] == 2
    assert frequencies.counts[("a", "cat")] == 1


def usual_table(frequencies: DocumentFrequencies) -> dict:
    """A table in the format of the common pickles."""
    counts: defaultdict = defaultdict(float)
    counts.update({ngram: float(count) for ngram, count in frequencies.counts.items()})
    return {"document_frequency": counts, "ref_len": frequencies.images}


@pytest.mark.parametrize("kind", ["json", 0, 2, 4])
def test_a_table_of_document_frequencies_survives_the_round_trip(tmp_path, kind):
    frequencies = DocumentFrequencies.of(REFERENCE_TOKENS[:50])
    path = tmp_path / ("df.json" if kind == "json" else "coco-train-df.p")
    if kind == "json":
        table = {" ".join(ngram): count for ngram, count in frequencies.counts.items()}
        path.write_text(json.dumps({"document_frequency": table, "ref_len": frequencies.images}))
    else:
        path.write_bytes(pickle.dumps(usual_table(frequencies), protocol=kind))
    read = read_document_frequencies(str(path), "k")
    assert read.images == 50
    assert dict(read.counts) == dict(frequencies.counts)
    scores = cider_d(TOKENS[:50], REFERENCE_TOKENS[:50], read)
    np.testing.assert_allclose(scores, cider_d(TOKENS[:50], REFERENCE_TOKENS[:50]))


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_table_with_code_is_rejected_without_executing_it(tmp_path):
    path, ran = tmp_path / "df.p", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"document_frequency": Trap(ran), "ref_len": 1}))
    with pytest.raises(UserError, match=naming("k", "/df.p", "pickle")):
        read_document_frequencies(str(path), "k")
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists(), "the pickle would have executed code"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "is not a table of document frequencies"),
        ({"document_frequency": {}}, "is not a table of document frequencies"),
        ({"document_frequency": {}, "ref_len": 0}, "is not a table of document frequencies"),
        ({"document_frequency": {"a dog": "x"}, "ref_len": 5}, r"\('a', 'dog'\): 'x' is not an n-gram"),
    ],
)
def test_a_file_that_is_not_a_table_is_reported_in_one_line(tmp_path, content, message):
    for name, data in (("df.json", json.dumps(content).encode()), ("df.p", pickle.dumps(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"^k: {tmp_path}/{name}.*{message}"):
            read_document_frequencies(str(tmp_path / name), "k")


@pytest.mark.parametrize("name", ["df.json", "df.p"])
def test_a_missing_or_damaged_table_is_reported_in_one_line(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(UserError, match=naming("k", path)):
        read_document_frequencies(str(path), "k")
    path.write_bytes(b"{no")
    with pytest.raises(UserError, match=f"^k: {path} is not [^\n]*$"):
        read_document_frequencies(str(path), "k")


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 candidates for 2 images"),
        ([], [], "0 candidates for 0 images"),
        (["a", "b"], [["a"], []], r"references\[1\] is empty"),
    ],
)
def test_captions_that_do_not_match_the_references_are_rejected(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_metrics(candidates, references)


def test_a_missing_package_or_java_is_reported_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=naming("METEOR", "SPICE", "pycocoevalcap")):
        java_metrics(["a"], [["a"]], ["METEOR", "SPICE"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=naming("METEOR", "Java", "PATH")):
        check_java_metrics(["METEOR"])
    with pytest.raises(UserError, match=naming("BLEU", "METEOR, SPICE")):
        check_java_metrics(["BLEU"])
    check_java_metrics([])


def test_a_failing_java_program_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr("metrics.captions.java.check_java_metrics", lambda names: None)
    monkeypatch.setitem(__import__("metrics.captions.java", fromlist=["SCORERS"]).SCORERS, "METEOR", ("json", "Meteor"))
    with pytest.raises(UserError, match=r"^METEOR failed in pycocoevalcap: AttributeError.*"):
        java_metrics(["a"], [["a"]], ["METEOR"])


@pytest.fixture
def installed() -> None:
    """`make test-lowest` runs this file without the package."""
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap: pip install -r requirements-dev.txt")


NEEDS_JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java on the PATH")


def mixed_captions(count: int) -> tuple[list[str], list[list[str]]]:
    """Candidates and references of random words from the recorded captions. They are not part of the recorded evaluation."""
    rng = random.Random(7)
    words = [word for caption in GOLDEN["candidates"] for word in caption.split()]
    made = [[" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(4)] for _ in range(count)]
    return [f"{own[1]} {own[0]}" for own in made], [own[1:] for own in made]


@pytest.mark.slow
@NEEDS_JAVA
def test_tokens_and_scores_of_new_captions_equal_pycocoevalcap(installed):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates, references = mixed_captions(300)
    official_tokens = PTBTokenizer().tokenize(
        {index: [{"caption": caption}] for index, caption in enumerate(candidates)}
    )
    their_references = PTBTokenizer().tokenize(
        {index: [{"caption": caption} for caption in own] for index, own in enumerate(references)}
    )
    assert tokenize(candidates) == [official_tokens[index][0] for index in range(300)]
    assert tokenize_references(references) == [their_references[index] for index in range(300)]
    bleu, _ = Bleu(4).compute_score(their_references, official_tokens, verbose=0)
    expected = {f"BLEU-{n}": score for n, score in enumerate(bleu, start=1)}
    expected["ROUGE-L"], _ = Rouge().compute_score(their_references, official_tokens)
    expected["CIDEr"], _ = Cider().compute_score(their_references, official_tokens)
    assert caption_metrics(candidates, references) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@NEEDS_JAVA
def test_meteor_gives_the_recorded_score(installed):
    """The score was recorded with pycocoevalcap 1.2, which includes Meteor 1.5."""
    references = [["a dog runs on the beach", "a brown dog"], ["two cats sleep under a red car", "cats below a car"]]
    candidates = ["a dog is running at a beach", "cats are sleeping under a car"]
    assert java_metrics(candidates, references, ["METEOR"]) == {"METEOR": pytest.approx(0.37407288828380963)}


@pytest.mark.slow
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_java_that_ends_at_once_is_reported_and_does_not_hang(installed, monkeypatch, tmp_path):
    """The destructor of pycocoevalcap's Meteor waits for a lock that is still held after an error."""
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=r"^METEOR failed in pycocoevalcap: [^\n]*$"):
        java_metrics(["a"], [["a"]], ["METEOR"])
    gc.collect()


def test_ctrl_c_releases_the_lock_that_the_destructor_of_meteor_waits_for(monkeypatch):
    class Meteor:
        lock = threading.Lock()
        meteor_p = SimpleNamespace(stdin=io.BytesIO())

        def compute_score(self, *_):
            self.lock.acquire()
            raise KeyboardInterrupt

    monkeypatch.setattr(java, "check_java_metrics", lambda names: None)
    monkeypatch.setitem(java.SCORERS, "METEOR", ("stuck", "Meteor"))
    monkeypatch.setitem(sys.modules, "stuck", SimpleNamespace(Meteor=Meteor))
    with pytest.raises(KeyboardInterrupt):
        java_metrics(["a"], [["a"]], ["METEOR"])
    assert not Meteor.lock.locked() and Meteor.meteor_p.stdin.closed


def test_cider_and_rouge_are_the_means_of_the_scores_per_image():
    candidates, references = ["a cat sits", "a dog runs"], [["a cat sits down", "the cat"], ["one dog is running"]]
    values, of_images = caption_scores(candidates, references)
    assert values == caption_metrics(candidates, references)
    assert of_images.keys() == {"CIDEr", "ROUGE-L"}, "BLEU is not a mean over images"
    assert {name: scores.mean() for name, scores in of_images.items()} == {name: values[name] for name in of_images}
