"""Code that all suites share: averaging with intervals, tables, receipts, and reading official files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from metrics.bootstrap import resampled, wilson_interval
from utils.errors import UserError
from utils.files import parse_json, read_json, read_text
from x2vlm.base import LoadedModel

C = TypeVar("C")
"""Type of the content of a suite's files."""

Mean = Literal["micro", "macro", "parts"]
"""Types of mean: over examples (micro), over rows (macro), or over parts of the examples, such as relations or classes."""

SCORES = {
    "cosine": "cosine of the embeddings",
    "matching": "matching head",
    "sum": "log-odds of the matching head plus the cosine divided by the temperature",
}
CONDITIONS = ("model", "text only", "image only")
"""The model, and the two baselines. The text-only baseline sees a grey image in place of each image, and the image-only baseline
sees the same text in place of each text."""
GREY = 128
"""Value of all pixels of the grey image."""
BLANK = "a picture"
"""The text that replaces all texts."""
SEED = 0
"""Seed of the bootstrap draws."""
DRAWS_AT_ONCE = 100
HUMAN = "human"
TIES = (
    "the image-only baseline uses one text in place of all texts, so all texts are tied; ties count with their expected "
    "value, which is the chance level where a text is chosen"
)


@dataclass(frozen=True)
class Published:
    """A model's results in the literature, in percent, by ``row: measure``. ``source`` says where they were published."""

    model: str
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Judged:
    """The examples of a suite, judged by its rule.

    Attributes:
        kinds: the kind of each of N examples; each kind is a row of the table.
        groups: the group of each example, such as its image; examples in a group are drawn together for intervals.
        values: for each score and each of :data:`CONDITIONS`, the values (N, measures): 1 for right, 0 for wrong, and NaN if the
            measure does not apply to the score.
        parts: the part of each example, for means over parts.
        chance: chance level of a measure, by ``kind: measure`` or by measure.
        examples: a JSON object for each example, for ``cases.jsonl``.
        notes: notes for readers of the results, such as examples that could not be measured.
        details: further information that the results depend on, for the receipt.
    """

    kinds: Sequence[str]
    groups: Sequence[str]
    values: Mapping[str, Mapping[str, np.ndarray]]
    chance: Mapping[str, float]
    parts: Sequence[str] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One result of a suite: its value in 0..1, the number of examples, the 95% interval, the values of the baselines, if the
    suite has them, and the chance level."""

    row: str
    measure: str
    count: int
    value: float
    interval: tuple[float, float] | None
    text_only: float | None
    image_only: float | None
    chance: float | None

    @property
    def name(self) -> str:
        return f"{self.row}: {self.measure}"


@dataclass(frozen=True, kw_only=True)
class Suite(ABC, Generic[C]):
    """A benchmark, read from its official files.

    Attributes:
        title: name of the suite.
        paper: authors, title and year of the paper to cite; empty for our own suite.
        published_at: where the files are published.
        measures: names of the values that are computed for each example.
        summaries: additional rows, by name, each with the type of mean and the rows that are averaged; if no rows are given, all
            kinds are averaged.
        published: results to compare with.
        note: a note for readers of the results.
    """

    title: str
    paper: str
    published_at: str
    measures: tuple[str, ...]
    summaries: Mapping[str, tuple[Mean, Sequence[str]]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    note: str = ""

    @abstractmethod
    def files(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        """Returns the names of the files in the folder that are read, except images. ``kinds`` are the same as in
        :meth:`read`."""

    @abstractmethod
    def read(self, folder: Path, kinds: Sequence[str]) -> C:
        """Reads the files of the suite. ``kinds`` are the kinds to measure; if empty, all kinds are measured.

        Raises:
            UserError: if a file is missing or malformed, or if there is no such kind.
        """

    @abstractmethod
    def judge(self, model: LoadedModel, content: C) -> Judged:
        """Runs the model and judges its results by the official rule.

        Raises:
            UserError: if the model does not support the suite, or if none of the images can be read.
        """

    def results(self, judged: Judged, *, draws: int, seed: int = SEED) -> dict[str, list[Result]]:
        """Averages the values of the examples.

        Args:
            judged: the examples.
            draws: number of bootstrap draws for the intervals; 0 for no intervals. Examples in a group are drawn together. For a
                mean over parts, the parts are drawn. If all draws are equal, Wilson's interval for the number of groups or parts
                is used instead.
            seed: seed of the draws.

        Returns:
            The results for each score, row by row.
        """
        found: dict[str, list[Result]] = {}
        chosen = self.rows(judged)
        units = {row: self._units(judged, row, each) for row, each in chosen.items()}
        once = np.ones((1, len(judged.kinds)))
        for score, values in judged.values.items():
            means = {condition: self._means(judged, chosen, values[condition], once) for condition in CONDITIONS}
            drawn: dict[str, np.ndarray] = {}
            if draws:
                rng = np.random.default_rng(seed)
                weights = resampled(judged.groups, draws, seed, DRAWS_AT_ONCE)
                blocks = [self._means(judged, chosen, values["model"], each, rng) for each in weights]
                drawn = {row: np.concatenate([block[row] for block in blocks]) for row in chosen}
            found[score] = [
                Result(
                    row,
                    measure,
                    int(each.sum()),
                    value,
                    _interval(value, drawn[row][:, index], units[row]) if draws else None,
                    float(means["text only"][row][0, index]),
                    float(means["image only"][row][0, index]),
                    judged.chance.get(f"{row}: {measure}", judged.chance.get(measure)),
                )
                for row, each in chosen.items()
                for index, measure in enumerate(self.measures)
                if not np.isnan(value := float(means["model"][row][0, index]))
            ]
        return found

    def rows(self, judged: Judged) -> dict[str, np.ndarray]:
        """Returns the examples of each row of the table, (N,) bool. A row is omitted if one of its kinds has no example."""
        kinds = np.array(judged.kinds)
        found = {kind: kinds == kind for kind in dict.fromkeys(judged.kinds)}
        all_kinds = list(found)
        for name, (_, members) in self.summaries.items():
            if all(member in found for member in members):
                found[name] = np.any([found[member] for member in members or all_kinds], axis=0)
        return found

    def notes(self, judged: Judged) -> list[str]:
        """Returns all notes for readers of the results."""
        rows, missing = self.rows(judged), []
        for name, (_, members) in self.summaries.items():
            if without := [member for member in members if member not in rows]:
                missing.append(f"{name} is missing, since no case is of kind {', '.join(without)}")
        over_parts = [name for name, (mean_type, _) in self.summaries.items() if mean_type == "parts" and name in rows]
        drawn = [
            f"the interval of {name} comes from draws of its parts; the other intervals come from draws of images"
            for name in over_parts
        ]
        return [note for note in (self.note, *judged.notes, *drawn, *missing) if note]

    def _units(self, judged: Judged, row: str, chosen: np.ndarray) -> int:
        """Returns the number of independent values of a row: the parts of a mean over parts, otherwise the groups."""
        by_part = row in self.summaries and self.summaries[row][0] == "parts"
        return len(np.unique(np.asarray(judged.parts if by_part else judged.groups)[chosen]))

    def _means(
        self,
        judged: Judged,
        chosen: Mapping[str, np.ndarray],
        values: np.ndarray,
        weights: np.ndarray,
        rng: np.random.Generator | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the means of all measures for each row, (draws, measures).

        Args:
            judged: N examples.
            chosen: (N,) bool, the examples of each row.
            values: (N, measures).
            weights: (draws, N), the number of times that each example was drawn.
            rng: source of randomness for drawing the parts; if None, each part counts once.
        """
        found: dict[str, np.ndarray] = {}
        for row, each in chosen.items():
            mean_type, members = self.summaries.get(row, ("micro", ()))
            if mean_type == "micro":
                found[row] = _mean(values, weights, each)
            elif mean_type == "macro":
                found[row] = np.mean([found[member] for member in members or dict.fromkeys(judged.kinds)], axis=0)
            else:
                names, part_of = np.unique(np.asarray(judged.parts)[each], return_inverse=True)
                sums = np.stack([np.bincount(part_of, weights=column) for column in values[each].T], axis=1)
                part_means = sums / np.bincount(part_of)[:, None]
                count = len(names)
                counts = (
                    np.ones((1, count)) if rng is None else rng.multinomial(count, [1 / count] * count, len(weights))
                )
                found[row] = counts @ part_means / count
        return found


