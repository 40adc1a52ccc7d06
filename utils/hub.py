"""Folders by path, or models by their name on the Hugging Face hub; one place asks the hub, and only where it can be reached."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import expanded

OWN_FOLDERS = ("data", "runs", "weights", "checkpoints")
"""Folders of a checkout: a name that begins with one of them is a path, also where it is not there yet."""

REACH_S = 4.0


def local_folder(name: str, files: Sequence[str], key: str, beside: Sequence[str] = ()) -> Path:
    """The folder ``name``, or the one in the hub's cache that holds the model of this name, fetched where it has to be.

    Args:
        name: a folder, or a name on the hub such as ``bert-base-uncased`` or ``google-bert/bert-base-uncased``.
        files: names or patterns of the wanted file, the preferred one first; the first that the model has is fetched.
        key: what names it, for messages.
        beside: files that are fetched with it where there are any.

    Raises:
        UserError: neither; a name that looks like a path is not looked for on the hub. Without network within five seconds.
    """
    folder = expanded(name)
    if folder.is_dir():
        return folder
    if looks_like_path(name):
        raise UserError(f"{key}: {name} does not exist; check the path (it is relative to {Path.cwd()})")
    return _cached(name, files) or _fetched(name, files, key, beside)


def is_local(name: str, files: Sequence[str]) -> bool:
    """Whether ``name`` is a folder, or a model in the hub's cache with one of ``files``: nothing has to be fetched."""
    return expanded(name).is_dir() or (not looks_like_path(name) and _cached(name, files) is not None)


def check_hub(name: str, key: str) -> None:
    """Raise a :class:`UserError` with ``key``, which names a model to be fetched, if the hub cannot be asked."""
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if reason:
        raise UserError(
            f"{key}: {name} is no folder and not in the hub's cache, and {constants.ENDPOINT} cannot be asked ({reason}); give a "
            "folder with the model's files"
        )


def looks_like_path(name: str) -> bool:
    """Whether ``name`` is meant as a path and not as ``model`` or ``owner/model``."""
    first, _, rest = name.partition("/")
    return (
        name.startswith(("/", ".", "~"))
        or "\\" in name
        or "/" in rest
        or Path(name).suffix in (".json", ".txt", ".model", ".pt", ".pth", ".th", ".bin", ".safetensors")
        or bool(rest and (first in OWN_FOLDERS or Path(first).is_dir()))
    )


def _cached(name: str, files: Sequence[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except Exception:  # not there, or no name that the hub knows
        return None
    return folder if any(next(folder.glob(pattern), None) for pattern in files) else None


def _fetched(name: str, files: Sequence[str], key: str, beside: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    check_hub(name, key)
    for file in files:
        try:
            folder = Path(snapshot_download(name, allow_patterns=[file, *beside], etag_timeout=REACH_S))
        except Exception as error:  # whatever the network layer raises
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"{key}: {name} is no folder, and the hub does not give it ({type(error).__name__}: {said})"
            ) from None
        if next(folder.glob(file), None):
            return folder
    raise UserError(f"{key}: {name} is on the hub, but holds none of {', '.join(files)}")


def _unreachable(address: str) -> str | None:
    """Why nothing answers at ``address``; None where something does. A thread asks, since looking up a name has no time limit."""
    reasons: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=REACH_S).close()
            reasons.append(None)
        except urllib.error.HTTPError:  # an answer
            reasons.append(None)
        except OSError as error:
            reasons.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_S)
    return reasons[0] if reasons else f"no answer in {REACH_S:g} s"
