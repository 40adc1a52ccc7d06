"""Zero-shot retrieval of COCO and Flickr30k: images of captions, and captions of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from dataset.formats.captioned import CaptionedImages, CaptionedSplitConfig, read_captioned_images
from metrics.retrieval import NO_MATCH, RECALL_AT, chance_recalls
from models.pretraining.model import PretrainModel
from models.tasks.retrieval import RetrievalModel
from tasks.two_stage import Candidates, Stage, TwoStageRetrieval
from utils.errors import UserError
from utils.progress import progress_bar
from x2vlm.base import LoadedModel
from x2vlm.inputs import View
from x2vlm.matching import Matcher
from x2vlm.suites.scoring import all_scores, check_scores, grey_view
from x2vlm.suites.suite import (
    BLANK,
    SCORES,
    Judged,
    Published,
    Suite,
    chosen_kinds,
    entries_of,
    need,
    need_images,
    reading,
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
    """Recalls in both directions. The best candidates by cosine are re-ranked by the matching head, and by the sum.

    Attributes:
        file: the captions, in the form of the authors of ALBEF and X-VLM.
        candidates: number of candidates that are re-ranked.
    """

    file: str
    candidates: int
    measures: tuple[str, ...] = MEASURES

    def files(self, kinds: Sequence[str]) -> list[str]:
        return [self.file]

    def read(self, folder: Path, kinds: Sequence[str]) -> Captions:
        (path,) = need(folder, self.files(kinds), self)
        chosen = chosen_kinds(KINDS, kinds, self)
        images = []
        for place, entry in entries_of(path):
            with reading(place):
                images.append(folder / str(entry["image"]))
        need_images(images, self)
        return Captions(read_captioned_images(CaptionedSplitConfig(annotations=str(path)), "--data", 0.0), chosen)

    def judge(self, model: LoadedModel, content: Captions) -> Judged:
        check_scores(model)
        network = model.network
        if not isinstance(network, PretrainModel | RetrievalModel):
            raise UserError(f"{model.origin} is an export; give the run or weight file it was exported from")
        items = content.items
        texts = [model.cleaned(caption) for caption in items.captions]
        search = TwoStageRetrieval(
            network, model.text, candidates=self.candidates, batch_size=model.batch_size, score="sum"
        )

        def read(share: range) -> Iterator[list[Tensor]]:
            for start in range(share.start, share.stop, model.batch_size):
                chosen = range(start, min(start + model.batch_size, share.stop))
                yield [_view(model, items, index).pixels for index in chosen]

        with model.runtime.running():
            rankings = search.rank(len(items.images), read, texts)
        temperature = network.contrastive.temperature.item()
        stages = {
            "cosine": rankings.cosine,
            "matching": _without_cosines(rankings.reranked, rankings.cosine, temperature),
            "both": rankings.reranked,
        }
        blind = _blind_ranks(model, items, texts)
        true = items.image_of_caption
        ranks = {score: dict(zip(KINDS, stage.ranks(true), strict=True)) for score, stage in stages.items()}
        values = {
            score: {
                look: _hits(of_look, content.kinds) for look, of_look in {"model": ranks[score], **blind[score]}.items()
            }
            for score in SCORES
        }
        chance = chance_recalls(items.captions_per_image, len(texts))
        groups = {KINDS[0]: range(len(items.images)), KINDS[1]: true.tolist()}
        asked = {KINDS[0]: [str(source.path) for source in items.images], KINDS[1]: texts}
        examples = [
            {
                "kind": kind,
                "query": query,
                "ranks": {score: _from_one(of_score[kind][index]) for score, of_score in ranks.items()},
            }
            for kind in content.kinds
            for index, query in enumerate(asked[kind])
        ]
        return Judged(
            [kind for kind in content.kinds for _ in groups[kind]],
            [str(image) for kind in content.kinds for image in groups[kind]],
            values,
            {f"{kind}: R@{k}": chance[f"{kind} R@{k}"] for kind in KINDS for k in RECALL_AT},
            examples=examples,
        )


def _from_one(rank: np.integer) -> int | None:
    """The rank of the best true candidate, from 1; None if it was not among the candidates."""
    return None if rank == NO_MATCH else int(rank) + 1


def _view(model: LoadedModel, items: CaptionedImages, index: int) -> View:
    path = items.images[index].path
    assert path is not None
    return model.read(path)


def _without_cosines(summed: Stage, cosine: Stage, temperature: float) -> Stage:
    """The log-odds of the matching head, from their sums with the cosines over the temperature."""

    def of(candidates: Candidates, nearest: Candidates) -> Candidates:
        cosines = nearest.first(candidates.ids.shape[1]).scores
        return replace(candidates, scores=candidates.scores - cosines / temperature)

    return Stage(of(summed.texts, cosine.texts), of(summed.images, cosine.images))


def _hits(ranks: Mapping[str, np.ndarray], kinds: Sequence[str]) -> np.ndarray:
    """Whether each query of these kinds has a true candidate among the first K, (queries, values of K)."""
    return (np.concatenate([ranks[kind] for kind in kinds])[:, None] < np.array(RECALL_AT)).astype(np.float64)


def _blind_ranks(
    model: LoadedModel, items: CaptionedImages, texts: Sequence[str]
) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The ranks of each image's best text and of each text's image by the baselines: for each score and baseline, by kind.

    Text only: all images have the same order of texts, and for a text all images are tied. Image only: the reverse. A random
    choice breaks ties.
    """
    rng, true = np.random.default_rng(0), items.image_of_caption
    grey, size = grey_view(model), model.batch_size
    cosines = model.embed_images(grey) @ model.embed_texts(list(texts)).T
    of_texts = all_scores(model, cosines, Matcher(model, texts).scores([grey], [list(range(len(texts)))]))
    blank, matcher, parts = model.embed_texts(BLANK), Matcher(model, [BLANK]), []
    with progress_bar(total=len(items.images), desc="image-only baseline", unit="image") as bar:
        for start in range(0, len(items.images), size):
            views = [_view(model, items, index) for index in range(start, min(start + size, len(items.images)))]
            parts.append(
                all_scores(model, model.embed_images(views) @ blank.T, matcher.scores(views, [[0]] * len(views)))
            )
            bar.update(len(views))
    of_images = {score: np.concatenate([part[score] for part in parts]) for score in SCORES}
    text_by_chance = _best(rng.permutation(len(texts)), true)
    image_by_chance = rng.integers(len(items.images), size=len(texts))
    return {
        score: {
            "text only": {KINDS[0]: _best(_places(of_texts[score][0]), true), KINDS[1]: image_by_chance},
            "image only": {KINDS[0]: text_by_chance, KINDS[1]: _places(of_images[score][:, 0])[true]},
        }
        for score in SCORES
    }


