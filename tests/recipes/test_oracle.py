"""The paper's configs have the values of the paper and of the released configurations, and changed values are noticed."""

import pytest
from ruamel.yaml import YAML

from tests.recipes.marks import COMMENT, MARK, resolved_leaves
from tests.recipes.mutations import all_mutations, copy_of_configs, notice, other
from tests.recipes.oracle import ROOT, differences, expected_of, runs_of_the_paper, shipped

RUNS = runs_of_the_paper()
FILES = sorted({leaf.file for path in RUNS.values() for leaf in resolved_leaves(path).values()})


@pytest.mark.parametrize("name", RUNS)
def test_a_config_has_the_values_of_its_sources(name):
    expected = expected_of(name)
    assert expected
    assert differences(shipped(name).model_dump(mode="json"), expected) == []


@pytest.mark.parametrize("name", RUNS)
def test_exactly_the_values_of_the_paper_and_the_release_are_marked(name):
    """A mark that is not in the oracle's sources, or that names another location than the source, is a claim that nobody has
    checked."""
    marked = {".".join(key): leaf.mark for key, leaf in resolved_leaves(RUNS[name]).items() if leaf.mark}
    assert marked == {key: value.mark() for key, value in expected_of(name).items() if value.mark()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_comment_that_starts_like_a_mark_is_a_valid_mark(path):
    """`# paper` without a location, or with two, looks like a mark but is not valid. Lines are never marked as `ours`."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        comment = COMMENT.match(line.strip())
        if comment and not line.strip().startswith("#"):
            text = comment["text"]
            assert not text.startswith(("paper", "released")) or MARK.match(text), f"{path}:{number}: {line}"
            assert "ours" not in text, f"{path}:{number}: {line}"
        elif line.startswith(" "):
            assert not MARK.match(line.strip("# ")), f"{path}:{number}: a mark must be on the line of its value"


MUTATIONS = [
    ("retrieval/coco_base_4m", "evaluation.candidates=8"),
    ("retrieval/coco_large_1b", "evaluation.test.coco_5k.splits=[val]"),
    ("retrieval/coco_base_1b", "data.train.splits=[train]"),
    ("retrieval/coco_base_4m", "data.train.splits=[train,restval,test]"),
    ("retrieval/coco_base_4m", "evaluation.validation.splits=[test]"),
    ("retrieval/flickr30k_base_4m", "evaluation.candidates=80"),
    ("retrieval/flickr30k_large_1b", "train.global_batch=512"),
    ("retrieval/flickr30k_large_1b", "init.checkpoint=weights/x2vlm_large_4m.th"),
    ("retrieval/msrvtt_base", "model.vision.video.frames=8"),
    ("retrieval/msrvtt_large", "evaluation.test.msrvtt_1k.annotations=data/msrvtt/MSRVTT_train.9k.csv"),
    ("retrieval/multi30k_base", "evaluation.test.de.language=fr"),
    ("retrieval/coco_multilingual_large", "data.train.annotations=data/coco_multilingual/karpathy_train.jsonl"),
    ("vqa/vqa2_base_4m", "optim.lr=4.0e-3"),
    ("vqa/vqa2_base_4m", "data.train.1.image_share=[0.0,1.0]"),
    ("vqa/vqa2_large_4m", "evaluation.validation.image_share=[0.0,0.1]"),
    ("vqa/vqa2_large_4m", "schedule.warmup_steps=0.1"),
    ("vqa/vqa2_large_1b", "model.vision.image_size=384"),
    ("vqa/vqa2_base_1b", "evaluation.ranking=likelihood"),
    ("vqa/msvd_qa_base", "model.vision.video.frames=5"),
    ("vqa/msrvtt_qa_large", "model.vision.image_size=224"),
    ("nlvr/nlvr2_base_4m", "evaluation.test.test-P.annotations=data/nlvr2/data/dev.json"),
    ("grounding/refcoco_plus_base_4m", "evaluation.test.testB.splits=[testA]"),
    ("grounding/refcoco_plus_large_4m", "model.text.drop_path=0.0"),
    ("captioning/coco_base_4m", "model.vision.image_size=384"),
    ("captioning/coco_large_1b", "data.train.splits=[train]"),
    ("captioning/coco_large_1b", "loss.label_smoothing=0.0"),
    ("captioning/coco_base_1b", "evaluation.decoding.beams=5"),
    ("pretrain/base_4m", "schedule.warmup_steps=25000"),
    ("pretrain/base_4m", "loss.giou=2.0"),
    ("pretrain/base_4m", "data.text.mask_prob=0.15"),
    ("pretrain/large_4m", "optim.lr=5.0e-3"),
    ("pretrain/large_4m", "train.steps=500000"),
    ("pretrain/base_1b", "data.matching_steps=null"),
    ("pretrain/large_1b", "data.images.clean.probability=0.85"),
    ("pretrain/base_1b_stage2", "init.checkpoint=weights/x2vlm_base_4m.th"),
    ("pretrain/large_1b_stage2", "model.vision.video.frames=4"),
    ("pretrain/multilingual_base", "optim.text_lr=8.0e-6"),
    ("pretrain/multilingual_base", "evaluation.files=[data/pretrain/coco]"),
]


@pytest.mark.parametrize(("name", "override"), MUTATIONS)
def test_a_changed_value_is_reported_with_its_source(name, override):
    key, _, value = override.partition("=")
    config = shipped(name).model_dump(mode="json")
    _set(config, key.split("."), value)
    [line] = differences(config, expected_of(name))
    assert line.startswith(f"{key} = ")
    assert ", but paper, " in line or ", but released, " in line or ", but ours, " in line


def test_every_marked_value_is_in_use():
    """A mark on a value that every config overrides would make a claim that applies to no run."""
    assert [str(mutation) for mutation in all_mutations() if mutation.config is None] == []


def test_a_sample_of_changed_values_is_noticed(tmp_path):
    """``python -m tests.recipes.mutations`` checks all of them."""
    mutations, copy = all_mutations(), copy_of_configs(tmp_path)
    assert len(mutations) > 200
    assert [str(mutation) for mutation in mutations[::9] if not notice(mutation, copy)] == []
    assert (copy / "presets/vqa.yaml").read_text() == (ROOT / "configs/presets/vqa.yaml").read_text()


@pytest.mark.parametrize("value", [True, 0, 0.0, 3, 0.1, "testA", "linear", None, [1], ["a", "b"]])
def test_a_mutation_changes_the_value(value):
    assert other(value) != value


def test_the_oracle_reports_only_differences():
    name = "retrieval/coco_base_4m"
    config = shipped(name).model_dump(mode="json")
    config["evaluation"]["batch_size"] = 7
    assert differences(config, expected_of(name)) == []
    del config["evaluation"]["candidates"]
    assert differences(config, expected_of(name)) == ["evaluation.candidates = 'absent', but paper, appendix A.1: 80"]


def _set(config, parts: list[str], text: str) -> None:
    """Sets a value in a resolved config like an override. Overrides cannot change elements of lists."""
    for part in parts[:-1]:
        config = config[int(part) if isinstance(config, list) else part]
    last = int(parts[-1]) if isinstance(config, list) else parts[-1]
    value = YAML(typ="safe").load(text)
    assert config[last] != value
    config[last] = value
