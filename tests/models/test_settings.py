"""Some settings, such as the number of heads and eps, do not affect the shapes of weights. If they differ between the weights and
the model, the difference is reported."""

from __future__ import annotations

import json

import pytest

from models.checkpoints.settings import (
    differences_from_published,
    model_section,
    require_same_settings,
    unseen_settings,
)
from models.config import FusionConfig, ModelConfig, TextArchitecture, TextConfig, VisionConfig
from models.core.hub_text import build_text_encoder
from models.core.xvlm import XVLM
from tasks.binding import bind_run
from tests.messages import OneLine, naming
from utils.config_files import ConfigError
from utils.errors import UserError

ARCH = TextArchitecture(vocab_size=40, width=128, layers=1, heads=2, intermediate=32, max_positions=12)
VISION = VisionConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2)
TRAINED = ModelConfig(vision=VISION, text=TextConfig(arch=ARCH), fusion=FusionConfig(layers=1))


def changed(section: str, **values: object) -> ModelConfig:
    """The config of the weights with one section changed."""
    if section == "arch":
        return changed("text", arch=ARCH.model_copy(update=values))
    return TRAINED.model_copy(update={section: getattr(TRAINED, section).model_copy(update=values)})


CHANGES = [
    (changed("fusion", heads=4), "model.fusion.heads is 4 instead of 2", "set model.fusion.heads=2"),
    (changed("fusion", eps=1e-5), "model.fusion.eps is 1e-05 instead of 1e-12", "set model.fusion.eps=1e-12"),
    (changed("vision", heads=4), "model.vision.heads is 4 instead of 2", "set model.vision.heads=2"),
    (
        changed("vision", patch_positions=True),
        "model.vision.patch_positions is True",
        "model.vision.patch_positions=false",
    ),
    (
        changed("arch", eps=1e-5),
        "model.text.arch.eps is 1e-05 instead of 1e-12; model.fusion.eps is",
        "model.text.arch.eps=1e-12",
    ),
    (
        changed("arch", family="roberta"),
        "model.text.arch.family is roberta instead of bert",
        "model.text.arch.family=bert",
    ),
]


@pytest.mark.parametrize(("config", "fragments", "remedy"), CHANGES, ids=[remedy for _, _, remedy in CHANGES])
def test_settings_that_shapes_do_not_show_are_rejected_in_one_line(config, fragments, remedy):
    with pytest.raises(UserError) as caught:
        require_same_settings(XVLM(config), TRAINED, "runs/a/config.yaml", new_text=False)
    message = str(caught.value)
    assert message == OneLine("init.checkpoint", "runs/a/config.yaml")
    assert fragments in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("trained", "now"), [((16, 32), (32, 16)), ((16, 64), 32), ((16, 32), (16, 64)), (32, (16, 64))]
)
def test_positions_of_another_aspect_ratio_with_equal_length_are_rejected(trained, now):
    """The table has the same number of patches in another number of rows, or its grid only looks square."""
    model, config = XVLM(changed("vision", image_size=now)), changed("vision", image_size=trained)
    with pytest.raises(UserError, match=naming("model.vision.image_size is", "set model.vision.image_size=")):
        require_same_settings(model, config, "", new_text=False)


def test_square_grids_of_another_size_are_resized():
    model = XVLM(changed("vision", image_size=(16, 32)))
    for trained in (16, 64, (16, 32)):
        require_same_settings(model, changed("vision", image_size=trained), "", new_text=False)


def test_equal_settings_pass_in_any_notation():
    require_same_settings(XVLM(changed("fusion", heads=2, eps=1e-12)), TRAINED, "", new_text=False)
    require_same_settings(XVLM(changed("arch", init_std=0.1)), TRAINED, "", new_text=False)
    require_same_settings(XVLM(changed("text", dropout=0.5)), TRAINED, "", new_text=False)
    require_same_settings(XVLM(changed("arch", pad_id=1)), TRAINED, "", new_text=False)  # BERT does not use it


def test_a_new_text_encoder_may_differ_but_the_fusion_may_not():
    other = changed("arch", heads=4, eps=1e-5)
    with pytest.raises(
        UserError, match=r"model.fusion.heads is 4 instead of 2; model.fusion.eps .* set model.fusion.heads=2"
    ):
        require_same_settings(XVLM(other), TRAINED, "", new_text=True)
    kept = other.model_copy(update={"fusion": FusionConfig(layers=1, heads=2, eps=1e-12)})
    require_same_settings(XVLM(kept), TRAINED, "", new_text=True)
    with pytest.raises(UserError, match=r"model.text.arch.heads is 4 instead of 2; model.text.arch.eps"):
        require_same_settings(XVLM(kept), TRAINED, "", new_text=False)


def test_settings_unknown_to_a_run_are_not_compared(tmp_path):
    moved = changed("text", arch=None, encoder=str(tmp_path / "gone"))
    assert unseen_settings(moved)["model.fusion.heads"] is None
    require_same_settings(XVLM(TRAINED), moved, "", new_text=False)
    assert model_section({"model": {"fusion": {"from_another_version": 1}}}) is None
    assert model_section({}) is None
    assert model_section({"model": {**TRAINED.model_dump(mode="json"), "embed_dim": 8}}) == TRAINED


def test_published_models_have_one_head_per_64_of_width():
    assert differences_from_published(XVLM(TRAINED)) == []
    assert differences_from_published(XVLM(changed("fusion", heads=4))) == [
        OneLine("model.fusion.heads", "4", "128", "64")
    ]
    assert differences_from_published(XVLM(changed("fusion", eps=1e-5))) == [
        "model.fusion.eps is 1e-05, in published models 1e-12"
    ]
    assert len(differences_from_published(XVLM(changed("arch", heads=1)))) == 2


@pytest.mark.parametrize(
    "key", ["model.vision.depth", "model.fusion.layers", "model.vision.width", "model.vision.heads"]
)
def test_an_absurd_size_is_rejected_before_anything_is_built(key):
    with pytest.raises(ConfigError, match=rf"{key}.*10000000"):
        bind_run("configs/demo/grounding.yaml", [f"{key}=10000000"])


def test_an_absurd_size_in_the_file_of_a_text_encoder_is_rejected(tmp_path):
    encoder = {"model_type": "bert", "num_hidden_layers": 10_000_000}
    (tmp_path / "config.json").write_text(json.dumps(encoder))
    with pytest.raises(UserError, match=naming("num_hidden_layers = 10,000,000", "config.json", "1,000")):
        build_text_encoder(TextConfig(encoder=str(tmp_path)), None)
