"""Parses YAML into plain values with line numbers. For any input, the parser returns values or raises one :class:`YamlError`, in
bounded time.

ruamel.yaml parses the text into nodes. We construct the values ourselves because ruamel's constructors raise various exceptions
for unusual input, expand aliases without limit, and lose the line numbers of merged keys.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

MAX_CHARACTERS = 1_000_000
MAX_NODES = 20_000
"""Maximum number of values in a text, including keys and expanded aliases. The parser reads about 20,000 values per second."""
MAX_DEPTH = 64
MAX_KEY = 200
"""Maximum number of characters in a key."""

_TAG = "tag:yaml.org,2002:"
_INTEGERS = range(-(2**63), 2**64)

KeyPath = tuple[str, ...]
Lines = dict[KeyPath, int]


class YamlError(Exception):
    """A text cannot be parsed into plain values. ``problem`` says what is wrong, ``remedy`` what to do, and ``line`` is the line
    number, counted from 1."""

    def __init__(self, line: int, problem: str, remedy: str):
        super().__init__(f"line {line}: {problem}; {remedy}")
        self.line, self.problem, self.remedy = line, problem, remedy


def parse(text: str) -> tuple[Any, Lines]:
    """Returns the value of a text (dict, list, str, int, float, bool or None), and the line of each key.

    Supports YAML 1.2 with the merge keys of YAML 1.1. Dates remain strings. Keys are strings; a numeric key is kept exactly as
    written.

    Raises:
        YamlError: if the text is not valid YAML, contains anything other than plain values, or exceeds a limit.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(
            1, f"the text has {len(text):,} characters, but a config may have {MAX_CHARACTERS:,}", "is this a config?"
        )
    root = _compose(text)
    if root is None:
        return None, {}
    _check_size(root, {}, set())
    lines: Lines = {}
    return _value(root, (), lines), lines


class _Composer(Composer):
    """Stops reading as soon as there are too many nodes."""

    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise YamlError(self.parser.peek_event().start_mark.line + 1, *_TOO_MANY)
        return super().compose_node(parent, index)


_TOO_MANY = (
    f"more than {MAX_NODES:,} values after expanding aliases",
    "name many files by a pattern or a folder, or remove aliases",
)
_TOO_DEEP = (f"values are nested more than {MAX_DEPTH} deep", "flatten them")
_CHECK = "check quotes, brackets and indentation"


