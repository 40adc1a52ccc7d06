"""``python -m tests.recipes.mutations`` changes every marked value in a copy of ``configs/``, and lists changes that no check
notices.

A change is noticed if the oracle (``tests/recipes/oracle.py``) reports it for a config that has the value, or if that config is
no longer valid.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.recipes.marks import Key, own_leaves, resolved_leaves
from tests.recipes.oracle import ROOT, differences, expected_of, load, runs_of_the_paper
from utils.errors import UserError

OTHER_NAMES = {
    "released": "exact",
    "negative": "ignore",
    "mean": "tokens",
    "own": "shared",
    "linear": "cosine",
    "stored": "shown",
    "fp32": "bf16",
    "testA": "testB",
    "testB": "testA",
    "test": "val",
    "val": "test",
    "train": "val",
    "de": "fr",
    "video_qa": "vqa",
}


@dataclass(frozen=True)
class Mutation:
    """A marked value in a file, and a config (folder/file) that gets the value from this file, or None if no config does."""

    file: Path
    key: Key
    value: Any
    config: str | None

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}: {'.'.join(self.key)} = {self.value!r} -> {other(self.value)!r}"


def other(value: Any) -> Any:
    """Another value of the same type: plus one, times ten, negated, another name, or a shorter list."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 10 if value else 1.0
    if isinstance(value, list):
        return value[:-1] if len(value) > 1 else [other(value[0])]
    if value is None:
        return 1.0
    return OTHER_NAMES.get(value, f"{value}_other")


def all_mutations() -> list[Mutation]:
    """One mutation for each marked value in the files that the paper's configs consist of."""
    users: dict[tuple[Path, Key], str] = {}
    for name, path in runs_of_the_paper().items():
        for key, leaf in resolved_leaves(path).items():
            users.setdefault((leaf.file, key), name)
    files = sorted({file for file, _ in users})
    return [
        Mutation(file, key, _plain(leaf.value), users.get((file, key)))
        for file in files
        for key, leaf in own_leaves(file).items()
        if leaf.mark
    ]


def copy_of_configs(folder: Path) -> Path:
    """Copies ``configs/`` into a folder and returns the copy."""
    return Path(shutil.copytree(ROOT / "configs", folder / "configs"))


def notice(mutation: Mutation, copy: Path) -> list[str]:
    """Applies the mutation to ``copy`` and undoes it. Returns the reported differences. If the result is empty, no check guards
    the value."""
    if mutation.config is None:
        return []
    path = copy / mutation.file.relative_to(ROOT / "configs")
    original = path.read_text(encoding="utf-8")
    path.write_text(_mutated(original, mutation), encoding="utf-8")
    try:
        config = load(copy / f"{mutation.config}.yaml").model_dump(mode="json")
        return differences(config, expected_of(mutation.config))
    except UserError as error:
        return [str(error)]
    finally:
        path.write_text(original, encoding="utf-8")


def _mutated(text: str, mutation: Mutation) -> str:
    yaml = YAML(typ="rt")
    yaml.width = 1000
    document = node = yaml.load(text)
    *sections, last = mutation.key
    for part in sections:
        node = node[int(part) if isinstance(node, list) else part]
    node[int(last) if isinstance(node, list) else last] = other(mutation.value)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def main() -> int:
    """Makes every mutation, and prints the unnoticed ones and their count. The exit status is 1 if there are any."""
    mutations = all_mutations()
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_configs(Path(folder))
        missed = [mutation for mutation in mutations if not notice(mutation, copy)]
    for mutation in missed:
        sys.stdout.write(f"not noticed: {mutation}\n")
    sys.stdout.write(f"{len(mutations) - len(missed)} of {len(mutations)} mutations noticed\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
