"""Hooks of MkDocs, which add pages that are not files in ``docs/`` and adapt the links of all pages to the site.

The home page is the README. The reference is generated from the code: commands from their help, config keys from the config
classes, and the Python API from docstrings.
"""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]

COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Maps documents outside ``docs/`` to their pages."""

API = {
    "Load a model and ask it": [
        f"x2vlm.{name}" for name in ("load", "Model", "Image", "View", "Box", "BoxScores", "Judgement", "WordMap")
    ],
    "Training steps in your own code": ["x2vlm.Training"],
    "Search images": ["x2vlm.search.index.ImageIndex", "x2vlm.search.index.Hit"],
    "Other libraries": [
        "x2vlm.integrations.mteb.X2VLMEncoder",
        "x2vlm.integrations.mteb.X2VLMReranker",
        "x2vlm.integrations.sentence_transformers.encoder",
        "x2vlm.integrations.sentence_transformers.cross_encoder",
    ],
    "A task of your own": [
        "tasks.kinds.TaskKind",
        "tasks.finetune.FineTuneConfig",
        "tasks.finetune.FineTuneTask",
        "tasks.evaluation.Evaluation",
        "tasks.evaluation.Metric",
        "engine.task.Task",
        "engine.task.TaskModel",
        "batches.base.Batch",
        "batches.losses.Term",
        "models.core.xvlm.XVLM",
        "models.core.heads.MLPHead",
        "dataset.tasks.finetune.FineTuneBatches",
        "dataset.formats.annotations.Row",
        "dataset.formats.annotations.ImageFiles",
        "dataset.broken.BrokenRecordError",
    ],
    "A benchmark suite of your own": [
        "x2vlm.suites.cases.CaseSuite",
        "x2vlm.suites.scoring.Case",
        "x2vlm.suites.scoring.Picture",
    ],
}
"""Sections of the API reference, and the objects that each section documents."""


LOCAL_WORKER = "search/local_worker.js"
"""The script that lets the search work on pages opened as files."""

UNIMPORTANT = "---\nsearch: {boost: 0.01}\n---\n"
"""Front matter of a page that the search lists after all other pages."""


def on_config(config: Any) -> Any:
    """Uses the same anchors as GitHub, where the documents are also read: ``weights--biases`` for "Weights & Biases".

    The plugin ``offline`` would make each page load a script from another server for the search. :data:`LOCAL_WORKER` replaces
    this script.
    """
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    config.extra["polyfills"] = [LOCAL_WORKER]
    return config


def on_post_build(config: Any) -> None:
    """Writes :data:`LOCAL_WORKER`.

    The theme searches in a worker, and a page that was opened as a file may not start a worker from another file. The script
    therefore contains the source of the theme's worker, and starts it from there.
    """
    site = Path(config.site_dir)
    (worker,) = site.glob("assets/javascripts/workers/search.*.js")
    source = json.dumps(worker.read_text(encoding="utf-8").partition("//# sourceMappingURL")[0])
    script = f"""if (location.protocol === "file:") {{
  const source = {source};
  const FileWorker = window.Worker;
  window.Worker = class extends FileWorker {{
    constructor() {{ super(URL.createObjectURL(new Blob([source], {{type: "text/javascript"}}))); }}
  }};
}}
"""
    (site / LOCAL_WORKER).write_text(script, encoding="utf-8")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the generated pages."""
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in COPIED.items()}
    pages["changelog.md"] = UNIMPORTANT + pages["changelog.md"]
    for page, text in {**pages, **reference()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turns links of the repository into links of the site. A link to a file that the site does not show becomes its text."""
    sources = {page: source for source, page in COPIED.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def linked(link: re.Match[str]) -> str:
        path, sharp, anchor = link["target"].partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return link[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = COPIED.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(target) is None:
            if (ROOT / posixpath.dirname(source) / path).exists():
                return link["text"]
            return link[0]  # MkDocs reports it
        relative = posixpath.relpath(target, posixpath.dirname(page.file.src_uri))
        return f"{link['image']}[{link['text']}]({relative}{sharp}{anchor})"

    return re.sub(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", linked, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name other objects as Sphinx does, ``:class:`~module.Name```; show the name alone."""
    return re.sub(r":(?:class|func|meth|data|mod|attr):<code>~?([\w.]*\.)?(\w+)</code>", r"<code>\2</code>", html)


def reference() -> dict[str, str]:
    """Returns the pages of the reference."""
    from commands.config import document

    return {
        "reference/config.md": document(),
        "reference/commands.md": "\n".join(_commands()),
        "reference/api.md": "\n".join(_api()),
    }


def _commands() -> Iterator[str]:
    from commands import COMMANDS
    from run import main

    yield "# Commands\n\nThe help of `python run.py` and of each of its commands.\n"
    yield from ("## Running a task\n", "```text", _printed(main, "--help"), "```\n")
    for name in COMMANDS:
        yield from (f"## {name}\n", "```text", _printed(main, name, "--help"), "```\n")


def _printed(main: Any, *words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(words)
    if status:
        raise RuntimeError(
            f"run.py {' '.join(words)} failed with status {status}, so the reference would be incomplete"
        )
    return printed.getvalue()


def _api() -> Iterator[str]:
    yield "# Python API\n"
    for title, names in API.items():
        yield f"## {title}\n"
        for name in names:
            yield f"::: {name}\n"