def _places(scores: np.ndarray) -> np.ndarray:
    """The place of each score in descending order, from 0."""
    return np.argsort(np.argsort(-scores, kind="stable"), kind="stable")


def _best(places: np.ndarray, image_of_text: np.ndarray) -> np.ndarray:
    """The best place of the texts of each image."""
    best = np.full(int(image_of_text.max()) + 1, len(places))
    np.minimum.at(best, image_of_text, places)
    return best


def _recalls(*values: float) -> dict[str, float]:
    names = [f"{kind}: {measure}" for kind in KINDS for measure in MEASURES]
    return dict(zip(names, values, strict=True))


_CLIP = "docs/openclip_retrieval_results.csv of github.com/mlfoundations/open_clip"
_NOTE = (
    "the best candidates by cosine are re-ranked; models that were pre-trained on captions of COCO are not zero-shot"
)

COCO = RetrievalSuite(
    title="COCO, zero-shot retrieval",
    paper="Lin et al.: Microsoft COCO, ECCV 2014; split of Karpathy and Fei-Fei, CVPR 2015",
    published_at="github.com/salesforce/ALBEF (coco_test.json), and COCO's val2014 in the folder val2014",
    file="coco_test.json",
    candidates=256,
    published=(
        Published("CLIP ViT-B/32", _recalls(50.1, 75.0, 83.5, 30.4, 55.9, 66.9), _CLIP),
        Published("CLIP ViT-L/14", _recalls(56.3, 79.4, 86.6, 36.5, 61.1, 71.1), _CLIP),
        Published("CLIP ViT-bigG-14", _recalls(67.4, 86.9, 92.7, 51.4, 74.9, 83.0), _CLIP),
    ),
    note=_NOTE,
)
FLICKR = RetrievalSuite(
    title="Flickr30k, zero-shot retrieval",
    paper="Young, Lai, Hodosh and Hockenmaier: From Image Descriptions to Visual Denotations, TACL 2014",
    published_at="github.com/salesforce/ALBEF (flickr30k_test.json), and the images in the folder flickr30k-images",
    file="flickr30k_test.json",
    candidates=128,
    published=(
        Published("CLIP ViT-B/32", _recalls(78.9, 94.9, 98.2, 58.8, 83.6, 90.0), _CLIP),
        Published("CLIP ViT-L/14", _recalls(85.2, 97.4, 99.2, 65.0, 87.2, 92.0), _CLIP),
        Published("CLIP ViT-bigG-14", _recalls(92.9, 99.3, 99.8, 79.6, 95.0, 97.1), _CLIP),
    ),
    note=_NOTE,
)
