"""Builds a folder with an annotation file for each split of a data set."""

from __future__ import annotations

from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Splits
from dataset.prepare.folders import write_records
from dataset.prepare.output_folder import Entry, OutputFolder
from dataset.prepare.preparation import Preparation
from utils.files import replacing
from utils.progress import progress_bar


def make_splits(preparation: Preparation, splits: Splits) -> None:
    """Builds the folder, unless it exists. An interrupted run resumes after the last complete file.

    Raises:
        UserError: official files are missing or cannot be used, or the folder has a different origin.
    """
    options = preparation.options
    files = splits.files(preparation.raw)
    arguments = preparation.arguments(files) | {name: getattr(options, name) for name in splits.options}

    def fill(output: OutputFolder) -> Counts:
        total = Counts()
        for entry in output.entries.values():  # from a previous run that was interrupted
            total.add(Counts.from_values(entry.counts))
        counts = Counts()
        for name, records in splits.read(files, output.out, options, counts).items():
            path = output.out / f"{name}.jsonl"
            if path.name in output.entries:
                continue
            with replacing(path) as part:
                counts.written["records"] += write_records(
                    part, progress_bar(records, total=None, desc=name, unit="record")
                )
            output.add(Entry(path.name, "", 0, path.stat().st_size, counts.to_values()))
            total.add(counts)
            counts.clear()
        return total

    preparation.make(options.out / splits.folder, arguments, fill, index=False)