def _compose(text: str) -> Node | None:
    """Returns the nodes of a text."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    yaml.max_depth = MAX_DEPTH
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ReusedAnchorWarning)
            root: Node | None = yaml.compose(text)
    except YamlError:
        raise
    except ReaderError as error:
        character = error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or "?")
        raise YamlError(
            text.count("\n", 0, error.position) + 1,
            f"contains the character U+{character:04X}, which YAML does not allow",
            "remove it",
        ) from None
    except ReusedAnchorWarning as warning:
        # ruamel's message consists of "found duplicate anchor 'a'" and the locations of both anchors.
        problem = str(warning).strip().split("\n")[0]
        line = int(str(warning).rpartition("line ")[2].split(",")[0])
        raise YamlError(line, f"{problem}", "rename one of the two") from None
    except MaxDepthExceededError as error:
        raise YamlError(_line_of(error), *_TOO_DEEP) from None
    except MarkedYAMLError as error:
        problem = (error.problem or "not valid YAML").strip().split("\n")[0]
        raise YamlError(_line_of(error), f"{problem}", _CHECK) from None
    except Exception as error:  # malformed text can raise any exception inside the parser
        reader = getattr(yaml, "_reader", None)
        line = getattr(reader, "line", 0) + 1
        raise YamlError(line, f"not valid YAML ({type(error).__name__})", _CHECK) from None
    return root


def _line_of(error: MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _check_size(node: Node, known: dict[int, tuple[int, int]], open_nodes: set[int]) -> tuple[int, int]:
    """Returns the number of values in a node and their depth, both with expanded aliases.

    Args:
        node: the node.
        known: the results by ``id``, so that each node is visited once, however many aliases it has.
        open_nodes: ids of the nodes that contain this node.

    Raises:
        YamlError: if the node contains itself, or is too large or too deep.
    """
    line = node.start_mark.line + 1
    if id(node) in open_nodes:
        raise YamlError(line, f"&{node.anchor} contains itself by *{node.anchor}", "write out the value")
    if id(node) not in known:
        children: list[Node] = []
        if isinstance(node, MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, SequenceNode):
            children = node.value
        sizes = [_check_size(child, known, open_nodes | {id(node)}) for child in children]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if size > MAX_NODES:
            raise YamlError(line, *_TOO_MANY)
        if depth > MAX_DEPTH:
            raise YamlError(line, *_TOO_DEEP)
        known[id(node)] = size, depth
    return known[id(node)]


def _value(node: Node, path: KeyPath, lines: Lines) -> Any:
    """Returns the plain value of the node at ``path``, and adds the lines of its keys to ``lines``."""
    line, tag = node.start_mark.line + 1, str(node.tag).removeprefix(_TAG)
    if isinstance(node, MappingNode) and tag == "map":
        values = {}
        for key, (key_node, value_node) in _pairs(node).items():
            lines[(*path, key)] = key_node.start_mark.line + 1
            values[key] = _value(value_node, (*path, key), lines)
        return values
    if isinstance(node, SequenceNode) and tag == "seq":
        return [_value(child, path, {}) for child in node.value]
    if isinstance(node, ScalarNode) and tag in _SCALARS:
        try:
            return _SCALARS[tag](node.value, line)
        except (ValueError, KeyError, IndexError):
            name = _NAMES.get(tag, tag)
            raise YamlError(line, f"{_short(node.value)} is not a valid {name}", "quote it if it is text") from None
    raise YamlError(line, f"the tag {node.tag} does not make a plain value here", "remove it")


def _pairs(node: MappingNode) -> dict[str, tuple[Node, Node]]:
    """Returns the key and value nodes by key: first the keys of the mapping, then merged keys that the mapping does not define.
    Earlier merged mappings take precedence."""
    pairs: dict[str, tuple[Node, Node]] = {}
    merged: list[MappingNode] = []
    merge_line = 0
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if isinstance(key_node, ScalarNode) and str(key_node.tag) == f"{_TAG}merge":
            if merge_line:
                raise YamlError(
                    line, f"found duplicate key '<<', first on line {merge_line}", "merge a list of aliases"
                )
            merge_line = line
            merged = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            if not all(isinstance(source, MappingNode) for source in merged):
                raise YamlError(
                    line, "<< merges a mapping or a list of mappings", "write an alias of one, such as *name"
                )
            continue
        key = _key(key_node, line)
        if key in pairs:
            first = pairs[key][0].start_mark.line + 1
            raise YamlError(line, f"found duplicate key {key!r}, first on line {first}", "keep one of them")
        pairs[key] = (key_node, value_node)
    for source in merged:
        for key, pair in _pairs(source).items():
            pairs.setdefault(key, pair)
    return pairs


def _key(node: Node, line: int) -> str:
    tag = str(node.tag).removeprefix(_TAG)
    if not isinstance(node, ScalarNode) or tag not in ("str", "int", "float", "bool", "timestamp"):
        kind = "a mapping" if isinstance(node, MappingNode) else "a list" if isinstance(node, SequenceNode) else "null"
        kind = kind if tag in ("map", "seq", "null") else f"tagged {node.tag}"
        raise YamlError(line, f"a key is {kind}", "keys are names")
    if len(node.value) > MAX_KEY:
        raise YamlError(line, f"a key has {len(node.value):,} characters, more than {MAX_KEY}", "is this a config?")
    return _text(node.value, line)


def _text(value: str, line: int) -> str:
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise YamlError(line, f"{_short(value)} contains a character that is not allowed in text", "remove it")
    return str(value)


def _integer(value: str, line: int) -> int:
    text = value.replace("_", "").lower()
    base = {"0x": 16, "0o": 8, "0b": 2}.get(text.lstrip("+-")[:2], 10)
    number = int(text, base) if len(text) <= 100 else None  # int() refuses thousands of digits
    if number is None or number not in _INTEGERS:
        raise YamlError(line, f"{_short(value)} does not fit into 64 bits", "use a smaller number")
    return number


def _float(value: str, line: int) -> float:
    text = value.replace("_", "").lower()
    if text.lstrip("+-") in (".inf", ".nan"):
        return float(text.replace(".", ""))
    number = float(text)
    if math.isinf(number):
        raise YamlError(line, f"{_short(value)} is beyond the range of a float", "use a smaller number")
    return number


_SCALARS: Mapping[str, Any] = {
    "str": _text,
    "timestamp": _text,
    "null": lambda value, line: None,
    "bool": lambda value, line: {"true": True, "false": False}[value.lower()],
    "int": _integer,
    "float": _float,
}
"""For each tag, a function of the text of a scalar and its line."""

_NAMES = {"int": "integer", "float": "number", "bool": "boolean"}


def _short(value: str) -> str:
    shown = value if len(value) <= 40 else f"{value[:20]}…{value[-5:]} ({len(value):,} characters)"
    return repr(shown)
