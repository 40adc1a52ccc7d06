"""``run.py serve --model M``: serves a web page on which anyone can try a model."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from commands.models import ModelFlags
from utils.commands import FLAGS
from utils.errors import UserError
from utils.flags import Positive, named, read_by, whole_number
from utils.folder_lock import LOCK_FILE, FolderLock
from utils.printing import printed
from utils.rank_variables import LAST_PORT
from utils.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

if TYPE_CHECKING:
    from x2vlm.inputs import Reader
    from x2vlm.page.app import Tab

LOOPBACK = "127.0.0.1"
LOCKED_PREFIX, NEW_PREFIX = "x2vlm-page-", "x2vlm-new-page-"
"""Name prefixes of upload folders in the directory for temporary files: one for locked folders, and one for folders that have no
lock yet."""
EXAMPLE_FILES = 8
"""Maximum number of files from a folder that are offered as examples."""


@FLAGS
@dataclass(frozen=True, kw_only=True)
class PageFlags:
    """Flags that set who can reach the page, and how many questions each visitor may ask.

    Attributes:
        host: address to listen on; by default, only this machine can reach the page.
        name: an additional name that browsers use for this server, such as the name of a proxy in front of it; may be repeated.
        port: port to listen on.
        max_mb: maximum file size, in MB.
        per_minute: maximum number of questions per visitor per minute; the limit for files is twice as high.
    """

    host: Annotated[str, named("HOST")] = LOOPBACK
    name: Annotated[tuple[str, ...], named("NAME")] = ()
    port: Annotated[int, read_by(whole_number(1, LAST_PORT))] = 7860
    max_mb: Positive = 20
    per_minute: Positive = 60


def serve(
    *,
    model: Annotated[list[str], named("MODEL")],
    index: Path | None = None,
    examples: Path | None = None,
    page: PageFlags = PageFlags(),
    running: ModelFlags = ModelFlags(),
) -> int:
    """Serve a web page with a tab for each call that the models support.

    Only this machine can reach the page unless --host says otherwise; nothing is fetched from the internet. Ctrl-C or SIGTERM
    stops the server. With --host, browsers may address it by any IP address, the value of --host, this machine's name, and each
    --name. Requests that other websites make through a visitor's browser are rejected.

    Args:
        model: a run's folder, a weight file, hub:owner/name, or an export; may be repeated.
        index: an index of images to search, which run.py index built with the first model.
        examples: folder of images (or of videos, for a video model), of which visitors can click the first 8 instead of
            uploading a file.

    Examples:
        python run.py serve --model runs/demo/pretrain-seed0
        python run.py serve --model runs/demo/captioning-seed0 --model runs/demo/vqa-seed0
        python run.py serve --model runs/demo/pretrain-seed0 --index runs/demo/test.index --examples data/scenes/images/test

    Returns:
        0 stopped by Ctrl-C or SIGTERM; 2 it could not start
    """
    from x2vlm.page.app import gradio

    gr = gradio()
    with upload_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        _serve(gr, page, _tabs(model, index, examples, running, folder))
    return 0


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Context manager that creates a folder for uploads and drawn pictures, and removes it at the end. The folders of killed
    servers are removed first. The new folder is renamed once it is locked, because until then, another server could mistake it
    for a leftover.

    Gradio's own folder would be shared with other users of the machine, and would not be removed.
    """
    _remove_leftovers(Path(tempfile.gettempdir()))
    new = Path(tempfile.mkdtemp(prefix=NEW_PREFIX))
    with FolderLock(new):
        (new / "files").mkdir()
        folder = new.rename(new.with_name(LOCKED_PREFIX + new.name.removeprefix(NEW_PREFIX)))
        try:
            yield folder / "files"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(temporary: Path) -> None:
    """Removes this user's upload folders whose locks show that their server is dead."""
    for folder in temporary.glob(f"{LOCKED_PREFIX}*"):
        with suppress(
            UserError, FileNotFoundError
        ):  # the folder's server is alive, or another server is removing the folder
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid() and (folder / LOCK_FILE).is_file():
                with FolderLock(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _tabs(
    models: Sequence[str], index: Path | None, examples: Path | None, running: ModelFlags, folder: Path
) -> list[Tab]:
    """Returns the tabs of all models. Examples are copied to ``folder``, which the page may serve.

    Raises:
        UserError: if a model or an index cannot be loaded, no example can be used, or the page supports none of the calls.
    """
    from x2vlm.page.abilities import abilities_of
    from x2vlm.page.app import Tab

    found = []
    for position, source in enumerate(models):
        model, opened = running.load(source), None
        if index is not None and position == 0:
            from x2vlm.search.index import ImageIndex

            opened = ImageIndex(index, model)
            if not len(opened):
                raise UserError(f"--index {index} contains no images")
        copied = copied_examples(examples, folder / "examples", model.read)
        found += [(ability, model.read, Path(source).name, copied) for ability in abilities_of(model, opened)]
    if not found:
        raise UserError(
            "the page supports none of these models' calls",
            where=", ".join(models),
            remedy="docs/using.md lists the calls of each task",
        )
    if examples is not None and not any(copied for *_, copied in found):
        raise UserError("no image or video that these models take is in this folder", where=f"--examples {examples}")
    titles = titles_of([(ability.name, model) for ability, _, model, _ in found])
    return [Tab(title, *each) for title, each in zip(titles, found, strict=True)]


def titles_of(tabs: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the title of each tab: its ability, with the model if several models have this ability, and with a number if the
    title is still ambiguous."""
    abilities = Counter(ability for ability, _ in tabs)
    titles = [ability if abilities[ability] == 1 else f"{ability} · {model}" for ability, model in tabs]
    return [
        title if titles.count(title) == 1 else f"{title} ({1 + titles[:index].count(title)})"
        for index, title in enumerate(titles)
    ]


def copied_examples(source: Path | None, folder: Path, read: Reader) -> list[Path]:
    """Returns copies of the first images, or videos, in a folder and its subfolders that a model can read. Files that
    cannot be read are reported."""
    if source is None:
        return []
    if not source.is_dir():
        raise UserError("no such folder", where=f"--examples {source}", remedy="pass a folder of images")
    kind, suffixes = ("image", IMAGE_SUFFIXES) if read.videos is None else ("video", VIDEO_SUFFIXES)
    files = (path for path in sorted(source.rglob("*")) if path.suffix.lower() in suffixes and path.is_file())
    copied = []
    for index, path in enumerate(islice(filter(partial(_is_readable, read), files), EXAMPLE_FILES)):
        target = folder / f"{kind}-{index}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        copied.append(Path(shutil.copyfile(path, target)))
    return copied


def _is_readable(read: Reader, path: Path) -> bool:
    try:
        read(path)
    except UserError as error:
        sys.stderr.write(f"not used as an example: {printed(str(error))}\n")
        return False
    return True


def _serve(gr: Any, flags: PageFlags, tabs: Sequence[Tab]) -> None:
    """Serves the page until it is stopped by Ctrl-C or SIGTERM."""
    from starlette.middleware import Middleware

    from x2vlm.page.app import STYLE, build
    from x2vlm.page.limits import BodyLimit, SiteCheck, UploadLimit, is_loopback

    page, max_bytes = build(tabs, flags.per_minute, "X²-VLM"), flags.max_mb * 1024**2
    loopback_only = is_loopback(flags.host)
    names = [] if loopback_only else [flags.host, socket.gethostname()]
    if not loopback_only:
        sys.stderr.write(
            f"the page can be reached by others, at {flags.host}; omit --host to restrict it to this machine\n"
        )
    theme = gr.themes.Default(font=["sans-serif"], font_mono=["monospace"])  # Gradio's default fonts are downloaded
    try:
        page.launch(
            server_name=flags.host,
            server_port=flags.port,
            share=False,
            max_file_size=max_bytes,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            theme=theme,
            css=STYLE,
            app_kwargs={
                "middleware": [
                    Middleware(SiteCheck, names, flags.name, loopback_only),
                    Middleware(BodyLimit, max_bytes),
                    Middleware(UploadLimit, 2 * flags.per_minute),
                ]
            },
        )
    except (OSError, OverflowError, UnicodeError) as error:
        cause = str(error).partition(". ")[0]  # the rest is advice for developers
        raise UserError(f"--host {flags.host} --port {flags.port}: {cause}", remedy="use another --port") from None
    sys.stdout.write(f"http://{flags.host}:{flags.port}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: uploads are removed
    page.block_thread()
