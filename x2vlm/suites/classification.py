"""Zero-shot classification of images, with one folder of images per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import read_text
from utils.progress import progress_bar
from utils.suffixes import IMAGE_SUFFIXES
from x2vlm.base import LoadedModel, Matcher
from x2vlm.inputs import View
from x2vlm.suites.scoring import all_scores, check_scores, grey_view
from x2vlm.suites.suite import CONDITIONS, SCORES, TIES, Judged, Suite, unreadable_note

NAMES, TEMPLATES = "classnames.txt", "templates.txt"
DEFAULT_TEMPLATE = "a photo of a {c}"
CANDIDATES = 10
"""Number of classes that are re-ranked by the matching head."""


@dataclass(frozen=True)
class Folders:
    """The images, each with the index of its class, the names of the classes, and the templates of the texts."""

    images: list[tuple[Path, int]]
    names: list[str]
    templates: list[str]

    def texts(self, template: str) -> list[str]:
        return [template.replace("{c}", name) for name in self.names]


@dataclass(frozen=True, kw_only=True)
class ClassificationSuite(Suite[Folders]):
    """Compares each image with the texts of all classes."""

    measures: tuple[str, ...] = ("top-1", "top-5")

    def files(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        return [name for name in (NAMES, TEMPLATES) if (folder / name).is_file()]

    def read(self, folder: Path, kinds: Sequence[str]) -> Folders:
        if kinds:
            raise UserError(f"{self.title} has no kinds", where=f"--kinds {kinds[0]}", remedy="omit it")
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if len(folders) < 2:
            raise UserError(
                f"contains {len(folders)} folders, but each class needs a folder of images",
                where=folder,
                remedy="make one for each class",
            )
        names = [path.name.replace("_", " ") for path in folders]
        if (path := folder / NAMES).is_file():
            names = _lines(path)
            if len(names) != len(folders):
                raise UserError(
                    f"contains {len(names)} names for {len(folders)} folders",
                    where=path,
                    remedy="write one name per line, in the order of the folders",
                )
        if duplicates := [name for name, count in Counter(map(str.lower, names)).items() if count > 1]:
            raise UserError(
                f"two classes are called {duplicates[0]!r}, so no text can distinguish them",
                where=folder,
                remedy="rename one",
            )
        templates = _lines(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else [DEFAULT_TEMPLATE]
        if without := [template for template in templates if "{c}" not in template]:
            raise UserError(
                f"{without[0]!r} has no {{c}} for the class name", where=folder / TEMPLATES, remedy="add it"
            )
        images = [
            (path, index)
            for index, folder_of_class in enumerate(folders)
            for path in sorted(folder_of_class.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not images:
            raise UserError(
                f"its folders contain no images ({', '.join(IMAGE_SUFFIXES)})", where=folder, remedy="add some"
            )
        return Folders(images, names, templates)

    def judge(self, model: LoadedModel, content: Folders) -> Judged:
        check_scores(model)
        classifier, classes = _Classifier(model, content), len(content.names)
        chance = {"top-1": 1 / classes, "top-5": min(1.0, 5 / classes)}
        grey = classifier.scores([grey_view(model)])
        found: dict[str, dict[str, list[np.ndarray]]] = {
            score: {condition: [] for condition in CONDITIONS} for score in SCORES
        }
        kept, best, skipped = [], [], []
        with progress_bar(total=len(content.images), desc="images", unit="image") as bar:
            for start in range(0, len(content.images), model.batch_size):
                batch, views = content.images[start : start + model.batch_size], []
                for path, index in batch:
                    try:
                        views.append(model.read(path))
                        kept.append((path, index))
                    except UserError as error:
                        skipped.append(str(error))
                bar.update(len(batch))
                if not views:
                    continue
                seen, true = classifier.scores(views), np.array([index for _, index in kept[-len(views) :]])
                for score in SCORES:
                    found[score]["model"].append(_hits(seen[score], true))
                    found[score]["text only"].append(_hits(np.repeat(grey[score], len(views), axis=0), true))
                    found[score]["image only"].append(
                        np.tile(list(chance.values()), (len(views), 1))
                    )  # all classes are tied
                best += [
                    {score: _best(scores[row], content.names) for score, scores in seen.items()}
                    for row in range(len(views))
                ]
        if not kept:
            raise UserError(f"no image can be read: {skipped[0]}")
        values = {
            score: {condition: np.concatenate(each) for condition, each in by_condition.items()}
            for score, by_condition in found.items()
        }
        return Judged(
            ["all"] * len(kept),
            [str(path) for path, _ in kept],
            values,
            chance,
            [content.names[index] for _, index in kept],
            [
                {
                    "kind": "all",
                    "image": str(path),
                    "class": content.names[index],
                    "right": {
                        score: dict(zip(self.measures, values[score]["model"][row].tolist(), strict=True))
                        for score in SCORES
                    },
                    "scores": best[row],
                }
                for row, (path, index) in enumerate(kept)
            ],
            [
                f"{classes} classes; templates: {', '.join(content.templates)}",
                *unreadable_note(skipped),
                TIES,
            ],
            {"classes": content.names, "templates": content.templates},
        )


class _Classifier:
    """Computes the scores of images with the texts of all classes. As in CLIP, the embedding of a class is the mean of the
    embeddings of its texts over all templates."""

    def __init__(self, model: LoadedModel, content: Folders):
        means = np.mean([model.embed_texts(content.texts(template)) for template in content.templates], axis=0)
        self.model, self.classes = model, means / np.linalg.norm(means, axis=1, keepdims=True)
        self.matcher = Matcher(model, content.texts(content.templates[0]))

    def scores(self, views: Sequence[View]) -> dict[str, np.ndarray]:
        """Returns the scores (images, classes) for each of :data:`SCORES`. The matching head scores only the best classes by
        cosine; the scores of other classes are -inf."""
        cosines = self.model.embed_images(list(views)) @ self.classes.T
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :CANDIDATES]
        margins = self.matcher.scores(views, [sorted(row) for row in best.tolist()])
        return all_scores(self.model, cosines, np.where(np.isnan(margins), -np.inf, margins))


def _hits(scores: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns whether the true class is first, and whether it is among the first five, (images, 2). Ties count as wrong."""
    own = np.take_along_axis(scores, true[:, None], axis=1)
    ahead = (scores >= own).sum(axis=1) - 1
    ahead = np.where(np.isneginf(own[:, 0]), scores.shape[1], ahead)
    return np.stack([ahead < 1, ahead < 5], axis=1).astype(np.float64)


def _best(scores: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Returns the best classes of an image with their scores, best first."""
    order = np.argsort(-scores, kind="stable")[:CANDIDATES]
    return {names[index]: round(float(scores[index]), 5) for index in order}


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError("is empty", where=path, remedy="add a line, or remove the file")
    return lines


SUITE = ClassificationSuite(
    title="Zero-shot classification",
    paper="protocol of Radford et al.: Learning Transferable Visual Models from Natural Language Supervision, 2021",
    published_at=f"a folder of images for each class; {NAMES} and {TEMPLATES} (one per line, with {{c}}) are optional",
    summaries={"mean of classes": ("parts", ("all",))},
    note=f"the matching head re-ranks the {CANDIDATES} best classes with the first template",
)