def _interval(value: float, drawn: np.ndarray, units: int) -> tuple[float, float]:
    """Returns the 95% interval of a mean from its bootstrap draws. Draws without any example of a kind are NaN and ignored."""
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return wilson_interval(value, units) if np.isclose(low, high, rtol=0, atol=1e-12) else (float(low), float(high))


def _mean(values: np.ndarray, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Returns the weighted means of the chosen examples, (draws, measures). Draws without any of these examples have NaN."""
    weights = weights[:, chosen]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: np.ndarray = weights @ values[chosen] / weights.sum(axis=1, keepdims=True)
    return mean


def require_files(folder: Path, names: Sequence[str], suite: Suite[Any]) -> list[Path]:
    """Returns the paths of the files of a suite in the folder.

    Raises:
        UserError: if a file is missing; the message says where it is published.
    """
    if missing := [name for name in names if not (folder / name).is_file()]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{', '.join(missing)} of {suite.title} {verb} missing", where=folder, remedy=f"see {suite.published_at}"
        )
    return [folder / name for name in names]


def require_images(paths: Sequence[Path], suite: Suite[Any]) -> None:
    """Checks that all images exist.

    Raises:
        UserError: if any is missing.
    """
    if missing := [path for path in dict.fromkeys(paths) if not path.is_file()]:
        raise UserError(
            f"{len(missing):,} images of {suite.title} are missing, for example {missing[0]}",
            remedy=f"see {suite.published_at}",
        )


def unreadable_note(reasons: Sequence[str]) -> list[str]:
    """Returns a note about images that could not be read, if there are any."""
    return [f"{len(reasons):,} images could not be read, for example {reasons[0]}"] if reasons else []


def chosen_kinds(known: Sequence[str], kinds: Sequence[str], suite: Suite[Any]) -> list[str]:
    """Returns the kinds to measure: the requested kinds, or all kinds if none are requested.

    Raises:
        UserError: if the suite does not have one of the requested kinds.
    """
    known = list(dict.fromkeys(known))
    for kind in kinds:
        if kind in known:
            continue
        if kind in suite.summaries:
            raise UserError(
                "is a mean over kinds",
                where=f"--kinds {kind}",
                remedy=f"pass {' '.join(suite.summaries[kind][1] or known)} instead",
            )
        if "," in kind:
            raise UserError("separate kinds by spaces, not by commas", where=f"--kinds {kind}")
        raise UserError(
            f"{suite.title} has no such kind", where=f"--kinds {kind}", remedy=f"the kinds are {', '.join(known)}"
        )
    return [kind for kind in known if not kinds or kind in kinds]


class Entry(NamedTuple):
    """An entry of an official file: its ``location`` for messages, its ``key`` or index, and its ``value``."""

    location: str
    key: str
    value: Any


def entries_of(path: Path) -> list[Entry]:
    """Returns the entries of a JSON list or object.

    Raises:
        UserError: if the file cannot be read or is malformed, or a key occurs twice in an object.
    """
    try:
        content = read_json(path, unique_keys=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read as JSON ({error})", where=path, remedy="download it again") from None
    if isinstance(content, dict):
        return [Entry(f"{path}: entry {key!r}", key, value) for key, value in content.items()]
    if isinstance(content, list):
        return [Entry(f"{path}: entry {index}", str(index), value) for index, value in enumerate(content)]
    raise UserError("is neither a list nor an object", where=path, remedy="download it again")


def lines_of(path: Path) -> list[Entry]:
    """Returns the entries of a JSON Lines file. The key of an entry is its line number.

    Raises:
        UserError: if the file cannot be read, a line is not JSON, or a key occurs twice in an object.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=path, remedy="download it again") from None
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entries.append(Entry(f"{path}:{number}", str(number), parse_json(line, unique_keys=True)))
        except ValueError as error:
            raise UserError(f"{path}:{number} is not JSON ({error})", remedy="download it again") from None
    return entries


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Context manager that converts errors caused by a malformed entry to a :class:`UserError` with the entry's location."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{location} has no {error}", remedy="is it the official file?") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{location} is malformed ({error})", remedy="is it the official file?") from None


