"""What every command that makes a folder of records shares: claiming the folder, writing records, closing it, flags."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UserError

SPLITS = ("train", "val", "test")
_MARKER = ".building"


class LineParser(argparse.ArgumentParser):
    """An argument parser whose complaint is a :class:`~utils.errors.UserError`, so that the user sees one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the parser's complaint as a UserError, with the way to the list of flags."""
        raise UserError(f"{message}; --help lists the flags")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A converter for ``argparse``: an integer from ``low`` to ``high``, both included."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} is not within {low} and {high}")
        return number

    return convert


def split_by_hash(key: str) -> str:
    """The split a key belongs to, for ever: 80 % of keys "train", 10 % "val", 10 % "test", whatever the seed."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest(), "big") % 100
    return "train" if bucket < 80 else "val" if bucket < 90 else "test"


def already_made(out: Path, facts_name: str, arguments: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether ``out`` is complete and is what ``arguments`` would make; always False with ``overwrite``.

    Raises:
        UserError: the folder was made with other arguments and ``overwrite`` is off.
    """
    if overwrite or not (out / facts_name).exists():
        return False
    made_with = read_facts(out / facts_name).get("arguments")
    if made_with != dict(arguments):
        raise UserError(
            f"{out} was made with other arguments ({_difference(made_with, arguments)}); "
            "give another folder, or --overwrite"
        )
    return True


def claim_folder(
    out: Path, facts_name: str, arguments: Mapping[str, Any], owned: Sequence[str], *, overwrite: bool
) -> bool:
    """Make ``out`` ready to be filled, or find that it is already what ``arguments`` would make.

    ``owned`` names what the command writes inside ``out``; only these are ever removed, and only where the facts file or
    the marker of an unfinished run shows that the same command made them.

    Returns:
        False if ``out`` is complete and was made with the same arguments: there is nothing to do.

    Raises:
        UserError: the folder was made with other arguments (and ``overwrite`` is off), holds files of another origin, or
            cannot be written.
    """
    facts_path, marker = out / facts_name, out / _MARKER
    try:
        if already_made(out, facts_name, arguments, overwrite=overwrite):
            return False
        unfinished = marker.exists() and marker.read_text(encoding="utf-8").strip() == facts_name
        ours = facts_path.exists() or unfinished
        present = [name for name in owned if (out / name).exists()]
        if present and not ours:
            raise UserError(f"{out} holds {present[0]}, which this command did not make; give an empty folder")
        out.mkdir(parents=True, exist_ok=True)
        marker.write_text(facts_name + "\n", encoding="utf-8")
        for name in (facts_name, *present):
            _remove(out / name)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    return True


def close_folder(out: Path, facts_name: str, facts: Mapping[str, Any]) -> None:
    """Write the facts file, atomically and last: a folder that has it is complete."""
    partial = out / (facts_name + ".part")
    partial.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, out / facts_name)
    _remove(out / _MARKER)


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a facts file.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); remove it, or give --overwrite") from error
    if not isinstance(facts, dict):
        raise UserError(f"{path} is no JSON object; remove it, or give --overwrite")
    return facts


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line (UTF-8) and return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def fill_and_tell(out: Path, facts_name: str, fill: Callable[[], object], said: Callable[[dict[str, Any]], str]) -> int:
    """``fill()`` the folder ``out``, and print in one line what ``said`` makes of its facts, or that nothing was to be done.

    Returns:
        The exit status, 0.
    """
    facts_path = out / facts_name
    before = facts_path.stat().st_mtime_ns if facts_path.exists() else None
    fill()
    if before is not None and facts_path.stat().st_mtime_ns == before:
        sys.stdout.write(f"{out} is already complete with these arguments; nothing to do\n")
    else:
        sys.stdout.write(f"{out}: {said(read_facts(facts_path))}\n")
    return 0


def tally(counts: Mapping[str, int]) -> str:
    """ "382 train, 48 val", or "nothing"."""
    return ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing"


def _difference(made_with: Any, arguments: Mapping[str, Any]) -> str:
    if not isinstance(made_with, dict):
        return "which it does not name"
    keys = [key for key in {**made_with, **arguments} if made_with.get(key) != arguments.get(key)]
    return ", ".join(f"{key}={made_with.get(key)}, not {arguments.get(key)}" for key in keys)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
