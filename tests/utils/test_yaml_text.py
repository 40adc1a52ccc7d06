"""YAML texts as plain values: merge keys keep their lines, and any malicious text quickly causes one config error and no other
exception."""

import contextlib
import random
import time
from pathlib import Path

import pytest
from pydantic import Field

from tests.messages import OneLine, naming
from utils.config import Config, load_config
from utils.config_files import ConfigError, read_config, read_yaml
from utils.yaml_text import MAX_CHARACTERS, MAX_DEPTH, YamlError, parse

ROOT = Path(__file__).parent.parent.parent


class Optim(Config):
    lr: float
    steps: int = 10
    betas: tuple[float, ...] = ()


class Whole(Config):
    optim: Optim
    names: dict[str, dict[str, int]] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n", {"x": 1, "y": 3}),
        ("a: &a {x: 1, y: 2}\nb: {y: 3, <<: *a}\n", {"x": 1, "y": 3}),  # own keys have priority at any position
        (
            "a: [&a {x: 1}, &b {x: 2, y: 2}]\nb: {<<: [*a, *b]}\n",
            {"x": 1, "y": 2},
        ),  # the earlier of a list has priority
        ("a: &a {x: 1}\nc: &c {<<: *a, y: 2}\nb: {<<: *c, z: 3}\n", {"x": 1, "y": 2, "z": 3}),
        ("a: &a {x: {p: 1}}\nb: {<<: *a, x: {q: 2}}\n", {"x": {"q": 2}}),  # shallow, as specified
        ("b: {<<: {x: 1}, y: 2}\n", {"x": 1, "y": 2}),
        ("b: {'<<': 1}\n", {"<<": 1}),  # a quoted key is an ordinary name
        ("b: {<<: [], x: 1}\n", {"x": 1}),
    ],
)
def test_merge_keys_follow_yaml_1_1(text, values):
    """https://yaml.org/type/merge.html"""
    assert parse(text)[0]["b"] == values


def test_a_merged_key_has_the_location_where_it_is_written(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("names:\n  one: &one\n    x: 1\n    y: 2\n  two:\n    <<: *one\n    y: many\noptim:\n  lr: 1\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [], Whole)
    assert [line.split(" = ")[0] for line in map(str, error.value.findings)] == [f"{path}:7: names.two.y"]
    path.write_text("names:\n  one: &one\n    x: 1\n    y: 2\n  two:\n    <<: *one\noptim:\n  lr: 1\n")
    places = read_config(path).locations
    assert places["names", "two", "x"] == f"{path}:3"
    assert places["names", "two"] == f"{path}:5"


def test_an_override_changes_one_of_two_mappings_that_share_an_anchor(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("names: {one: &a {x: 1}, two: *a}\noptim: {lr: 1}\n")
    config = load_config(path, ["names.two.x=2"], Whole)
    assert config.names == {"one": {"x": 1}, "two": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("0x1F", 31),
        ("0o17", 15),
        ("010", 10),
        ("1_000", 1000),
        ("-.inf", float("-inf")),
        ("no", "no"),
        ("TRUE", True),
        ("~", None),
        ("", None),
        ("2024-01-31", "2024-01-31"),
        ("!!str 5", "5"),
        ("'5'", "5"),
        ("{1: a, no: b}", {"1": "a", "no": "b"}),
        ("[a, [1, {b: 2.5}]]", ["a", [1, {"b": 2.5}]]),
        (str(2**64 - 1), 2**64 - 1),
    ],
)
def test_plain_values_are_parsed(text, value):
    assert parse(text)[0] == value
    assert type(parse(text)[0]) is type(value)


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * 10) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, levels)]
    return "\n".join(lines)


def merge_bomb(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [" + ", ".join([f"*a{i - 1}"] * 10) + "]}" for i in range(1, levels)]
    return "\n".join(lines)


CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 100))])
HOSTILE = {
    "billion laughs": (bomb(10), 5, "more than 20,000 values"),
    "billion laughs by merging": (merge_bomb(10), 5, "more than 20,000 values"),
    "a chain of aliases": (CHAIN, MAX_DEPTH, "nested more than 64 deep"),
    "digits": ("x: 1\ny: " + "9" * 6000, 2, r"'9{20}…9{5} \(6,000 characters\)' does not fit into 64 bits"),
    "hexadecimal digits": ("x: 0x" + "f" * 6000, 1, "does not fit into 64 bits"),
    "10**400": ("x: 1" + "0" * 400, 1, "does not fit into 64 bits"),
    "an exponent": ("x: 1e400", 1, "'1e400' is beyond the range of a float"),
    "lists in lists": ("\nx: " + "[" * 100_000, 2, "nested more than 64 deep"),
    "mappings in mappings": ("".join(" " * i + "a:\n" for i in range(1000)), 64, "nested more than 64 deep"),
    "sequences in sequences": ("- " * 100_000, 1, "nested more than 64 deep"),
    "size": ("# " + "x" * MAX_CHARACTERS, 1, "1,000,002 characters, but a config may have 1,000,000"),
    "NUL": ("x: 1\ny: \0\n", 2, r"contains the character U\+0000"),
    "an escaped NUL": ('x: "\\0"', 1, "contains a character that is not allowed in text"),
    "half a character": ('x: 1\ny: "\\ud800"', 2, "contains a character that is not allowed in text"),
    "a character beyond all": ('x: "\\UFFFFFFFF"', 1, "not valid YAML"),
    "an anchor twice": ("x: &a 1\ny: &a 2\n", 2, "found duplicate anchor 'a'; rename one"),
    "no anchor": ("x: 1\ny: *a\n", 2, "found undefined alias 'a'; "),
    "a key twice": ("x: 1\nx: 2\n", 2, "found duplicate key 'x', first on line 1; keep one"),
    "two merge keys": ("x: &a {y: 1}\nz:\n  <<: *a\n  <<: *a\n", 4, "found duplicate key '<<', first on line 3"),
    "a merged list": ("x: &a [1]\nz: {<<: *a}\n", 2, "<< merges a mapping or a list of mappings"),
    "an object": (
        "x: !!python/object/apply:os.system [echo]\n",
        1,
        "python/object/apply:os.system does not make a plain",
    ),
    "an object as a key": ("? !!python/name:os.system ''\n: 1\n", 1, "a key is tagged .*python/name:os.system"),
    "a custom tag": ("x: !mine 1\n", 1, "the tag !mine does not make a plain value"),
    "a set": ("x: !!set {a, b}\n", 1, "does not make a plain value"),
    "a wrong tag": ("x: !!int many\n", 1, "'many' is not a valid integer; quote it"),
    "a list in itself": ("a: &a [*a]\n", 1, r"&a contains itself by \*a"),
    "a mapping in itself": ("x: 1\na: &a {b: {c: *a}}\n", 2, "&a contains itself"),
    "a mapping merged into itself": ("a: &a {<<: *a}\n", 1, "&a contains itself"),
    "null as a key": ("x: 1\n~: 2\n", 2, "a key is null; keys are names"),
    "nothing as a key": (": 2\n", 1, "a key is null; keys are names"),
    "a list as a key": ("[1, 2]: 3\n", 1, "a key is a list; keys are names"),
    "a mapping as a key": ("? {a: 1}\n: 3\n", 1, "a key is a mapping; keys are names"),
    "a long key": ("k" * 300 + ": 1\n", 1, "a key has 300 characters"),
    "two documents": ("x: 1\n---\ny: 1\n", 2, "but found another document; "),
    "an open quote": ("x: 'abc\n", 2, "found unexpected end of stream; check quotes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malicious_text_is_reported_in_one_line_quickly(tmp_path, name):
    text, line, problem = HOSTILE[name]
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    start = time.process_time()
    for read in (read_yaml, lambda path: read_config(path).values, lambda path: load_config(path, [], Whole)):
        with pytest.raises(ConfigError, match=rf"^{path}:{line}: .*{problem}") as error:
            read(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500
        assert "; " in str(error.value)
    assert time.process_time() - start < 5, "three times"


def test_too_many_values_are_rejected_while_reading(monkeypatch):
    monkeypatch.setattr("utils.yaml_text.MAX_NODES", 100)
    start = time.process_time()
    with pytest.raises(YamlError, match=naming("line 3")):
        parse("x: 1\ny: [" + "1," * 50 + "\n" + "1," * 100_000 + "]")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - {"NUL", "size"}))
def test_a_malicious_override_is_reported_in_one_line(tmp_path, name):
    path = tmp_path / "a.yaml"
    path.write_text("optim: {lr: 1}\n")
    text, _, problem = HOSTILE[name]
    with pytest.raises(ConfigError, match=rf"^command line: .*optim\.lr=.*{problem}") as error:
        load_config(path, [f"optim.lr={text}"], Whole)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("a." * 5000 + "b=1", ("64 deep",)),
        ("optim.lr=.inf", ("optim.lr = inf",)),
        ("optim.lr=.nan", ("optim.lr = nan",)),
        ("optim.steps=1e30", ("optim.steps = 1e+30",)),
        ("optim.betas=[" + "x, " * 500 + "]", ("480 more",)),
        ("optim.lr={a\nb: 1}", ("optim.lr",)),
        ("optim.\x1b[2J=1", ("optim.\\x1b[2J",)),
    ],
)
def test_an_unusual_override_is_reported_in_short_lines(tmp_path, override, problem):
    path = tmp_path / "a.yaml"
    path.write_text("optim: {lr: 1}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, [override], Whole)
    assert OneLine(*problem) in str(error.value).splitlines()
    assert all(line.isprintable() and len(line) < 500 for line in str(error.value).splitlines())
    assert len(str(error.value).splitlines()) <= 21


def test_unusual_files_are_reported_in_one_line(tmp_path):
    def reported(path) -> str:
        with pytest.raises(ConfigError) as error:
            load_config(path, [], Whole)
        assert str(error.value).isprintable()
        return str(error.value)

    path = tmp_path / "a.yaml"
    path.write_bytes("optim: {lr: 1}\n".encode("utf-16"))
    assert reported(path) == OneLine(f"{path}:1", "UTF-8")
    path.write_bytes(b"\xef\xbb\xbfoptim: {lr: 1}\n")  # a byte order mark of Windows editors
    assert load_config(path, [], Whole).optim.lr == 1
    path.write_bytes(b"x: 1\ny: \xff\n")
    assert reported(path) == OneLine(f"{path}:2", "UTF-8")
    with path.open("wb") as file:
        file.truncate(10**12)
    assert reported(path) == OneLine(f"{path}:1", "1,000,000,000,000")
    assert reported(tmp_path) == OneLine(tmp_path, "a folder")
    assert reported(Path("/dev/null")) == OneLine("/dev/null", "YAML")
    assert reported(tmp_path / ("x" * 300)) == OneLine("File name too long")
    assert reported(tmp_path / "a\0b") == OneLine("embedded null")
    assert reported(path / "b.yaml") == OneLine("Not a directory")
    (tmp_path / "loop").symlink_to("loop")
    assert OneLine("symbolic links") in reported(tmp_path / "loop").splitlines()
    path.write_text(f"base: {'x' * 300}\n")
    assert OneLine("base", "relative") in reported(path).splitlines()


def test_bases_that_multiply_are_reported_in_one_line(tmp_path):
    (tmp_path / "0.yaml").write_text("optim: {lr: 1}\n")
    for i in range(1, 30):
        (tmp_path / f"{i}.yaml").write_text(f"base: [{i - 1}.yaml, {i - 1}.yaml]\n")
    with pytest.raises(ConfigError, match=naming("100 files")):
        load_config(tmp_path / "29.yaml", [], Whole)
    assert load_config(tmp_path / "4.yaml", [], Whole).optim.lr == 1


PIECES = [
    *(
        b"&a *a << ! !!int !!set ? : - , [ ] { } | > ' \" # % @ ` --- ... ~ \t \n \r \x00 \x85 \xff \xed\xa0\x80".split(
            b" "
        )
    ),
    *(
        b"\\x",
        b'"\\UFFFFFFFF"',
        b"%YAML 1.1\n---\n",
        b"%TAG ! x\n---\n",
        b"base: ",
        b"<<: *a\n",
        b"9" * 5000,
        b"!<",
        b"0x",
    ),
    *(
        "\u2028\ufeff\U0001f600".encode(),
        b"  ",
        b"\n\n",
        b"&a &b",
        b"*",
        b"&",
        b"2024-01-01",
        b"1e999",
        b"? [",
        b"|9\n",
    ),
]


def test_any_bytes_give_values_or_a_config_error(tmp_path):
    """Real configs mutated with a fixed seed."""
    random_ = random.Random(0)
    texts = [path.read_bytes() for path in sorted(ROOT.glob("configs/*/*.yaml"))]
    texts = [b"".join(text.splitlines(keepends=True)[:12]) for text in texts]
    path = tmp_path / "a.yaml"
    start, read, refused = time.process_time(), 0, 0
    for _ in range(400):
        text = bytearray(random_.choice(texts))
        for _ in range(random_.randint(1, 4)):
            at = random_.randrange(len(text) + 1)
            kind = random_.randrange(4)
            if kind == 0:
                del text[at : at + random_.randint(1, 30)]
            elif kind == 1:
                text[at : at + 1] = bytes([random_.randrange(256)])
            elif kind == 2:
                text[at:at] = random_.choice(PIECES)
            else:
                source = random_.choice(texts)
                text[at:at] = source[(cut := random_.randrange(len(source))) : cut + 40]
        path.write_bytes(bytes(text).replace(b"base:", b"bas:"))
        values = None
        with contextlib.suppress(ConfigError):
            values = read_config(path).values
        assert values is None or isinstance(values, dict)
        read, refused = read + (values is not None), refused + (values is None)
        with contextlib.suppress(YamlError):
            parse(bytes(text).decode("latin-1"))
        if time.process_time() - start > 4:
            break
    assert read > 50 and refused > 50
