"""Zero-shot retrieval on COCO and Flickr30k, from images to captions and from captions to images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dataset.config import CaptionedSplitConfig
from dataset.formats.annotations import check_unique
from dataset.formats.captioned import CaptionedImages, read_captioned_images
from metrics.retrieval import RECALL_AT, chance_recalls
from models.pretraining.model import PretrainModel
from models.tasks.retrieval import RetrievalModel
from tasks.two_stage import TwoStageRetrieval, rank_in_words
from utils.errors import UserError
from utils.progress import progress_bar
from x2vlm.base import LoadedModel, Matcher
from x2vlm.inputs import View
from x2vlm.suites.scoring import all_scores, check_scores, grey_view
from x2vlm.suites.suite import (
    BLANK,
    SCORES,
    Judged,
    Published,
    Suite,
    chosen_kinds,
    entries_of,
    reading,
    require_files,
    require_images,
    unreadable_note,
)

KINDS = ("image to text", "text to image")
MEASURES = tuple(f"R@{k}" for k in RECALL_AT)


@dataclass(frozen=True)
class Captions:
    """The images and captions of a test split, and the kinds of queries to measure."""

    items: CaptionedImages
    kinds: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class RetrievalSuite(Suite[Captions]):
    """Measures the recall in both directions. The best candidates by cosine are re-ranked by the matching head and, separately,
    by the sum.

    Attributes:
        captions: names of the files with captions, in the format used by the authors of ALBEF, X-VLM and BLIP; the first file
            that exists is read.
        karpathy: name of Karpathy's file, which is read if none of the files in ``captions`` exists.
        images: folder of the images in Karpathy's file.
        candidates: number of candidates that are re-ranked.
    """

    captions: tuple[str, ...]
    karpathy: str
    images: str
    candidates: int
    measures: tuple[str, ...] = MEASURES

    def files(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        names = (*self.captions, self.karpathy)
        return [next((name for name in names if (folder / name).is_file()), self.captions[0])]

    def read(self, folder: Path, kinds: Sequence[str]) -> Captions:
        (path,) = require_files(folder, self.files(folder, kinds), self)
        chosen = chosen_kinds(KINDS, kinds, self)
        config = CaptionedSplitConfig(annotations=str(path))
        if path.name == self.karpathy:
            config = CaptionedSplitConfig(
                annotations=str(path), format="karpathy", splits=["test"], images=str(folder / self.images)
            )
        else:
            names = []
            for location, _, entry in entries_of(path):
                if isinstance(entry, list):
                    raise UserError(
                        "is not a list of images with captions",
                        where=path,
                        remedy=f"if it is Karpathy's file, rename it to {self.karpathy}",
                    )
                with reading(location):
                    names.append(str(entry["image"]))
            require_images([folder / name for name in names], self)
            remedy = f"download it again from {self.published_at}"
            check_unique(names, path, "two entries have the same image", remedy)
        return Captions(read_captioned_images(config, self.title, 0.0), chosen)

    def judge(self, model: LoadedModel, content: Captions) -> Judged:
        check_scores(model)
        network = model.network
        if not isinstance(network, PretrainModel | RetrievalModel):
            raise UserError(
                f"{model.origin} is an export", remedy="pass the run or weight file from which it was exported"
            )
        baselines = _Baselines(model, content.items)
        items = content.items.only(baselines.readable)
        texts = baselines.texts
        search = TwoStageRetrieval(
            network,
            model.text,
            candidates=self.candidates,
            batch_size=model.batch_size,
            matching_weight=model.settings.evaluation.matching_weight,
        )

        def read(rows: range) -> Iterator[list[Tensor]]:
            for start in range(rows.start, rows.stop, model.batch_size):
                chosen = range(start, min(start + model.batch_size, rows.stop))
                yield [_view(model, items, index).pixels for index in chosen]

        with model.runtime.running():
            rankings = search.rank(len(items.images), read, texts)
        stages = {"cosine": rankings.cosine, "matching": rankings.log_odds(), "sum": rankings.by("sum")}
        found = {score: stage.texts.ids.shape[1] for score, stage in stages.items()}
        true = items.image_of_caption
        ranks = {score: dict(zip(KINDS, stage.ranks(true), strict=True)) for score, stage in stages.items()}
        hits = {
            score: {"model": {kind: _hits(values) for kind, values in by_kind.items()}, **baselines.hits(score)}
            for score, by_kind in ranks.items()
        }
        values = {
            score: {
                condition: np.concatenate([by_kind[kind] for kind in content.kinds])
                for condition, by_kind in by_condition.items()
            }
            for score, by_condition in hits.items()
        }
        chance = chance_recalls(items.captions_per_image, len(texts))
        groups = {KINDS[0]: range(len(items.images)), KINDS[1]: true.tolist()}
        queries = {KINDS[0]: [str(source.path) for source in items.images], KINDS[1]: texts}
        examples = [
            {
                "kind": kind,
                "query": query,
                "right": {
                    score: dict(zip(MEASURES, by_condition["model"][kind][index].tolist(), strict=True))
                    for score, by_condition in hits.items()
                },
                "ranks": {score: rank_in_words(by_kind[kind][index], found[score]) for score, by_kind in ranks.items()},
            }
            for kind in content.kinds
            for index, query in enumerate(queries[kind])
        ]
        return Judged(
            [kind for kind in content.kinds for _ in groups[kind]],
            [str(image) for kind in content.kinds for image in groups[kind]],
            values,
            {f"{kind}: R@{k}": chance[f"{kind} R@{k}"] for kind in KINDS for k in RECALL_AT},
            examples=examples,
            notes=unreadable_note(baselines.unreadable),
        )


def _view(model: LoadedModel, items: CaptionedImages, index: int) -> View:
    path = items.images[index].path
    assert path is not None
    return model.read(path)


def _hits(ranks: np.ndarray) -> np.ndarray:
    """Returns whether each query has a true candidate among the first K candidates, (queries, values of K)."""
    return (ranks[:, None] < np.array(RECALL_AT)).astype(np.float64)


class _Baselines:
    """The results of the baselines, and the images and texts that can be read.

    In the text-only baseline, texts have the same order for all images, and all images are tied for a text. In the image-only
    baseline, images have the same order for all texts, and all texts are tied for an image. Ties count by their expected value.

    Attributes:
        readable: indices of the images that can be read.
        unreadable: for each of the other images, the reason why it cannot be read.
        texts: the cleaned captions of the readable images.
    """

    def __init__(self, model: LoadedModel, items: CaptionedImages):
        blank, matcher, parts = model.embed_texts(BLANK), Matcher(model, [BLANK]), []
        self.readable, self.unreadable = list[int](), list[str]()
        with progress_bar(total=len(items.images), desc="image-only baseline", unit="image") as bar:
            for start in range(0, len(items.images), model.batch_size):
                views = []
                for index in range(start, min(start + model.batch_size, len(items.images))):
                    try:
                        views.append(_view(model, items, index))
                        self.readable.append(index)
                    except UserError as error:
                        self.unreadable.append(str(error))
                    bar.update()
                if views:
                    cosines = model.embed_images(views) @ blank.T
                    parts.append(all_scores(model, cosines, matcher.scores(views, [[0]] * len(views))))
        if not parts:
            raise UserError(f"no image can be read: {self.unreadable[0]}")
        items = items.only(self.readable)
        self.image_of_text, self.per_image = items.image_of_caption, items.captions_per_image
        self.texts = [model.cleaned(caption) for caption in items.captions]
        self.image_scores = {score: np.concatenate([part[score] for part in parts]) for score in SCORES}
        grey = grey_view(model)
        cosines = model.embed_images(grey) @ model.embed_texts(self.texts).T
        margins = Matcher(model, self.texts).scores([grey], [list(range(len(self.texts)))])
        self.text_scores = all_scores(model, cosines, margins)

    def hits(self, score: str) -> dict[str, dict[str, np.ndarray]]:
        """Returns the result of :func:`_hits` for each baseline, by kind."""
        tied = {count: chance_recalls(np.array([count]), len(self.texts)) for count in set(self.per_image.tolist())}
        texts = np.array([[tied[count][f"{KINDS[0]} R@{k}"] for k in RECALL_AT] for count in self.per_image.tolist()])
        images = np.tile([min(1.0, k / len(self.per_image)) for k in RECALL_AT], (len(self.texts), 1))
        by_text = _hits(_best(_ranks(self.text_scores[score][0]), self.image_of_text))
        by_image = _hits(_ranks(self.image_scores[score][:, 0])[self.image_of_text])
        return {"text only": {KINDS[0]: by_text, KINDS[1]: images}, "image only": {KINDS[0]: texts, KINDS[1]: by_image}}


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Returns the rank of each score in descending order, from 0."""
    return np.argsort(np.argsort(-scores, kind="stable"), kind="stable")


