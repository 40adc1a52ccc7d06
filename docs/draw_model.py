"""Draws ``docs/model.png``, the picture of the model in docs/pretraining.md: ``python docs/draw_model.py``."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE = 2
INK, PAPER = "#1f2933", "white"
VISION, TEXT, FUSION, LOSS = "#cfe3f7", "#fbe3c4", "#d8efd3", "#f3d6e4"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


class Board:
    """A canvas in points; everything is drawn twice as large."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def box(self, x: int, y: int, w: int, h: int, fill: str, title: str, *lines: str) -> None:
        self.pen.rounded_rectangle([v * SCALE for v in (x, y, x + w, y + h)], 8 * SCALE, fill, INK, SCALE)
        self.pen.text(((x + w / 2) * SCALE, (y + 15) * SCALE), title, INK, font(14), anchor="mm")
        for index, line in enumerate(lines):
            at = ((x + w / 2) * SCALE, (y + 34 + 16 * index) * SCALE)
            self.pen.text(at, line, INK, font(11), anchor="mm")

    def arrow(self, *points: tuple[int, int]) -> None:
        self.pen.line([(x * SCALE, y * SCALE) for x, y in points], INK, 2 * SCALE, joint="curve")
        (x0, y0), (x, y) = points[-2], points[-1]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        wings = [(x, y), (x - 7 * dx - 4 * dy, y - 7 * dy - 4 * dx), (x - 7 * dx + 4 * dy, y - 7 * dy + 4 * dx)]
        self.pen.polygon([(a * SCALE, b * SCALE) for a, b in wings], INK)

    def note(self, x: int, y: int, text: str) -> None:
        self.pen.text((x * SCALE, y * SCALE), text, INK, font(11), anchor="lm")


def main() -> None:
    board = Board(820, 372)
    board.box(
        20, 292, 250, 62, VISION, "images and boxes", "one backbone pass per image,", "however many regions it has"
    )
    board.box(20, 196, 250, 62, VISION, "vision encoder", "BEiT-2, or one of many others", "a state for each patch")
    board.box(
        20,
        92,
        250,
        70,
        VISION,
        "visual concepts",
        "image, region, object: the mean of",
        "its patches, and a mask over them",
    )
    board.box(550, 292, 250, 62, TEXT, "texts", "captions, region phrases, object names,", "and a masked copy of each")
    board.box(550, 196, 250, 62, TEXT, "text encoder", "BERT, or one of many others", "self-attention")
    board.box(
        300,
        92,
        220,
        70,
        FUSION,
        "fusion encoder",
        "cross-attention from text to patches;",
        "keys and values once per image",
    )
    board.box(20, 14, 250, 46, LOSS, "contrastive", "concept and text embeddings (equation 1)")
    board.box(
        300,
        14,
        500,
        46,
        LOSS,
        "matching  ·  masked words  ·  boxes",
        "equation 2   ·   equation 3   ·   equations 4, 5 of the paper",
    )
    board.arrow((145, 292), (145, 260))
    board.arrow((145, 196), (145, 164))
    board.arrow((145, 92), (145, 62))
    board.arrow((270, 127), (298, 127))
    board.arrow((675, 292), (675, 260))
    board.arrow((550, 240), (410, 240), (410, 164))
    board.arrow((550, 214), (285, 214), (285, 37), (272, 37))
    board.arrow((410, 92), (410, 62))
    board.image.save(Path(__file__).parent / "model.png", optimize=True)


if __name__ == "__main__":
    main()
