"""Code that all suites share: averages with intervals, tables, receipts, and reading of official files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from metrics.bootstrap import resampled
from utils.errors import UserError
from utils.files import parse_json, read_json, read_text
from x2vlm.base import LoadedModel

C = TypeVar("C")
"""The content of the files of a suite."""

Way = Literal["micro", "macro", "parts"]
"""How to average: over examples, over rows, or over the parts of all examples."""

SCORES = {
    "cosine": "cosine of the embeddings",
    "matching": "matching head",
    "both": "log-odds of the matching head plus the cosine over the temperature",
}
LOOKS = ("model", "text only", "image only")
"""The model, and the baselines that see a grey image in place of each image, or one text in place of all texts."""
GREY = 128
"""Value of all pixels of the grey image."""
BLANK = "a picture"
"""The text that takes the place of all texts."""
DRAWS_AT_ONCE = 100


@dataclass(frozen=True)
class Published:
    """Results of a model in the literature, in percent, by ``row: measure``; ``source``: where they are printed."""

    model: str
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Judged:
    """The examples of a suite, judged by its rule.

    Attributes:
        kinds: the kind of each of N examples; each kind is a row of the table.
        groups: what each example is about; examples of a group are drawn together for intervals.
        values: for each score and each of :data:`LOOKS`, (N, measures): 1 for right, 0 for wrong.
        parts: the part of each example, for means over parts.
        chance: value of a measure by chance, by ``kind: measure`` or by measure.
        examples: a JSON object for each example, for ``cases.jsonl``.
        notes: notes for readers of the results, such as examples that could not be measured.
    """

    kinds: Sequence[str]
    groups: Sequence[str]
    values: Mapping[str, Mapping[str, np.ndarray]]
    chance: Mapping[str, float]
    parts: Sequence[str] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Result:
    """One number of a suite, in 0..1: its 95 % interval, and the same measure by the baselines and by chance."""

    row: str
    measure: str
    value: float
    interval: tuple[float, float] | None
    text_only: float
    image_only: float
    chance: float | None

    @property
    def name(self) -> str:
        return f"{self.row}: {self.measure}"


@dataclass(frozen=True, kw_only=True)
class Suite(ABC, Generic[C]):
    """A benchmark in its official files.

    Attributes:
        title: name of the suite.
        paper: authors, title and year, to cite.
        published_at: where its files are published.
        measures: names of the values of an example.
        summaries: names of further rows, each with the way of averaging and the rows of which it is the mean; no rows: all
            kinds.
        published: results to compare with.
        note: a note for readers of the results.
    """

    title: str
    paper: str
    published_at: str
    measures: tuple[str, ...]
    summaries: Mapping[str, tuple[Way, Sequence[str]]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    note: str = ""

    @abstractmethod
    def files(self, kinds: Sequence[str]) -> list[str]:
        """Names of the official files in the folder, apart from images. ``kinds``: as in :meth:`read`."""

    @abstractmethod
    def read(self, folder: Path, kinds: Sequence[str]) -> C:
        """Reads the files of the suite. ``kinds``: the kinds to measure; all if empty.

        Raises:
            UserError: if a file is missing or has another form, or there is no such kind.
        """

    @abstractmethod
    def judge(self, model: LoadedModel, content: C) -> Judged:
        """Runs the model, and judges its answers by the official rule.

        Raises:
            UserError: if the model cannot be asked, or an image cannot be read.
        """

    def results(self, judged: Judged, *, draws: int, seed: int = 0) -> dict[str, list[Result]]:
        """Averages the values of the examples.

        Args:
            judged: the examples.
            draws: bootstrap draws of the intervals, 0 for none.
            seed: seed of the draws.

        Returns:
            The rows of each score.
        """
        found: dict[str, list[Result]] = {}
        once = np.ones((1, len(judged.kinds)))
        for score, values in judged.values.items():
            rows = {look: dict(self._rows(judged, values[look], once)) for look in LOOKS}
            drawn: dict[str, np.ndarray] = {}
            if draws:
                weights = resampled(judged.groups, draws, seed, DRAWS_AT_ONCE)
                blocks = [dict(self._rows(judged, values["model"], each)) for each in weights]
                drawn = {row: np.concatenate([block[row] for block in blocks]) for row in blocks[0]}
            ends = {row: np.nanquantile(each, [0.025, 0.975], axis=0) for row, each in drawn.items()}
            found[score] = [
                Result(
                    row,
                    measure,
                    float(means[0, index]),
                    (float(ends[row][0, index]), float(ends[row][1, index])) if draws else None,
                    float(rows["text only"][row][0, index]),
                    float(rows["image only"][row][0, index]),
                    judged.chance.get(f"{row}: {measure}", judged.chance.get(measure)),
                )
                for row, means in rows["model"].items()
                for index, measure in enumerate(self.measures)
            ]
        return found

    def _rows(self, judged: Judged, values: np.ndarray, weights: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each row with the means of all measures, (draws, measures).

        Args:
            judged: N examples.
            values: (N, measures).
            weights: (draws, N), how often each example counts.
        """
        kinds, parts = np.array(judged.kinds), np.array(judged.parts)
        known: dict[str, np.ndarray] = {}
        for kind in dict.fromkeys(judged.kinds):
            known[kind] = _mean(values, weights, kinds == kind)
            yield kind, known[kind]
        for name, (way, members) in self.summaries.items():
            if not all(member in known for member in members):
                continue  # the user chose some of the kinds
            chosen = np.isin(kinds, members) if members else np.ones(len(kinds), bool)
            if way == "micro":
                known[name] = _mean(values, weights, chosen)
            elif way == "macro":
                known[name] = np.mean([known[member] for member in members or dict.fromkeys(judged.kinds)], axis=0)
            else:
                of_parts = [chosen & (parts == part) for part in dict.fromkeys(parts[chosen].tolist())]
                known[name] = np.nanmean([_mean(values, weights, part) for part in of_parts], axis=0)
            yield name, known[name]


