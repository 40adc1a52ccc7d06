"""Chinese words for captions: every object with its measure word, no spaces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from demo.scenes.describe import Looks

WORDS = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星形",
    "cross": "十字形",
    "diamond": "菱形",
    "heart": "心形",
    "small": "小的",
    "large": "大的",
    "striped": "条纹",
    "dotted": "圆点",
    "checked": "格子",
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "cyan": "青色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
}
RELATIONS = {"left of": "左边", "right of": "右边", "above": "上面", "below": "下面"}


def noun_phrase(looks: Looks) -> str:
    """ "一个小的红色条纹星形"."""
    said = [WORDS[word] for word in (looks.size, looks.colour, looks.texture, looks.shape) if word is not None]
    return "一个" + "".join(said)


def listing(listed: Sequence[Looks]) -> str:
    """ "图中有一个红色星形和一个蓝色心形"."""
    *others, last = [noun_phrase(looks) for looks in listed]
    return f"图中有{'、'.join(others)}和{last}" if others else f"图中有{last}"


def sentence(chain: Sequence[Looks], links: Sequence[str | None]) -> str:
    """A clause for each relation: "一个红色星形在一个蓝色心形的左边，还有一个绿色圆形"."""
    if not links:
        return f"只有{noun_phrase(chain[0])}"
    said = [noun_phrase(chain[0])] if links[0] is None else []
    for link, (looks, other) in zip(links, itertools.pairwise(chain), strict=True):
        if link is None:
            said.append(f"还有{noun_phrase(other)}")
        else:
            said.append(f"{noun_phrase(looks)}在{noun_phrase(other)}的{RELATIONS[link]}")
    return "，".join(said)
