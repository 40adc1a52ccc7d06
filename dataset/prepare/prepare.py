"""Prepares a data set: builds the folders that the data set's module declares."""

from __future__ import annotations

from dataset.prepare.catalogue import SETS
from dataset.prepare.declarations import Splits, Urls
from dataset.prepare.media_records import make_records
from dataset.prepare.options import Options
from dataset.prepare.preparation import Preparation
from dataset.prepare.split_files import make_splits
from dataset.prepare.url_sets import make_from_urls


def prepare(name: str, options: Options) -> None:
    """Builds the folders of records of a data set that do not exist yet.

    Raises:
        UserError: official files are missing or cannot be used, or a folder has a different origin.
    """
    data_set = SETS[name]
    preparation = Preparation.start(data_set, options)
    if isinstance(data_set.makes, Splits):
        make_splits(preparation, data_set.makes)
        return
    if isinstance(data_set.makes, Urls):
        make_from_urls(preparation, data_set.makes)
        return
    for records in data_set.makes:
        if records.held_out_split in options.without:
            options.report(
                f"{records.folder}: not built, since --without {records.held_out_split} trains on its images"
            )
        else:
            make_records(preparation, records)
