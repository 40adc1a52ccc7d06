"""The section ``optim.freeze``."""

import math

import pytest
from pydantic import ValidationError

from optim.config import FreezeConfig, OptimConfig
from tests.messages import OneLine
from utils.config import Config, dump_config, load_config
from utils.config_files import ConfigError
from utils.errors import UserError


class Run(Config):
    optim: OptimConfig


def loaded(tmp_path, *overrides: str) -> Run:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 1.0}\n")
    return load_config(file, list(overrides), Run)


def test_a_part_is_frozen_for_the_whole_run_or_the_first_steps(tmp_path):
    freeze = loaded(tmp_path, "optim.freeze={vision: true, text: 3}").optim.frozen
    assert freeze.steps == {"vision": math.inf, "text": 3}
    assert freeze.frozen_at(0) == freeze.frozen_at(2) == ("vision", "text")
    assert freeze.frozen_at(3) == freeze.frozen_at(10**9) == freeze.always_frozen == ("vision",)
    assert freeze.at_end() == FreezeConfig(vision=True)


def test_one_step_does_not_mean_the_whole_run(tmp_path):
    """In Python, 1 == True."""
    freeze = loaded(tmp_path, "optim.freeze.fusion=1").optim.frozen
    assert (freeze.frozen_at(0), freeze.frozen_at(1)) == (("fusion",), ())
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(Run(optim=OptimConfig(lr=1.0, freeze=freeze))))
    assert load_config(again, [], Run).optim.frozen.steps == {"fusion": 1}


def test_without_the_section_nothing_is_frozen_and_the_config_is_unchanged(tmp_path):
    """Runs of an earlier version do not have this key, and it is compared with null when they resume."""
    config = loaded(tmp_path)
    assert config.optim.freeze is None
    assert config.optim.frozen.steps == {}
    assert loaded(tmp_path, "optim.freeze.vision=false").optim.frozen.frozen_at(0) == ()


def test_blocks_and_their_cache_need_a_frozen_part(tmp_path):
    freeze = loaded(tmp_path, "optim.freeze={vision: 3, vision_blocks: 2, cache: {gigabytes: 1}}").optim.frozen
    assert freeze.steps == {"vision": 3} and freeze.always_frozen == () and freeze.cache.gigabytes == 1
    assert loaded(tmp_path, "optim.freeze={vision: true, cache: {}}").optim.frozen.cache.folder is None
    for wrong, message in {
        "{vision: true, vision_blocks: 2}": "vision is true, which freezes all blocks; remove vision_blocks",
        "{vision: 3, cache: {}}": "cache stores the outputs of frozen blocks, but none are frozen",
    }.items():
        with pytest.raises(ConfigError, match=message):
            loaded(tmp_path, f"optim.freeze={wrong}")


def test_a_parameter_belongs_to_the_part_that_its_name_starts_with():
    freeze = FreezeConfig(vision=True, text=4)
    assert freeze.trains_from("vision.frame_positions") == math.inf
    assert freeze.trains_from("text.embeddings.word_embeddings.weight") == 4
    for name in ("text_head.weight", "contrastive.vision_proj.weight", "decoder.layer.0.output.dense.bias"):
        assert freeze.trains_from(name) == 0


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "null", "yes", "[1]"])
def test_another_value_is_reported_in_one_line(tmp_path, value):
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, f"optim.freeze.vision={value}")
    (line,) = map(str, error.value.findings)
    assert line.startswith("command line: optim.freeze.vision = ")
    assert line == OneLine("true", "false", "1")


def test_an_unknown_part_is_reported_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, "optim.freeze.visoin=true")
    (line,) = map(str, error.value.findings)
    assert line == OneLine("optim.freeze.visoin", "optim.freeze.vision")


@pytest.mark.parametrize("steps", [5, 6])
def test_unfreezing_a_part_after_the_end_is_rejected(steps):
    FreezeConfig(vision=4, text=True).check_steps(5)
    message = (
        f"^optim.freeze.text is {steps}, but the run has only 5 steps and would never train this part; "
        "lower it, or set it to true$"
    )
    with pytest.raises(UserError, match=message):
        FreezeConfig(vision=4, text=steps).check_steps(5)


def test_apex_cannot_add_parameters_later():
    assert OptimConfig(lr=1.0, fused="apex", freeze=FreezeConfig(vision=True)).frozen.steps
    with pytest.raises(ValidationError, match=r"freeze.text.*apex.*fused to auto"):
        OptimConfig(lr=1.0, fused="apex", freeze=FreezeConfig(vision=True, text=5))
