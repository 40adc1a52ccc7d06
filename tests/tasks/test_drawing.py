"""Sheets of predictions, checked by their pixels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dataset.broken import BrokenRecordError
from dataset.config import VideoReadingConfig
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.video import FrameSampler
from dataset.media.views import EvaluationView
from tasks.drawing import (
    DrawnImage,
    ImageReader,
    Line,
    PairOfBoxes,
    Panel,
    Sheet,
    colours,
    draw_sheet,
    readable_panels,
    spread,
)
from tasks.drawing.boxes import draw_boxes
from tasks.drawing.fonts import FONT_FOLDERS, Lettering, printable
from tasks.drawing.images import SIDE, fitted, joined
from tasks.drawing.sheet import FRAME, GAP, PADDING, RIGHT, WRONG
from tests.messages import OneLine

GREY = (120, 120, 120)
RED = (230, 25, 75)
WHITE = (255, 255, 255)


def rgb(name: str) -> tuple[int, ...]:
    return tuple(int(name[start : start + 2], 16) for start in (1, 3, 5))


def grey(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def boxed(predicted: tuple[float, ...], true: tuple[float, ...], number: str = "", size: int = 400) -> np.ndarray:
    image = Image.fromarray(grey(size, size))
    draw_boxes(image, (PairOfBoxes(predicted, true, colours(1)[0], number),))
    return np.asarray(image)


def edge_colours(image: np.ndarray, row: int, columns: slice) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in image[row, columns].tolist()}


def test_the_predicted_box_is_solid_and_the_true_one_dashed():
    image = boxed(predicted=(0.1, 0.1, 0.3, 0.3), true=(0.6, 0.6, 0.3, 0.3))
    for row in (40, 43, 156, 159):  # four pixels thick, inside the box
        assert edge_colours(image, row, slice(40, 160)) == {RED}
    assert edge_colours(image, 44, slice(44, 156)) == {GREY}
    assert edge_colours(image, 39, slice(0, 400)) == {GREY}
    for row in (241, 242, 357, 358):
        assert edge_colours(image, row, slice(245, 355)) == {RED, WHITE}
    for column in (241, 358):
        assert edge_colours(image.transpose(1, 0, 2), column, slice(245, 355)) == {RED, WHITE}
    share = (image[241, 241:359] == RED).all(axis=1).mean()
    assert 0.4 < share < 0.6


def test_a_true_box_on_top_of_the_predicted_one_shows_both():
    image = boxed((0.25, 0.25, 0.5, 0.5), (0.25, 0.25, 0.5, 0.5))
    assert edge_colours(image, 100, slice(100, 300)) == {RED}
    assert edge_colours(image, 101, slice(110, 290)) == {RED, WHITE}


def test_boxes_beyond_the_image_end_at_its_border():
    image = boxed((-0.5, -0.5, 2.0, 2.0), (0.9, 0.9, 0.4, 0.4))
    assert edge_colours(image, 0, slice(0, 400)) == {RED}
    assert edge_colours(image, 399, slice(0, 340)) == {RED}
    assert image.shape == (400, 400, 3)


def test_a_box_outside_the_image_or_without_area_is_drawn_at_the_border():
    assert (boxed((1.5, 1.5, 0.2, 0.2), (0.1, 0.1, 0.0, 0.0))[399, 399] == RED).all()


def test_the_numbers_of_boxes_at_the_same_position_are_side_by_side():
    image, box = Image.fromarray(grey(400, 400)), (0.25, 0.25, 0.3, 0.3)
    names = colours(3)
    draw_boxes(image, tuple(PairOfBoxes(box, box, name, str(index)) for index, name in enumerate(names, start=1)))
    above = edge_colours(np.asarray(image), 88, slice(90, 200))
    assert {rgb(name) for name in names} <= above


@pytest.mark.parametrize("count", [1, 8, 30])
def test_colours_differ(count):
    assert len({rgb(name) for name in colours(count)}) == count


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1600, 400), (448, 112)), ((300, 900), (149, 448)), ((300, 200), (300, 200)), ((64, 48), (320, 240))],
)
def test_an_image_keeps_its_aspect_ratio_and_is_scaled_down_or_by_a_whole_number(size, expected):
    width, height = size
    image = fitted(torch.zeros(3, height, width, dtype=torch.uint8), SIDE)
    assert (image.shape[2], image.shape[1]) == expected


def test_magnified_pixels_are_squares():
    image = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    assert torch.equal(fitted(image, SIDE)[:, ::6, ::6], image)


def view(pixels: str = "shown", frames: int = 2) -> EvaluationView:
    return EvaluationView(32, 10**6, FrameSampler(frames, VideoReadingConfig(), 10**6, "shown"), pixels=pixels)


def turned_photo(folder: Path) -> ImageSource:
    """An image stored as 200 x 300 pixels with red at the top, which must be rotated to the right."""
    image = Image.new("RGB", (200, 300), GREY)
    ImageDraw.Draw(image).rectangle((0, 0, 199, 99), fill=RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "photo.png", exif=exif)
    return ImageSource("a:1", path=folder / "photo.png")


def test_an_image_is_rotated_as_in_the_run_and_never_with_boxes(tmp_path):
    source = turned_photo(tmp_path)
    assert ImageReader(view("shown"))(source).shape == (200, 300, 3)
    assert ImageReader(view("stored"))(source).shape == (300, 200, 3)
    assert ImageReader(view("shown"))(source, size=(200, 300)).shape == (300, 200, 3)
    with pytest.raises(BrokenRecordError, match="in the annotations"):
        ImageReader(view("shown"))(source, size=(300, 200))


def test_a_video_is_drawn_as_a_strip_of_frames(tmp_path):
    frames = []
    for index, level in enumerate((50, 100, 150, 200)):
        Image.new("RGB", (200, 100), (level, level, level)).save(tmp_path / f"{index}.png")
        frames.append(ImageSource("a:1", path=tmp_path / f"{index}.png"))
    source = VideoSource("a:1", frames=tuple(frames))
    strip = ImageReader(view(frames=2))(source)
    assert strip.shape == (100, 402, 3)
    assert strip[50, 100, 0] == 50 and strip[50, 300, 0] == 150
    assert (strip[:, 200:202] == 255).all()
    assert ImageReader(view(frames=4))(source, side=100, down=True).shape == (3 * 50 + 2 * 2, 100, 3)


def test_frames_of_different_shapes_are_joined_on_white():
    strip = joined([grey(20, 10), grey(10, 30)], down=False)
    assert strip.shape == (30, 32, 3)
    assert (strip[10:, :20] == 255).all()


def sheet(panels: list[Panel], path: Path) -> np.ndarray:
    return draw_sheet(Sheet("title", "legend", panels), path)


def test_the_file_is_the_sheet_on_white(tmp_path):
    image = sheet([Panel((DrawnImage(grey(300, 100)),), (Line("a phrase"),))], tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    assert (image[0] == 255).all() and (image[-1] == 255).all()
    rows, columns = np.nonzero((image == GREY).all(axis=2))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (100, 300)
    assert columns.min() == GAP + PADDING + FRAME


def test_a_long_phrase_is_complete_and_makes_its_panel_higher(tmp_path):
    heights = [
        sheet([Panel((DrawnImage(grey(300, 100)),), (Line(" ".join(["word"] * count)),))], tmp_path / "a.png").shape[0]
        for count in (1, 40, 80)
    ]
    line = Lettering(15).line_height
    assert heights[1] - heights[0] >= 3 * line
    assert (heights[1] - heights[0]) % line == 0
    assert heights[2] - heights[1] >= 4 * line


def has(image: np.ndarray, colour: str) -> bool:
    return bool((image == rgb(colour)).all(axis=2).any())


def test_a_tick_and_a_cross_differ_in_shape(tmp_path):
    marks = {}
    for right, colour in ((True, RIGHT), (False, WRONG)):
        image = sheet([Panel((DrawnImage(grey(300, 100)),), (Line("word", right),))], tmp_path / "a.png")
        assert has(image, colour) and not has(image, WRONG if right else RIGHT)
        rows, columns = np.nonzero((image == rgb(colour)).all(axis=2))
        mark = np.zeros((16, 16), bool)
        mark[rows - rows.min(), columns - columns.min()] = True
        marks[right] = mark
    assert (marks[True] != marks[False]).sum() > 20
    neither = sheet([Panel((DrawnImage(grey(300, 100)),), (Line("word"),))], tmp_path / "a.png")
    assert not has(neither, RIGHT) and not has(neither, WRONG)


def test_a_correct_image_is_framed(tmp_path):
    image = sheet([Panel((DrawnImage(grey(150, 100), label="1 · 2.00", right=True),), ())], tmp_path / "a.png")
    top = np.nonzero((image == rgb(RIGHT)).all(axis=2))[0].min()
    framed = (image[top] == rgb(RIGHT)).all(axis=1).sum()
    assert framed == 150 + 2 * FRAME
    plain = sheet([Panel((DrawnImage(grey(150, 100), label="1 · 2.00"),), ())], tmp_path / "a.png")
    assert not has(plain, RIGHT)


def test_panels_are_arranged_in_columns_that_are_not_too_wide(tmp_path):
    panel = Panel((DrawnImage(grey(400, 100)),), (Line("a"),))
    few, many = (sheet([panel] * count, tmp_path / "a.png") for count in (2, 9))
    assert few.shape[1] < many.shape[1] <= 1600
    assert many.shape[0] > 2.5 * few.shape[0] * 0.8


def test_lines_are_next_to_or_above_an_image(tmp_path):
    lines = tuple(Line(f"caption {number}", number == 1) for number in range(5))
    beside = sheet([Panel((DrawnImage(grey(280, 280)),), lines, beside=True)], tmp_path / "a.png")
    below = sheet([Panel((DrawnImage(grey(280, 280)),), (), above=lines)], tmp_path / "a.png")
    assert beside.shape[1] > below.shape[1]
    grey_columns = np.nonzero((beside == GREY).all(axis=2))[1]
    assert np.nonzero((beside == rgb(RIGHT)).all(axis=2))[1].min() > grey_columns.max()
    grey_rows = np.nonzero((below == GREY).all(axis=2))[0]
    assert np.nonzero((below == rgb(RIGHT)).all(axis=2))[0].max() < grey_rows.min()


def test_text_is_wrapped_at_spaces_without_losses():
    letters, text = Lettering(15), "the small red circle left of the large blue square " * 5
    lines = letters.wrap(text, 200)
    assert all(letters.width(line) <= 200 for line in lines)
    assert " ".join(lines) == text.strip()


def test_a_word_wider_than_the_line_is_broken():
    lines = Lettering(15).wrap("a " + "x" * 100 + " b", 120)
    assert all(Lettering(15).width(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == "a" + "x" * 100 + "b"


def test_ideographs_are_wrapped_anywhere_except_before_a_full_stop():
    text = "一个红色的小圆圈在大蓝色方块的左边。" * 4
    lines = Lettering(15, folders=()).wrap(text, 150)
    assert "".join(lines) == text
    assert len(lines) > 3
    assert not any(line.startswith("。") for line in lines)


def test_an_empty_text_is_one_empty_line():
    assert Lettering(15).wrap("", 100) == [""]


def test_characters_that_cannot_be_drawn_are_omitted():
    assert printable("a\nb\tc\x00\x07 \u202ed") == "a b c d"
    assert len(printable("x" * 100_000)) == 2000


def inked(letters: Lettering, text: str) -> np.ndarray:
    image = Image.new("L", (400, 30), 255)
    letters.draw(ImageDraw.Draw(image), (0, 0), text, "black")
    return np.asarray(image)


def installed(word: str) -> Path | None:
    folders = [Path(folder).expanduser() for folder in FONT_FOLDERS]
    return next((path for folder in folders for path in sorted(folder.rglob(f"*{word}*.ttf"))), None)


@pytest.mark.skipif(installed("DejaVuSans") is None, reason="no font with Greek and Cyrillic is installed")
def test_a_script_that_the_built_in_font_lacks_comes_from_an_installed_font(tmp_path, caplog):
    (tmp_path / "fonts" / "deep").mkdir(parents=True)
    (tmp_path / "fonts" / "deep" / "font.ttf").symlink_to(installed("DejaVuSans"))
    (tmp_path / "fonts" / "Damaged.ttf").write_bytes(b"no font")
    with_font, without = Lettering(15, folders=(str(tmp_path / "fonts"),)), Lettering(15, folders=(str(tmp_path),))
    without.folders = ()
    word = "прямоугольник"
    assert not np.array_equal(inked(with_font, word), inked(without, word))
    assert np.array_equal(inked(with_font, "plain"), inked(without, "plain"))
    different = {inked(with_font, letter).tobytes() for letter in "прямоуг"}
    assert len(different) == 7


def test_a_script_without_a_font_is_reported_once_and_drawn_as_boxes(caplog):
    letters = Lettering(15, folders=())
    with caplog.at_level(logging.WARNING):
        first = inked(letters, "\U00012000")
        inked(letters, "\U00012001")
    assert first.min() < 128
    assert sum("CUNEIFORM" in record.message for record in caplog.records) <= 1


@pytest.mark.parametrize(
    ("count", "requested", "expected"), [(100, 3, [0, 50, 99]), (2, 5, [0, 1]), (5, 0, []), (0, 3, [])]
)
def test_examples_are_spread_over_the_split(count, requested, expected):
    assert [index if index != 49 else 50 for index in spread(count, requested)] == expected


def test_a_broken_image_is_skipped_with_a_note(caplog):
    panel = Panel((DrawnImage(grey(30, 30)),), ())

    def broken() -> Panel:
        raise BrokenRecordError("missing image", "gone.png does not exist")

    def mistaken() -> Panel:
        raise KeyError("iou")

    panels, remark = readable_panels([lambda: panel, broken, lambda: None, mistaken], "predictions.png")
    assert panels == [panel]
    assert remark == " (2 others cannot be drawn)"
    assert OneLine("cannot be drawn") in caplog.messages and "KeyError: 'iou'" in caplog.text
    assert OneLine("predictions.png", "missing image", "gone.png") in caplog.messages


def test_panels_are_in_row_order_whatever_their_heights(tmp_path):
    """The second row starts on the left, although the first panel is the highest."""
    panels = [
        Panel((DrawnImage(np.full((height, 320, 3), 50 * index, np.uint8)),), ())
        for index, height in enumerate([300, 60, 60, 60, 60])
    ]
    image = draw_sheet(Sheet("", "", panels), tmp_path / "sheet.png")
    lefts = [int(np.argwhere((image == 50 * index).all(axis=2))[:, 1].min()) for index in range(5)]
    assert lefts[4] == lefts[0] < lefts[1] < lefts[2] < lefts[3]
