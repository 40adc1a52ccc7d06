"""Data sets on the Hugging Face Hub, as entries ``hf:ORG/NAME[@REVISION][/FOLDER_OR_PATTERN]``.

An entry is resolved to the files of one commit. These are files in the Hub cache if they exist, and otherwise URLs that contain
the commit, or downloaded files.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dataset.shards.remote.server import Server
from dataset.shards.remote.shards import RemoteShard
from utils import distributed
from utils.addresses import HUB
from utils.errors import UserError
from utils.hub import REACH_S, check_hub

_ENTRY = re.compile(rf"{HUB}([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/\w+|[^/@]+))?(?:/(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TRAIN = re.compile(r"(^|[/._-])train([/._-])")
"""Recognises the split ``train`` in the path of a file, like the package ``datasets``."""
_CARD = "README.md"
_COPY = "copy the files to this machine and name their folder"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubEntry:
    """A parsed entry.

    Attributes:
        name: ``ORG/NAME``.
        revision: branch, tag or commit; None for the main branch.
        pattern: folder, file or glob pattern in the repository; "" for its Parquet files.
    """

    name: str
    revision: str | None
    pattern: str

    @classmethod
    def parse(cls, entry: str, key: str) -> HubEntry:
        """Parses an entry; raises :class:`UserError`, naming the config ``key``, if the entry is malformed."""
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise UserError(
                f"{entry}: write hf:ORG/NAME, hf:ORG/NAME@REVISION, or either with /FOLDER_OR_PATTERN", where=key
            )
        return cls(match[1], match[2], (match[3] or "").rstrip("/"))

    def __str__(self) -> str:
        at, below = f"@{self.revision}" if self.revision else "", f"/{self.pattern}" if self.pattern else ""
        return f"{HUB}{self.name}{at}{below}"

    @property
    def patterns(self) -> list[str]:
        """File name patterns as the Hub interprets them: ``*`` also matches slashes."""
        if any(sign in self.pattern for sign in "*?["):
            return [self.pattern]
        if "." in self.pattern.rpartition("/")[2]:
            return [glob.escape(self.pattern)]
        return [f"{glob.escape(self.pattern)}/*.parquet" if self.pattern else "*.parquet"]

    def select(self, files: Sequence[str]) -> list[str]:
        """Returns the sorted files that belong to the entry. Without a pattern, these are the files of the split ``train``, or
        all files if there is no such split."""
        found = sorted(file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in self.patterns))
        return ([] if self.pattern else [file for file in found if _TRAIN.search(file)]) or found


def find_hub(entry: str, server: Server) -> list[Path | RemoteShard]:
    """Returns the files of an entry. Files in the Hub cache are used without accessing the network; other files are streamed or
    downloaded, as set in the config.

    Cached files are used even if the branch has since changed on the Hub. Name a commit to pin the version.

    Raises:
        UserError: if the data set does not exist, has no matching files, is gated or private, or the Hub cannot be reached. The
            message is one line.
    """
    key, wanted = server.key, HubEntry.parse(entry, server.key)
    folder = _cached(wanted)
    if folder is not None:
        files = _files_in(folder, wanted)
        _log_once(logging.INFO, f"{key}: {wanted}: {len(files)} files of commit {folder.name}, from the Hub cache")
        _report_licence(wanted.name, _licence_in(folder))
        return [folder / file for file in files]
    check_hub(wanted.name, key, _COPY)
    info = _dataset_info(wanted, key)
    files = wanted.select([file.rfilename for file in info.siblings or ()])
    if not files:
        parquet = sum(file.rfilename.endswith(".parquet") for file in info.siblings or ())
        raise UserError(
            f"{wanted}: no file of the data set matches {wanted.patterns[0]} (it has {parquet} Parquet files)",
            where=key,
            remedy="check the pattern, or use the Hub's conversion of other data sets to Parquet: "
            f"hf:{wanted.name}@refs/convert/parquet",
        )
    if server.config.hub == "stream":
        from huggingface_hub import constants

        base = f"{constants.ENDPOINT}/datasets/{wanted.name}/resolve/{info.sha}"
        found: list[Path | RemoteShard] = [RemoteShard(f"{base}/{file}", server) for file in files]
    else:
        folder = _downloaded(wanted, files, key)
        found = [folder / file for file in files]
    how = "streamed" if server.config.hub == "stream" else "downloaded"
    _log_once(logging.INFO, f"{key}: {wanted}: {len(files)} files of commit {info.sha}, {how}")
    _report_licence(wanted.name, _licence_of(info.card_data))
    return found


def files_of_copy(folder: Path, key: str) -> list[Path]:
    """Returns the Parquet files of a Hub data set that was copied to a folder: the files of the split ``train`` if there is one,
    otherwise all of the data set's files. The list is empty if the folder has no card."""
    if not (folder / _CARD).is_file():
        return []
    files = _files_in(folder, HubEntry(folder.name, None, ""))
    if files:
        _log_once(logging.INFO, f"{key}: {folder}: {len(files)} files from a local copy of a Hub data set")
        _report_licence(str(folder), _licence_in(folder))
    return [folder / file for file in files]


