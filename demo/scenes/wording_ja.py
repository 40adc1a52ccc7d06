"""Japanese words for captions: the place comes before what is there; no spaces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from demo.scenes.describe import Looks

WORDS = {
    "circle": "丸",
    "square": "四角",
    "triangle": "三角",
    "star": "星",
    "cross": "十字",
    "diamond": "ひし形",
    "heart": "ハート",
    "small": "小さい",
    "large": "大きい",
    "striped": "しま模様の",
    "dotted": "水玉模様の",
    "checked": "チェック柄の",
    "red": "赤い",
    "orange": "オレンジ色の",
    "yellow": "黄色い",
    "green": "緑色の",
    "cyan": "水色の",
    "blue": "青い",
    "purple": "紫色の",
    "pink": "ピンク色の",
}
RELATIONS = {"left of": "左", "right of": "右", "above": "上", "below": "下"}


def noun_phrase(looks: Looks) -> str:
    """ "小さいしま模様の赤い星"."""
    said = (looks.size, looks.texture, looks.colour, looks.shape)
    return "".join(WORDS[word] for word in said if word is not None)


def listing(listed: Sequence[Looks]) -> str:
    """ "赤い星と青いハートがある絵"."""
    return f"{'と'.join(noun_phrase(looks) for looks in listed)}がある絵"


def sentence(chain: Sequence[Looks], links: Sequence[str | None]) -> str:
    """A clause for each relation: "青いハートの左に赤い星があり、緑色の丸もある"."""
    if not links:
        return f"{noun_phrase(chain[0])}だけがある"
    said = [f"{noun_phrase(chain[0])}が"] if links[0] is None else []
    for link, (looks, other) in zip(links, itertools.pairwise(chain), strict=True):
        if link is None:
            said.append(f"{noun_phrase(other)}も")
        else:
            said.append(f"{noun_phrase(other)}の{RELATIONS[link]}に{noun_phrase(looks)}が")
    return "".join([*(f"{clause}あり、" for clause in said[:-1]), f"{said[-1]}ある"])
