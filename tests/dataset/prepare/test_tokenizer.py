"""Transformers loads the project's tokenizer as a fast tokenizer, and training on the same texts writes the same files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dataset.prepare.tokenizer import SPECIAL_TOKENS, train_wordpiece
from demo.scenes.build import VOCABULARY_LIMIT
from demo.scenes.compose import compose_scene
from demo.scenes.records import records_of, texts_of
from demo.scenes.vocabulary import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES
from tests.messages import naming

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def scenes_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    records = [records_of(compose_scene(0, "train", index))[""][0] for index in range(150)]
    texts = [text for record in records for text in texts_of(record)]
    size = train_wordpiece(texts, folder, vocab_size=VOCABULARY_LIMIT)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), size, folder


def test_transformers_loads_a_fast_tokenizer_with_the_whole_vocabulary(scenes_tokenizer):
    tokenizer, size, folder = scenes_tokenizer
    assert tokenizer.is_fast
    # transformers 5: BertTokenizerFast(vocab_file=...) gives 5 tokens without reporting a problem.
    assert len(tokenizer) == size > 50
    listed = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokenizer.convert_ids_to_tokens(list(range(size))) == listed


def test_special_tokens_have_their_positions_as_ids(scenes_tokenizer):
    tokenizer, _, _ = scenes_tokenizer
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (*ids, tokenizer.mask_token_id) == (0, 1, 2, 3, 4)


def test_every_word_of_a_scene_is_one_token(scenes_tokenizer):
    tokenizer, _, _ = scenes_tokenizer
    words = {*SHAPES, *COLOURS, *SIZES, *TEXTURES, *" ".join(RELATIONS).split(), "shape", "scene", "with", "and"}
    words -= {"plain"}
    assert {word: tokenizer.tokenize(word) for word in words} == {word: [word] for word in words}


def test_texts_survive_the_round_trip_without_unknown_words(scenes_tokenizer):
    tokenizer, _, _ = scenes_tokenizer
    encoded = tokenizer("The small Circle left of the blue square")
    assert tokenizer.decode(encoded["input_ids"]) == "[CLS] the small circle left of the blue square [SEP]"
    assert encoded.word_ids() == [None, 0, 1, 2, 3, 4, 5, 6, 7, None]


def test_chinese_characters_are_words_and_japanese_accents_stay(tmp_path):
    train_wordpiece(["红色的袋鼠", "ががか か", "Šedý medvěd"], tmp_path, vocab_size=200)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer.tokenize("红色") == ["红", "色"]
    assert "".join(tokenizer.tokenize("が か šedý")).replace("##", "") == "がかšedý"


def test_case_can_be_kept(tmp_path):
    train_wordpiece(["A Red star", "a red Star"], tmp_path, vocab_size=100, lowercase=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert tokenizer.tokenize("Red red") == ["Red", "red"]


def test_two_processes_write_the_same_files(tmp_path):
    # The order in the library depends on a hash seed that differs between processes.
    code = (
        "import sys; from pathlib import Path; from dataset.prepare.tokenizer import train_wordpiece;"
        "words = [f'{a}{b}{c}' for a in 'bdfgk' for b in 'aeiou' for c in 'lmnrs'];"
        "train_wordpiece(words, Path(sys.argv[1]), vocab_size=60)"
    )
    for name in "abc":
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)],
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    files = {(tmp_path / name / "tokenizer.json").read_bytes() for name in "abc"}
    assert len(files) == 1


def test_a_vocabulary_too_small_for_the_characters_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=naming("vocab_size 8")):
        train_wordpiece(["a red star"], tmp_path, vocab_size=8)
    with pytest.raises(ValueError, match="no word"):
        train_wordpiece(["", "  "], tmp_path, vocab_size=8)
