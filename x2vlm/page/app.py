"""The Gradio page: a tab for each request that the models support."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.extras import require
from x2vlm.inputs import Reader
from x2vlm.page.abilities import Ability
from x2vlm.page.limits import KEPT_S, RateLimit

WAITING = 32
"""Maximum number of requests in the queue."""

STYLE = """
footer {display: none !important}
.lines textarea {font-variant-numeric: tabular-nums}
.pictures .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(45%, 200px), 1fr)) !important}
.pictures .grid-wrap, .examples .grid-wrap {min-height: 0 !important; max-height: none !important; height: auto !important}
.pictures .thumbnail-lg {aspect-ratio: auto !important; height: auto !important; padding-bottom: 30px}
.pictures .caption-label {left: 0; right: 0; bottom: 0; max-width: 100%; border: none; text-align: center}
.examples .grid-wrap {padding-top: 30px !important}
.examples .thumbnail-lg {aspect-ratio: 1 !important; height: auto !important; padding: 0}
.examples .caption-label {display: none}
.examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)) !important}
"""
BUTTONS = ["fullscreen", "download"]
"""Buttons of a picture. Gradio's third button, "share", sends the picture to a server."""


@dataclass(frozen=True)
class Tab:
    """A tab: its title, its ability, how its model reads files, the model's name, and example files."""

    title: str
    ability: Ability
    read: Reader
    model: str
    examples: Sequence[Path] = field(default=())


@dataclass(frozen=True)
class Limits:
    """The limits on the requests of each visitor per minute."""

    questions: RateLimit
    files: RateLimit


def gradio() -> Any:
    """Imports and returns gradio.

    Raises:
        UserError: gradio is not installed.
    """
    os.environ.setdefault(
        "GRADIO_ANALYTICS_ENABLED", "False"
    )  # the only way to disable the version check that gradio performs when imported
    return require("gradio", "page", where="serve")


def build(tabs: Sequence[Tab], per_minute: int, title: str) -> Any:
    """Returns the page."""
    gr = gradio()
    limits = Limits(RateLimit(per_minute), RateLimit(2 * per_minute, "files"))
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(60, KEPT_S)) as page:
        gr.Markdown(f"# {title}")
        with gr.Tabs():
            for tab in tabs:
                with gr.Tab(tab.title):
                    gr.Markdown(f"Model: `{tab.model}`")
                    _add(gr, tab, limits)
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def _add(gr: Any, tab: Tab, limits: Limits) -> None:
    """Lays out a tab: files and texts on the left, and the answer on the right, or below if the tab has no files."""
    ability, files, texts = tab.ability, [], []
    with gr.Row() if ability.files else gr.Column():
        with gr.Column():
            if ability.files:
                files = _add_files(gr, tab, limits)
            texts = [gr.Textbox(label=text.label, value=text.example, lines=text.lines) for text in ability.texts]
            button = gr.Button(ability.name, variant="primary")
        with gr.Column():
            lines = gr.Textbox(label="answer", lines=4, interactive=False, elem_classes="lines")
            shown = [lines]
            if ability.pictures == "one":
                shown.append(gr.Image(label="picture", interactive=False, visible=False, buttons=BUTTONS))
            elif ability.pictures == "many":
                shown.append(
                    gr.Gallery(
                        show_label=False,
                        interactive=False,
                        visible=False,
                        buttons=BUTTONS,
                        object_fit="contain",
                        height="auto",
                        elem_classes="pictures",
                    )
                )
    ask = _guarded(gr, limits.questions, lambda *given: _ask(gr, tab, *given))
    button.click(ask, [*files, *texts], shown, api_name=False)
    for text in texts:
        if text.lines == 1:
            text.submit(ask, [*files, *texts], shown, api_name=False)


def _add_files(gr: Any, tab: Tab, limits: Limits) -> list[Any]:
    """Adds the files of a tab, each with a preview, and examples to click."""
    name, kind = re.sub(r"\W+", "-", tab.title), "video" if tab.read.videos is not None else "image"
    many = tab.ability.files > 1
    files = [
        gr.File(label=f"{kind} {number}" if many else kind, file_types=[kind], height=120, elem_id=f"{name}-{number}")
        for number in range(1, tab.ability.files + 1)
    ]
    if tab.examples:
        pictures = [(tab.read.picture(path, 160), path.name) for path in tab.examples]
        examples = gr.Gallery(
            pictures,
            label="examples",
            interactive=False,
            allow_preview=False,
            buttons=[],
            height="auto",
            object_fit="contain",
            elem_classes="examples",
        )
        examples.select(_chosen(gr, tab.examples), files, files, api_name=False)
    with gr.Row():
        label = "frames that the model sees" if kind == "video" else "preview"
        shown = [gr.Image(label=label, interactive=False, visible=False, buttons=BUTTONS) for _ in files]
    for file, image in zip(files, shown, strict=True):
        preview = _guarded(gr, limits.files, lambda path: _preview(gr, tab.read, path))
        file.change(preview, file, image, api_name=False)
    return files


def _chosen(gr: Any, examples: Sequence[Path]) -> Callable[..., Any]:
    """Returns a function that puts a clicked example into the first empty file slot or, if all are full, into the last slot."""

    def chosen(event: Any, *files: Any) -> Any:
        slot = files.index(None) if None in files else len(files) - 1
        updated = [*files[:slot], str(examples[event.index]), *files[slot + 1 :]]
        return updated if len(updated) > 1 else updated[0]

    chosen.__annotations__["event"] = gr.SelectData  # Gradio passes it to a positional parameter of this type
    return chosen


def _preview(gr: Any, read: Reader, path: str | None) -> Any:
    """Returns a preview of an uploaded file."""
    if path is None:
        return gr.update(value=None, visible=False)
    return gr.update(value=read.picture(path), visible=True)


def _ask(gr: Any, tab: Tab, *given: Any) -> Any:
    """Returns the values of the components that show an answer."""
    ability = tab.ability
    files, texts = given[: ability.files], [text or "" for text in given[ability.files :]]
    if None in files:
        raise UserError(
            "upload "
            f"{'the images' if ability.files > 1 else 'a video' if tab.read.videos is not None else 'an image'} first"
        )
    answer = ability.ask(files, texts)
    lines = "\n".join(answer.lines)
    if ability.pictures == "none":
        return lines
    pictures: Any = [(picture.pixels, picture.caption) for picture in answer.pictures]
    if ability.pictures == "one":
        pictures = pictures[0][0]
    return lines, gr.update(value=pictures, visible=bool(answer.pictures))


def _guarded(gr: Any, limit: RateLimit, work: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``work`` so that each client has a rate limit, and user errors are shown on the page without the paths on this
    machine."""

    def guarded(request: Any, *given: Any) -> Any:
        try:
            limit.count(request.client.host if request.client else "")
            return work(*given)
        except UserError as error:
            message = str(error)
            for path in (each for each in given if isinstance(each, str) and os.sep in each):
                message = message.replace(path, Path(path).name)
            raise gr.Error(message, duration=None, print_exception=False) from None

    guarded.__annotations__["request"] = gr.Request  # Gradio passes it to a positional parameter of this type
    return guarded