def _mean(values: np.ndarray, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The weighted means of the chosen examples, (draws, measures); NaN in draws without any of them."""
    weights = weights[:, chosen]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: np.ndarray = weights @ values[chosen] / weights.sum(axis=1, keepdims=True)
    return mean


def need(folder: Path, names: Sequence[str], suite: Suite[Any]) -> list[Path]:
    """Returns the paths of the files of a suite in the folder.

    Raises:
        UserError: if a file is missing; the message says where it is published.
    """
    if missing := [name for name in names if not (folder / name).is_file()]:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{folder}: {', '.join(missing)} of {suite.title} {are} missing; see {suite.published_at}")
    return [folder / name for name in names]


def need_images(paths: Sequence[Path], suite: Suite[Any]) -> None:
    """Checks that all images exist.

    Raises:
        UserError: if any is missing.
    """
    if missing := [path for path in dict.fromkeys(paths) if not path.is_file()]:
        raise UserError(
            f"images of {suite.title} are missing: {len(missing):,}, such as {missing[0]}; see {suite.published_at}"
        )


def chosen_kinds(known: Sequence[str], kinds: Sequence[str], suite: Suite[Any]) -> list[str]:
    """Returns the kinds to measure: the requested ones, or all.

    Raises:
        UserError: if the suite does not have one of them.
    """
    known = list(dict.fromkeys(known))
    if unknown := [kind for kind in kinds if kind not in known]:
        raise UserError(f"--kinds {unknown[0]}: {suite.title} has no such kind; kinds are {', '.join(known)}")
    return [kind for kind in known if not kinds or kind in kinds]


def entries_of(path: Path) -> list[tuple[str, Any]]:
    """Returns the entries of a JSON list or object, each with its place for messages.

    Raises:
        UserError: if the file cannot be read, or has another form.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    if isinstance(content, dict):
        return [(f"{path}: entry {key!r}", value) for key, value in content.items()]
    if isinstance(content, list):
        return [(f"{path}: entry {index}", value) for index, value in enumerate(content)]
    raise UserError(f"{path}: is neither a list nor an object; download it again")


def lines_of(path: Path) -> list[tuple[str, Any]]:
    """Returns the entries of a file of JSON lines, each with its place for messages.

    Raises:
        UserError: if the file cannot be read, or a line is not JSON.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); download it again") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            with reading(f"{path}:{number}"):
                entries.append((f"{path}:{number}", parse_json(line)))
    return entries


@contextmanager
def reading(place: str) -> Iterator[None]:
    """A context in which errors about an entry with another form become a :class:`UserError` that names its place."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{place} has no {error}; is it the official file?") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{place} has another form ({error}); is it the official file?") from None


def texts_in(entry: Any, *keys: str | int) -> tuple[str, ...]:
    """Returns the texts under these keys of an entry; raises KeyError or TypeError, see :func:`reading`."""
    texts = tuple(entry[key] for key in keys)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{' and '.join(map(str, keys))} must be texts")
    return texts


def table(suite: Suite[Any], results: Mapping[str, Sequence[Result]], judged: Judged) -> str:
    """Formats the results of a suite, in percent, with the published ones below."""
    lines = [f"{suite.title}: {len(judged.kinds):,} examples"]
    width = max(len(result.name) for each in results.values() for result in each)
    for score, each in results.items():
        lines += [
            "",
            score if score not in SCORES else f"{score} ({SCORES[score]})",
            f"{'':{width}}  measured  95 % interval   text only  image only  chance",
        ]
        for result in each:
            ends = "" if result.interval is None else f"[{', '.join(f'{100 * end:.1f}' for end in result.interval)}]"
            chance = "" if result.chance is None else f"{100 * result.chance:6.1f}"
            line = f"{result.name:{width}}  {100 * result.value:8.1f}  {ends:14}  {100 * result.text_only:9.1f}"
            lines.append(f"{line}  {100 * result.image_only:10.1f}  {chance}".rstrip())
    if suite.published:
        lines += ["", *_published(suite.published)]
    lines += ["", f"cite: {suite.paper}"]
    return "\n".join([*lines, *(f"note: {note}" for note in (suite.note, *judged.notes) if note)])


def _published(models: Sequence[Published]) -> list[str]:
    names = list(dict.fromkeys(name for model in models for name in model.values))
    width, rooms = max(map(len, names)), [max(len(model.model), 5) for model in models]
    titles = "  ".join(f"{model.model:>{room}}" for model, room in zip(models, rooms, strict=True))
    lines = [f"{'published':{width}}  {titles}"]
    for name in names:
        numbers = [f"{model.values[name]:.1f}" if name in model.values else "" for model in models]
        shown = "  ".join(f"{number:>{room}}" for number, room in zip(numbers, rooms, strict=True))
        lines.append(f"{name:{width}}  {shown}".rstrip())
    return lines + [f"source: {source}" for source in dict.fromkeys(model.source for model in models)]


def as_json(suite: Suite[Any], results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Returns the results, and the published ones, for the receipt."""
    scores = {
        score: {
            result.name: {
                "value": result.value,
                "interval": None if result.interval is None else list(result.interval),
                "text_only": result.text_only,
                "image_only": result.image_only,
                "chance": result.chance,
            }
            for result in each
        }
        for score, each in results.items()
    }
    published = [{"model": each.model, "values": dict(each.values), "source": each.source} for each in suite.published]
    return {"suite": suite.title, "paper": suite.paper, "scores": scores, "published": published}
