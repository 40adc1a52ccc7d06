"""Locates the files of models, in local folders or on the Hugging Face Hub. All downloads go through this module, which first
checks that the Hub can be reached."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.files import check_regular, expanded, path_remedy

CHECKOUT_FOLDERS = ("data", "runs", "weights", "checkpoints")
"""Folders of a checkout. A name that begins with one of these folders is a path, even if the path does not exist yet."""

HUB, TIMM = "hf:", "timm:"
"""Prefixes of the names of models in a config, for models from the Hub and from timm."""

REACH_S = 4.0


def local_folder(name: str, files: Sequence[str], key: str, extra_files: Sequence[str] = ()) -> Path:
    """Returns the local folder ``name``, or the folder in the Hub cache that contains the model, which is downloaded if
    necessary.

    Args:
        name: a folder, or a model on the Hub such as ``bert-base-uncased`` or ``google-bert/bert-base-uncased``. The name may
            begin with ``hf:``.
        files: names or patterns of the required file, in order of preference. The first match is downloaded.
        key: config key that names the model, for error messages.
        extra_files: additional files to download if they exist.

    Raises:
        NotRegularError: if the folder contains a FIFO or a device.
        UserError: if the folder does not exist and the model is not available. Names that look like paths are not looked up on
            the Hub. Without a network connection, the error is raised within five seconds.
    """
    name = name.removeprefix(HUB)
    folder = expanded(name)
    if folder.is_dir():
        for path in folder.iterdir():  # libraries open these files, and would wait for ever for the content of a FIFO
            if not path.is_dir():
                check_regular(path)
        return folder
    if looks_like_path(name):
        raise UserError(f"{name} does not exist", where=key, remedy=path_remedy(name))
    return _cached(name, files) or _fetched(name, files, key, extra_files)


def is_local(name: str, files: Sequence[str]) -> bool:
    """Returns True if nothing has to be downloaded: ``name`` is a folder, or a model in the Hub cache with one of ``files``."""
    name = name.removeprefix(HUB)
    return expanded(name).is_dir() or (not looks_like_path(name) and _cached(name, files) is not None)


def check_hub(name: str, key: str, remedy: str = "use a folder with the model's files") -> None:
    """Checks that the Hub can be reached before a model or data set is downloaded.

    Args:
        name: the model or data set.
        key: the config key that names it.
        remedy: what to do if the Hub cannot be reached.

    Raises:
        UserError: if the Hub cannot be reached.
    """
    check_reachable(f"{key}: {name} is not a local folder and not in the Hub cache", remedy)


def check_reachable(problem: str, remedy: str = "try again where it can be reached") -> None:
    """Raises a :class:`UserError` if the Hub cannot be reached. The message begins with ``problem`` and ends with ``remedy``."""
    from huggingface_hub import constants

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
    if reason:
        raise UserError(f"{problem}, and {constants.ENDPOINT} cannot be reached ({reason})", remedy=remedy)


def looks_like_path(name: str) -> bool:
    """Returns True if ``name`` looks like a path rather than ``model`` or ``owner/model``."""
    first, _, rest = name.partition("/")
    return (
        name.startswith(("/", ".", "~"))
        or "\\" in name
        or "/" in rest
        or Path(name).suffix in (".json", ".txt", ".model", ".pt", ".pth", ".th", ".bin", ".safetensors")
        or bool(rest and (first in CHECKOUT_FOLDERS or os.path.isdir(first)))
    )


def _cached(name: str, files: Sequence[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except Exception:  # not in the cache, or not a valid model name
        return None
    return folder if any(next(folder.glob(pattern), None) for pattern in files) else None


def _fetched(name: str, files: Sequence[str], key: str, extra_files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    check_hub(name, key)
    for file in files:
        try:
            folder = Path(snapshot_download(name, allow_patterns=[file, *extra_files], etag_timeout=REACH_S))
        except Exception as error:  # whatever the network layer raises
            details = " ".join(str(error).split())[:200]
            raise UserError(
                f"{name} is not a local folder, and downloading it from the Hub failed ({type(error).__name__}: "
                f"{details})",
                where=key,
            ) from None
        if next(folder.glob(file), None):
            return folder
    raise UserError(f"{name} is on the Hub, but has none of the files {', '.join(files)}", where=key)


def hub_headers(address: str) -> dict[str, str]:
    """Returns the headers that authorise the logged-in user to download a file from the Hub; empty for other URLs."""
    if "/datasets/" not in address or "/resolve/" not in address:
        return {}
    from huggingface_hub import constants, get_token

    token = get_token() if address.startswith(f"{constants.ENDPOINT}/datasets/") else None
    return {"Authorization": f"Bearer {token}"} if token else {}


def _unreachable(address: str) -> str | None:
    """Returns the reason why the server at the URL ``address`` cannot be reached, or None if it responds. The request runs in a
    thread, because DNS lookups have no timeout."""
    reasons: list[str | None] = []

    def connect() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=REACH_S).close()
            reasons.append(None)
        except urllib.error.HTTPError:  # the server responded
            reasons.append(None)
        except OSError as error:
            reasons.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_S)
    return reasons[0] if reasons else f"no answer in {REACH_S:g} s"
