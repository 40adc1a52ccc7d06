"""``python run.py serve --model M``: a page in the browser on which anyone tries a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, one_line_errors
from utils.flags import positive
from x2vlm.command import add_model, loaded

LOOPBACK = "127.0.0.1"

EXAMPLES = """examples:
  python run.py serve --model runs/demo/pretrain-seed0
  python run.py serve --model runs/demo/captioning-seed0 --model runs/demo/vqa-seed0
  python run.py serve --model runs/demo/pretrain-seed0 --index runs/demo/test.index

The page is for this machine alone unless --host says otherwise; nothing is fetched from the internet. Ctrl-C ends it.

exit status: 0 ended by Ctrl-C; 2 it could not begin"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py serve``."""
    parser = argparse.ArgumentParser(
        prog="run.py serve",
        description="A page in the browser with a tab for each thing that the models can be asked.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    add_model(parser, several=True)
    flag(
        "--index", type=Path, metavar="I", help="an index of images (run.py index) that the first model made, to search"
    )
    flag(
        "--host", default=LOOPBACK, metavar="H", help="address to listen at (default: %(default)s, this machine alone)"
    )
    flag("--port", type=positive, default=7860, metavar="N", help="default: %(default)s")
    flag("--max-mb", type=positive, default=20, metavar="N", help="largest file that is taken (default: %(default)s)")
    flag("--per-minute", type=positive, default=60, metavar="N", help="questions of a visitor (default: %(default)s)")
    return parser.parse_args(argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Load the models, and serve the page until Ctrl-C; returns the exit status."""
    flags = arguments_of(argv)
    from x2vlm.page.abilities import abilities_of
    from x2vlm.page.app import STYLE, Tab, build, gradio

    gr = gradio()
    tabs = []
    for number, source in enumerate(flags.model):
        model, index = loaded(flags, source), None
        if flags.index is not None and number == 0:
            from x2vlm.search.index import ImageIndex

            index = ImageIndex(flags.index, model)
        many = len(flags.model) > 1
        for ability in abilities_of(model, index):
            tabs.append(Tab(f"{ability.name} · {Path(source).name}" if many else ability.name, ability, model.read))
    if not tabs:
        raise UserError(f"{', '.join(flags.model)}: nothing can be asked of these models on the page")
    page = build(tabs, flags.per_minute, "X²-VLM")
    if flags.host != LOOPBACK:
        sys.stderr.write(
            f"the page can be reached by others, at {flags.host}; give no --host to keep it to this machine\n"
        )
    theme = gr.themes.Default(font=["sans-serif"], font_mono=["monospace"])  # Gradio's own are fetched
    try:
        page.launch(
            server_name=flags.host,
            server_port=flags.port,
            share=False,
            max_file_size=flags.max_mb * 1024**2,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            ssr_mode=False,
            theme=theme,
            css=STYLE,
        )
    except OSError as error:
        raise UserError(f"--host {flags.host} --port {flags.port}: {error}; give another --port") from None
    sys.stdout.write(f"http://{flags.host}:{flags.port}\n")
    sys.stdout.flush()
    page.block_thread()
    return 0
