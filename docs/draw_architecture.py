"""Draws ``docs/architecture.png``, which shows the path of a batch through the code (docs/architecture.md): ``python
docs/draw_architecture.py``."""

import itertools
from pathlib import Path

from draw_model import FUSION, LOSS, TEXT, VISION, Board

W, H = 190, 76
COLUMNS = (20, 222, 424, 626)


def main() -> None:
    board = Board(836, 420)
    first, second, third = 44, 164, 284

    board.note(20, 24, "dataset/, in worker processes")
    board.box(COLUMNS[0], first, W, H, VISION, "files", "records, tar shards, or the", "original files of a data set")
    board.box(
        COLUMNS[1], first, W, H, VISION, "rows", "dataset/records, shards, formats", "checked, with file and line"
    )
    board.box(COLUMNS[2], first, W, H, VISION, "example", "dataset/media, text", "pixels, tokens, masks, boxes")
    board.box(COLUMNS[3], first, W, H, VISION, "micro-batch", "dataset/tasks, loaders", "a dataclass of tensors")

    board.note(20, 144, "models/, on the device")
    board.box(COLUMNS[3], second, W, H, TEXT, "encoders", "vision and text: one pass each", "for all streams of a step")
    board.box(
        COLUMNS[2], second, W, H, FUSION, "fusion", "texts attend to images; hard", "negatives, masked words, boxes"
    )
    board.box(COLUMNS[1], second, W, H, LOSS, "losses", "for each stream and loss:", "a sum, a weight and a count")

    board.note(20, 264, "engine/, the same for all tasks")
    board.box(
        COLUMNS[1], third, W, H, FUSION, "step", "divide by the counts of all ranks,", "backward, clip, AdamW, schedule"
    )
    board.box(
        COLUMNS[2], third, W, H, VISION, "checkpoint", "model.safetensors, training.pt", "a folder, complete or absent"
    )
    board.box(COLUMNS[3], third, W, H, LOSS, "report", "metrics on held-out splits, next", "to chance; predictions")

    middle = H // 2
    for left, right in itertools.pairwise(COLUMNS):
        board.arrow((left + W, first + middle), (right - 2, first + middle))
    board.arrow((COLUMNS[3] + W // 2, first + H), (COLUMNS[3] + W // 2, second - 2))
    board.arrow((COLUMNS[3], second + middle), (COLUMNS[2] + W + 2, second + middle))
    board.arrow((COLUMNS[2], second + middle), (COLUMNS[1] + W + 2, second + middle))
    board.arrow((COLUMNS[1] + W // 2, second + H), (COLUMNS[1] + W // 2, third - 2))
    board.arrow((COLUMNS[1] + W, third + middle), (COLUMNS[2] - 2, third + middle))
    board.arrow((COLUMNS[2] + W, third + middle), (COLUMNS[3] - 2, third + middle))

    board.note(
        20, 392, "init.checkpoint=RUN starts a new run from a checkpoint's weights; --resume continues the same run."
    )
    board.image.save(Path(__file__).parent / "architecture.png", optimize=True)


if __name__ == "__main__":
    main()
