"""The config system: inheritance, overrides, and reporting all errors at once with location and suggestion."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from tests.messages import OneLine, naming
from utils.config import MAY_CHANGE, MUST_NOT_CHANGE, Config, WhenResumed, dump_config, load_config, when_resumed
from utils.config_files import ConfigError


class Inner(Config):
    lr: float
    steps: int = 10
    names: tuple[str, ...] = ()


class Outer(Config):
    optim: Inner
    other: Inner | None = None
    flag: str = "yes"


@pytest.fixture
def write(tmp_path):
    def make(name: str, text: str):
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def test_numbers_follow_yaml_1_2_and_words_stay_words(write):
    config = load_config(write("a.yaml", "optim: {lr: 1e-4}\nflag: no\n"), [], Outer)
    assert config.optim.lr == 1e-4
    assert config.flag == "no"


def test_bases_are_merged_in_order_and_the_command_line_is_last(write):
    write("one.yaml", "optim: {lr: 1.0, steps: 1}\n")
    write("two.yaml", "optim: {steps: 2, names: [a, b]}\n")
    path = write("run.yaml", "base: [one.yaml, two.yaml]\noptim: {names: [c]}\n")
    config = load_config(path, ["optim.lr=3e-5", "other.lr=2"], Outer)
    assert config.optim == Inner(lr=3e-5, steps=2, names=("c",))
    assert config.other == Inner(lr=2.0)


def test_all_errors_are_reported_at_once_with_file_line_and_suggestion(write):
    path = write("bad.yaml", "optim:\n  lrr: 1\n  steps: many\nfalg: x\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, ["other.lr=fast"], Outer)
    text = str(error.value)
    assert OneLine(f"{path}:2", "optim.lrr", "optim.lr") in text.splitlines()
    assert OneLine(f"{path}:1", "optim.lr", "optim.lr=...") in text.splitlines()
    assert f"{path}:3: optim.steps = 'many'" in text
    assert OneLine(f"{path}:4", "falg", "flag") in text.splitlines()
    assert "command line: other.lr = 'fast'" in text
    assert len(error.value.findings) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: 1}\noptim: {lr: 2}\n", r"bad.yaml:2: found duplicate key"),
        ("optim: [\n", r"bad.yaml:2: "),
        ("- 1\n", r"bad.yaml:1: a config is a mapping"),
        ("base: gone.yaml\n", r"base file .*gone.yaml does not exist"),
        ("base: bad.yaml\n", r"form a cycle"),
        ("base: 3\n", r"base must be a file name"),
    ],
)
def test_a_broken_file_is_reported_in_one_line(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write("bad.yaml", text), [], Outer)


def test_a_missing_file_and_a_malformed_override_are_named(write, tmp_path):
    with pytest.raises(ConfigError, match="no such config file; see the configs in configs/"):
        load_config(tmp_path / "none.yaml", [], Outer)
    path = write("a.yaml", "optim: {lr: 1}\n")
    with pytest.raises(ConfigError, match=r"no such config file; did you mean .*/a\.yaml\?"):
        load_config(tmp_path / "aa.yaml", [], Outer)
    with pytest.raises(ConfigError, match=naming("'optim.lr'", "form")):
        load_config(path, ["optim.lr"], Outer)


def test_a_dumped_config_survives_the_round_trip(write):
    config = load_config(write("a.yaml", "optim: {lr: 1e-8, names: [a]}\nother: null\n"), [], Outer)
    assert load_config(write("b.yaml", dump_config(config)), [], Outer) == config


class Checked(Config):
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError("low exceeds high")
        return self


class Holder(Config):
    span: Checked


def test_a_contradictory_section_is_named_without_its_content(write):
    path = write("a.yaml", "span:\n  low: 3\n  high: 2\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [], Holder)
    assert [*map(str, error.value.findings)] == [OneLine(f"{path}:1", "span", "low", "high")]


def test_a_number_in_place_of_a_section_is_reported_with_the_keys_of_the_section(write):
    with pytest.raises(ConfigError) as error:
        load_config(write("a.yaml", ""), ["span=8"], Holder)
    assert [*map(str, error.value.findings)] == [OneLine("span = 8", "low, high")]


def test_a_contradiction_caused_by_the_command_line_names_it_as_a_location(write):
    class Range(Config):
        low: int = 0
        high: int = 9

        @model_validator(mode="after")
        def _in_order(self):
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    class Whole(Config):
        range: Range = Range()

    path = write("a.yaml", "range: {low: 1}\n")
    with pytest.raises(ConfigError, match=naming(f"{path}:1", "range", "low", "high")):
        load_config(path, ["range.high=0"], Whole)
    with pytest.raises(ConfigError, match=naming("command line", "range", "low", "high")):
        load_config(write("b.yaml", ""), ["range={low: 3, high: 2}"], Whole)


def test_a_wrong_item_is_reported_once(write):
    """Pydantic also reports that the list is too short without the item."""

    class Listed(Config):
        sources: tuple[Literal["given", "made"], ...] = Field(min_length=1)

    with pytest.raises(ConfigError) as error:
        load_config(write("a.yaml", "sources: [swapped]\n"), [], Listed)
    (finding,) = map(str, error.value.findings)
    assert "swapped" in finding and "'given' or 'made'" in finding
    with pytest.raises(ConfigError, match="at least 1 item"):
        load_config(write("a.yaml", "sources: []\n"), [], Listed)


def test_a_config_is_immutable(write):
    config = load_config(write("a.yaml", "optim: {lr: 1}\n"), [], Outer)
    with pytest.raises(ValueError, match="frozen"):
        config.flag = "x"


def test_list_items_cannot_be_overridden_and_typos_are_located_on_the_command_line(tmp_path):
    class Inner(Config):
        names: tuple[str, ...] = ()

    class Outer(Config):
        inner: Inner = Inner()

    path = tmp_path / "a.yaml"
    path.write_text("inner: {names: [a]}\n")
    with pytest.raises(ConfigError, match=naming("command line", "inner.names", "list")):
        load_config(path, ["inner.names.0=b"], Outer)
    with pytest.raises(ConfigError, match=naming("iner", "inner")):
        load_config(path, ["iner.names=[b]"], Outer)


class Numbers(Config):
    steps: int = 1
    rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    mode: bool | Literal["fast"] = False


@pytest.mark.parametrize("override", ["steps=true", "rate=false", "betas=[0.9, true]"])
def test_a_boolean_is_not_accepted_as_a_number(write, override):
    with pytest.raises(ConfigError, match=naming("number", "boolean")):
        load_config(write("a.yaml", "mode: true\n"), [override], Numbers)


def test_a_boolean_is_accepted_where_one_is_expected(write):
    assert load_config(write("a.yaml", "mode: true\n"), [], Numbers).mode is True


class Split(Config):
    file: str = "x"
    shown: Annotated[int, MAY_CHANGE] = 1


class Evaluation(Config):
    when_resumed = WhenResumed.AFFECTS_METRICS

    limit: int = 1
    panels: Annotated[int, MAY_CHANGE] = 1
    validation: Annotated[Split | None, MUST_NOT_CHANGE] = None
    test: dict[str, Split] = Field(default_factory=dict)


class Run(Config):
    lr: float = 1.0
    workers: Annotated[int, MAY_CHANGE] = 1
    evaluation: Evaluation | None = None
    remote: Annotated[Split, MAY_CHANGE] = Split()
    parts: list[Split] = Field(default_factory=list)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lr", MUST_NOT_CHANGE),
        ("workers", MAY_CHANGE),
        ("evaluation", WhenResumed.AFFECTS_METRICS),
        ("evaluation.limit", WhenResumed.AFFECTS_METRICS),
        ("evaluation.panels", MAY_CHANGE),
        ("evaluation.validation", MUST_NOT_CHANGE),
        ("evaluation.validation.file", MUST_NOT_CHANGE),
        ("evaluation.test.mine.file", WhenResumed.AFFECTS_METRICS),
        ("evaluation.test.mine.shown", MAY_CHANGE),
        ("remote.file", MAY_CHANGE),
        ("parts.0.file", MUST_NOT_CHANGE),
        ("parts.0.shown", MAY_CHANGE),
    ],
)
def test_a_key_declares_whether_it_may_change_when_a_run_is_resumed(key, expected):
    assert when_resumed(Run, key) is expected
