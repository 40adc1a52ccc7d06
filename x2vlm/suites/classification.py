"""Zero-shot classification of images in a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import read_text
from utils.progress import progress_bar
from utils.suffixes import IMAGE_SUFFIXES
from x2vlm.base import LoadedModel
from x2vlm.suites.scoring import TIE, check_scores, grey_view, matching_scores
from x2vlm.suites.suite import BLANK, LOOKS, SCORES, Judged, Suite

NAMES, TEMPLATES = "classnames.txt", "templates.txt"
DEFAULT_TEMPLATE = "a photo of a {c}"
CANDIDATES = 10
"""Number of classes that are re-ranked by the matching head."""


@dataclass(frozen=True)
class Folders:
    """Images with the index of their class, the names of the classes, and the templates of their texts."""

    images: list[tuple[Path, int]]
    names: list[str]
    templates: list[str]

    def texts(self, template: str) -> list[str]:
        return [template.replace("{c}", name) for name in self.names]


@dataclass(frozen=True, kw_only=True)
class ClassificationSuite(Suite[Folders]):
    """Each image is compared with the texts of all classes."""

    measures: tuple[str, ...] = ("top-1", "top-5")

    def read(self, folder: Path, kinds: Sequence[str]) -> Folders:
        if kinds:
            raise UserError(f"--kinds {kinds[0]}: {self.title} has no kinds; omit it")
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(folders) < 2:
            raise UserError(
                f"{folder}: has {len(folders)} folders, but a class is a folder of images; make one for each class"
            )
        names = [path.name.replace("_", " ") for path in folders]
        if (path := folder / NAMES).is_file():
            names = _lines(path)
            if len(names) != len(folders):
                raise UserError(
                    f"{path}: has {len(names)} names for {len(folders)} folders; write one on each line, in their order"
                )
        templates = _lines(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else [DEFAULT_TEMPLATE]
        if without := [template for template in templates if "{c}" not in template]:
            raise UserError(f"{folder / TEMPLATES}: {without[0]!r} has no {{c}} for the name of the class; add it")
        images = [
            (path, index)
            for index, of_class in enumerate(folders)
            for path in sorted(of_class.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not images:
            raise UserError(f"{folder}: its folders have no images ({', '.join(IMAGE_SUFFIXES)}); add some")
        return Folders(images, names, templates)

    def judge(self, model: LoadedModel, content: Folders) -> Judged:
        check_scores(model)
        classes, rng = len(content.names), np.random.default_rng(0)
        # As in CLIP: the mean of the normalised embeddings of all templates, normalised again.
        means = np.mean([model.embed_texts(content.texts(template)) for template in content.templates], axis=0)
        prototypes = means / np.linalg.norm(means, axis=1, keepdims=True)
        texts = [*content.texts(content.templates[0]), BLANK]
        temperature = model.runtime.temperature
        if temperature is None:
            raise UserError(f"{model.origin} does not say its temperature; export it again")
        grey_cosines, grey_margins = _scores(model, [grey_view(model)], prototypes, texts)
        found: dict[str, dict[str, list[np.ndarray]]] = {score: {look: [] for look in LOOKS} for score in SCORES}
        named: dict[str, list[str]] = {score: [] for score in SCORES}
        with progress_bar(total=len(content.images), desc="images", unit="image") as bar:
            for start in range(0, len(content.images), model.batch_size):
                batch = content.images[start : start + model.batch_size]
                views = [model.read(path) for path, _ in batch]
                seen = _scores(model, views, prototypes, texts)
                tied = np.zeros((len(views), classes))
                by_look = {
                    "model": seen,
                    "text only": tuple(np.repeat(each, len(views), axis=0) for each in (grey_cosines, grey_margins)),
                    "image only": (tied, tied),
                }
                true = np.array([index for _, index in batch])
                noise = TIE * rng.random(tied.shape)
                for look, (cosines, margins) in by_look.items():
                    both = margins + cosines / temperature
                    for score, of_score in zip(SCORES, (cosines, margins, both), strict=True):
                        ranked = of_score + noise if look == "image only" else of_score
                        found[score][look].append(_hits(ranked, true))
                        if look == "model":
                            named[score] += [content.names[index] for index in ranked.argmax(axis=1)]
                bar.update(len(views))
        values = {score: {look: np.concatenate(each) for look, each in looks.items()} for score, looks in found.items()}
        return Judged(
            ["all"] * len(content.images),
            [str(path) for path, _ in content.images],
            values,
            {"top-1": 1 / classes, "top-5": min(1.0, 5 / classes)},
            [content.names[index] for _, index in content.images],
            [
                {
                    "image": str(path),
                    "class": content.names[index],
                    "named": {score: names[row] for score, names in named.items()},
                }
                for row, (path, index) in enumerate(content.images)
            ],
        )


def _scores(
    model: LoadedModel, views: Sequence, prototypes: np.ndarray, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The cosines, and the log-odds of the matching head for the best classes by cosine, (images, classes) float64. Other classes
    have -inf."""
    cosines = (model.embed_images(list(views)) @ prototypes.T).astype(np.float64)
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :CANDIDATES]
    margins = matching_scores(model, views, texts, [sorted(row) for row in best.tolist()])[:, :-1]
    return cosines, np.where(np.isnan(margins), -np.inf, margins)


def _hits(scores: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Whether the true class is first, and among the first five, (images, 2); ties count as wrong."""
    own = np.take_along_axis(scores, true[:, None], axis=1)
    before = (scores >= own).sum(axis=1) - 1
    before = np.where(np.isneginf(own[:, 0]), scores.shape[1], before)
    return np.stack([before < 1, before < 5], axis=1).astype(np.float64)


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: is empty; write a line, or remove it")
    return lines


SUITE = ClassificationSuite(
    title="Zero-shot classification",
    paper="protocol of Radford et al.: Learning Transferable Visual Models from Natural Language Supervision, 2021",
    published_at=f"a folder of images for each class; {NAMES} and {TEMPLATES} (one a line, with {{c}}) are optional",
    summaries={"mean of classes": ("parts", ("all",))},
    note=f"the matching head re-ranks the {CANDIDATES} best classes with the first template",
)