def _best(ranks: np.ndarray, image_of_text: np.ndarray) -> np.ndarray:
    """Returns the best rank among the texts of each image."""
    best = np.full(int(image_of_text.max()) + 1, len(ranks))
    np.minimum.at(best, image_of_text, ranks)
    return best


def _recalls(*values: float) -> dict[str, float]:
    names = [f"{kind}: {measure}" for kind in KINDS for measure in MEASURES]
    return dict(zip(names, values, strict=True))


_CLIP = "docs/openclip_retrieval_results.csv of github.com/mlfoundations/open_clip"
_NOTE = (
    "the best candidates by cosine are re-ranked; results of models that were pre-trained on COCO captions are not "
    "zero-shot"
)

COCO = RetrievalSuite(
    title="COCO retrieval",
    paper="Lin et al.: Microsoft COCO, ECCV 2014; split of Karpathy and Fei-Fei, CVPR 2015",
    published_at="github.com/salesforce/ALBEF (coco_test.json), and COCO's val2014 in the folder val2014",
    captions=("coco_test.json", "coco_karpathy_test.json"),
    karpathy="dataset_coco.json",
    images="",
    candidates=256,
    published=(
        Published("CLIP ViT-B/32", _recalls(50.1, 75.0, 83.5, 30.4, 55.9, 66.9), _CLIP),
        Published("CLIP ViT-L/14", _recalls(56.3, 79.4, 86.6, 36.5, 61.1, 71.1), _CLIP),
        Published("CLIP ViT-bigG-14", _recalls(67.4, 86.9, 92.7, 51.4, 74.9, 83.0), _CLIP),
    ),
    note=_NOTE,
)
FLICKR = RetrievalSuite(
    title="Flickr30k retrieval",
    paper="Young, Lai, Hodosh and Hockenmaier: From Image Descriptions to Visual Denotations, TACL 2014",
    published_at="github.com/salesforce/ALBEF (flickr30k_test.json), and the images in the folder flickr30k-images",
    captions=("flickr30k_test.json",),
    karpathy="dataset_flickr30k.json",
    images="flickr30k-images",
    candidates=128,
    published=(
        Published("CLIP ViT-B/32", _recalls(78.9, 94.9, 98.2, 58.8, 83.6, 90.0), _CLIP),
        Published("CLIP ViT-L/14", _recalls(85.2, 97.4, 99.2, 65.0, 87.2, 92.0), _CLIP),
        Published("CLIP ViT-bigG-14", _recalls(92.9, 99.3, 99.8, 79.6, 95.0, 97.1), _CLIP),
    ),
    note=_NOTE,
)
