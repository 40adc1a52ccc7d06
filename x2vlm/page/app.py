"""The page, in Gradio: a tab for each thing that the models can be asked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from x2vlm.inputs import Reader
from x2vlm.page.abilities import Ability
from x2vlm.page.limits import RateLimit

SIDE = 480
"""Pixels of the longer side of an image that was uploaded, as it is shown."""
WAITING = 32
"""Questions that wait for their turn, at most."""

STYLE = "footer {display: none !important} .lines textarea {font-variant-numeric: tabular-nums}"


@dataclass(frozen=True)
class Tab:
    """A tab: its title, what it asks, and how its model reads files."""

    title: str
    ability: Ability
    read: Reader


def gradio() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio has no argument for the check at its import
    try:
        import gradio
    except ImportError:
        raise UserError('serve: needs gradio, which is not installed: pip install ".[page]"') from None
    return gradio


def build(tabs: Sequence[Tab], per_minute: int, title: str) -> Any:
    """The page."""
    gr, limit = gradio(), RateLimit(per_minute)
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        with gr.Tabs():
            for tab in tabs:
                with gr.Tab(tab.title):
                    _add(gr, tab, limit)
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def _add(gr: Any, tab: Tab, limit: RateLimit) -> None:
    """Lay out a tab: files and text on the left, what is answered on the right."""
    name = re.sub(r"\W+", "-", tab.title)
    ability, kind = tab.ability, "video" if tab.read.videos is not None else "image"
    with gr.Row():
        with gr.Column():
            files = [
                gr.File(
                    label=f"{kind} {number}" if ability.files > 1 else kind,
                    file_types=[kind],
                    elem_id=f"{name}-{number}",
                )
                for number in range(1, ability.files + 1)
            ]
            shown = [gr.Image(label="as the model reads it", interactive=False, visible=False) for _ in files]
            text = gr.Textbox(label=ability.text, value=ability.example, lines=3, visible=bool(ability.text))
            button = gr.Button(ability.name, variant="primary")
        with gr.Column():
            lines = gr.Textbox(label="answer", lines=4, interactive=False, elem_classes="lines")
            picture = gr.Image(label="picture", interactive=False, visible=False)
    for file, image in zip(files, shown, strict=True):
        file.change(_guarded(gr, limit, lambda path: _preview(gr, tab.read, path)), file, image, api_name=False)
    button.click(
        _guarded(gr, limit, lambda *given: _ask(gr, ability, *given)), [*files, text], [lines, picture], api_name=False
    )


def _preview(gr: Any, read: Reader, path: str | None) -> Any:
    """A file that was uploaded, as the model reads it."""
    if path is None:
        return gr.update(value=None, visible=False)
    return gr.update(value=read.picture(path, SIDE), visible=True)


def _ask(gr: Any, ability: Ability, *given: Any) -> tuple[str, Any]:
    *files, text = given
    if None in files:
        raise UserError(f"upload {'the images' if ability.files > 1 else 'an image'} first")
    answer = ability.ask(files, text or "")
    return "\n".join(answer.lines), gr.update(value=answer.picture, visible=answer.picture is not None)


def _guarded(gr: Any, limit: RateLimit, work: Callable[..., Any]) -> Callable[..., Any]:
    """``work`` with the limit of its client, whose mistakes are told in the page, without the folders of this machine."""

    def guarded(*given: Any, request: Any = None) -> Any:
        try:
            limit.count(request.client.host if request is not None and request.client else "")
            return work(*given)
        except UserError as error:
            message = str(error)
            for path in (each for each in given if isinstance(each, str) and os.sep in each):
                message = message.replace(path, Path(path).name)
            raise gr.Error(message, duration=None, print_exception=False) from None

    guarded.__annotations__["request"] = gr.Request
    return guarded