def pinned(entry: str, key: str) -> str:
    """Returns an entry with its current commit as the revision. The commit comes from the Hub cache if it contains the files,
    otherwise from the Hub.

    Raises:
        UserError: see :func:`find_hub`.
    """
    wanted = HubEntry.parse(entry, key)
    if wanted.revision is not None and _COMMIT.fullmatch(wanted.revision):
        return entry
    folder = _cached(wanted)
    if folder is None:
        check_hub(wanted.name, key, _COPY)
    return str(replace(wanted, revision=folder.name if folder is not None else _dataset_info(wanted, key).sha))


def _cached(wanted: HubEntry) -> Path | None:
    """Returns the folder of the data set in the Hub cache, which is named after the commit, or None if files are missing.

    The cache lists the files of commits that it downloaded. Without such a list, the cached files are assumed to be complete.
    """
    from huggingface_hub import snapshot_download

    where: dict[str, Any] = {"repo_type": "dataset", "revision": wanted.revision}
    try:
        folder = Path(snapshot_download(wanted.name, **where, ignore_patterns=["*"], local_files_only=True))
    except Exception:  # the data set is not in the cache
        return None
    found = _files_in(folder, wanted)
    try:
        from huggingface_hub import get_cached_repo_tree

        listed = wanted.select([file.path for file in get_cached_repo_tree(wanted.name, **where)])
    except Exception:  # the list is missing, or the package is too old
        listed = found
    return folder if found and found == listed else None


def _files_in(folder: Path, wanted: HubEntry) -> list[str]:
    return wanted.select([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])


def _dataset_info(wanted: HubEntry, key: str) -> Any:
    """Asks the Hub for the commit, the files and the card of a data set."""
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/datasets/{wanted.name}"
    gated = UserError(
        f"{wanted}: the data set is gated", where=key, remedy=f"accept its terms on {page}, and log in: hf auth login"
    )
    try:
        info = HfApi(endpoint=constants.ENDPOINT).dataset_info(
            wanted.name, revision=wanted.revision, timeout=5 * REACH_S
        )
        if info.gated and not get_token():
            raise gated
    except GatedRepoError:
        raise gated from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{wanted}: {constants.ENDPOINT} has no data set of this name, or it is private",
            where=key,
            remedy="check the name, or log in: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{wanted}: the data set has no such revision", where=key, remedy=f"see {page}/commits"
        ) from None
    except Exception as error:  # any exception of the network layer
        raise _failed(wanted, key, error) from None
    return info


def _downloaded(wanted: HubEntry, files: Sequence[str], key: str) -> Path:
    """Downloads files of a data set, with the progress bar of the Hub's package, and returns their folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                wanted.name,
                repo_type="dataset",
                revision=wanted.revision,
                allow_patterns=[*map(glob.escape, files), _CARD],
            )
        )
    except Exception as error:  # any exception of the network layer
        raise _failed(wanted, key, error) from None


def _failed(wanted: HubEntry, key: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    details = " ".join(str(error).split())[:200]
    return UserError(
        f"{wanted}: the Hub responded with {type(error).__name__}: {details}",
        where=key,
        remedy=f"try again, or {_COPY}",
    )


def _licence_in(folder: Path) -> Any:
    """Returns the licence in the card of a data set in the Hub cache."""
    from huggingface_hub import metadata_load

    try:
        return _licence_of(metadata_load(folder / _CARD))
    except (OSError, ValueError):
        return None


def _licence_of(card: Any) -> Any:
    return (card.get("license_name") or card.get("license")) if card else None


def _report_licence(name: str, licence: Any) -> None:
    if licence:
        stated = ", ".join(map(str, licence)) if isinstance(licence, list) else licence
        _log_once(logging.INFO, f"licence of {name}: {stated}, according to its card")
    else:
        message = "not stated on its card; check whether you may use it"
        _log_once(logging.WARNING, f"licence of {name}: {message}")


@functools.cache
def _log_once(level: int, message: str) -> None:
    if distributed.rank() == 0:
        logger.log(level, message)