def texts_in(entry: Any, *keys: str | int) -> tuple[str, ...]:
    """Returns the texts that an entry has under these keys. Raises KeyError or TypeError, which :func:`reading` converts."""
    texts = tuple(entry[key] for key in keys)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{' and '.join(map(str, keys))} must be strings")
    return texts


def table(suite: Suite[Any], results: Mapping[str, Sequence[Result]], judged: Judged) -> str:
    """Formats the results of a suite as a table, in percent, with a column for the best published results and a list of
    all published results below."""
    lines = [f"{suite.title}: {len(judged.kinds):,} examples"]
    all_results = [result for each in results.values() for result in each]
    width = max(len(result.name) for result in all_results)
    has_chance = any(result.chance is not None for result in all_results)
    has_baselines = any(result.text_only is not None for result in all_results)
    titles = ["     N", "measured", "95% interval ", *["text only", "image only"] * has_baselines]
    titles += ["chance"] * has_chance + ["best published"] * bool(suite.published)
    for score, each in results.items():
        lines += ["", f"{score} ({SCORES[score]})" if score in SCORES else score, "  ".join([" " * width, *titles])]
        for result in each:
            ends = "" if result.interval is None else f"[{', '.join(f'{100 * end:.1f}' for end in result.interval)}]"
            cells = [
                f"{result.count:6}",
                f"{100 * result.value:8.1f}",
                f"{ends:14}",
            ]
            if result.text_only is not None and result.image_only is not None:
                cells += [f"{100 * result.text_only:9.1f}", f"{100 * result.image_only:10.1f}"]
            if has_chance:
                cells.append(" " * 6 if result.chance is None else f"{100 * result.chance:6.1f}")
            models = [
                model.values[result.name]
                for model in suite.published
                if result.name in model.values and model.model != HUMAN
            ]
            if models:
                cells.append(f"{max(models):14.1f}")
            lines.append("  ".join([f"{result.name:{width}}", *cells]).rstrip())
    if suite.published:
        lines += ["", *_published(suite.published)]
    if suite.paper:
        lines += ["", f"cite: {suite.paper}"]
    return "\n".join([*lines, *(f"note: {note}" for note in suite.notes(judged))])


def _published(models: Sequence[Published]) -> list[str]:
    names = list(dict.fromkeys(name for model in models for name in model.values))
    width, widths = max(map(len, names)), [max(len(model.model), 5) for model in models]
    titles = "  ".join(f"{model.model:>{each}}" for model, each in zip(models, widths, strict=True))
    lines = [f"{'published':{width}}  {titles}"]
    for name in names:
        numbers = [f"{model.values[name]:.1f}" if name in model.values else "" for model in models]
        shown = "  ".join(f"{number:>{each}}" for number, each in zip(numbers, widths, strict=True))
        lines.append(f"{name:{width}}  {shown}".rstrip())
    return lines + [f"source: {source}" for source in dict.fromkeys(model.source for model in models)]


def as_json(suite: Suite[Any], results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Returns the results and the published results, for the receipt."""
    scores = {
        score: {
            result.name: {
                "examples": result.count,
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
    return {"title": suite.title, "paper": suite.paper, "scores": scores, "published": published}
