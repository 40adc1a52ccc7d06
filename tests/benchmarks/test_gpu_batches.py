"""The GPU benchmark times batches like the trainer's."""

import json

import pytest
import torch

from batches.base import IGNORE
from benchmarks import step_config
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.dataset.media.test_video import encoded
from tests.engine.test_static_step import batches as made_by_the_trainer
from tests.engine.test_static_step import shapes
from utils.config import load_config


def record_of(stream: str, number: int) -> dict[str, object]:
    words = f"a small red star {number}"
    return {
        "videos": {"video": [encoded(number), encoded(number + 1)], "caption": words},
        "texts": {"text": words},
        "translations": {"source_text": words, "target_text": words},
    }[stream]


@pytest.fixture
def compiled_task(tiny_overrides, tmp_path) -> PretrainTask:
    """A task with all streams, whose texts have the lengths used in the paper's runs."""
    streams = []
    for stream in ("videos", "texts", "translations"):
        path = tmp_path / f"{stream}.jsonl"
        path.write_text("".join(json.dumps(record_of(stream, number)) + "\n" for number in range(8)))
        own = ", text: {max_tokens: 50, max_masks: 16}" if stream == "translations" else ""
        streams.append(f"data.{stream}={{files: [{path}], batch_size: 4{own}}}")
    sizes = ["data.text.max_tokens=30", "data.regions.batch_size=32", "model.vision.video.frames=2"]
    overrides = [*tiny_overrides, *streams, *sizes, "train.compile=true"]
    return PretrainTask.build(load_config("configs/demo/pretrain.yaml", overrides, PretrainConfig))


def test_the_compiled_way_uses_the_trainers_batch_shapes(compiled_task):
    (theirs,) = made_by_the_trainer(compiled_task, 1)
    assert {name.split(".")[0] for name in shapes(theirs)} == {"images", "regions", "videos", "texts", "translations"}
    for batch in step_config.batches_for(compiled_task.config, compiled_task.model, static=True):
        assert shapes(batch) == shapes(theirs)


def test_batch_shapes_also_agree_with_more_images_than_regions(compiled_task):
    regions = compiled_task.config.data.regions.model_copy(update={"batch_size": 2, "max_images": 5})
    data = compiled_task.config.data.model_copy(update={"regions": regions})
    task = PretrainTask.build(compiled_task.config.model_copy(update={"data": data}))
    (theirs,) = made_by_the_trainer(task, 1)
    batch, *_ = step_config.batches_for(task.config, task.model, static=True)
    assert shapes(batch) == shapes(theirs)


def test_all_ways_share_texts_and_token_counts_vary_between_compiled_steps(compiled_task):
    padded, plain = (
        step_config.batches_for(compiled_task.config, compiled_task.model, static=static) for static in (True, False)
    )
    for stream in compiled_task.config.data.streams():
        for ours, theirs in zip(padded, plain, strict=True):
            text, other = getattr(ours, stream).text, getattr(theirs, stream).text
            assert torch.equal(text.text_id, other.text_id)
            assert torch.equal(text.ids[text.mask], other.ids[other.mask])
            assert torch.equal(text.labels[text.labels != IGNORE], other.labels[other.labels != IGNORE])
            assert text.token_count >= other.token_count == int(other.mask.sum())
        assert len({getattr(batch, stream).text.token_count for batch in padded}) > 1
    for ours, theirs in zip(padded, plain, strict=True):
        assert torch.equal(
            ours.translations.other.ids[ours.translations.other.mask],
            theirs.translations.other.ids[theirs.translations.other.mask],
        )
    assert [compiled_task.model.work(batch) for batch in padded] == [compiled_task.model.work(b) for b in plain]


def test_random_texts_contain_no_padding_token_of_any_tokenizer_family(compiled_task):
    batch, *_ = step_config.batches_for(compiled_task.config, compiled_task.model, static=False)
    assert min(part.text.ids[part.text.mask].min() for part in (batch.images, batch.regions, batch.translations)) > 2
