"""The table in docs/pretraining_data.md: ``python -m dataset.prepare.document`` writes it from the declarations of data sets."""

from __future__ import annotations

from pathlib import Path

from dataset.prepare.catalogue import SETS, official_sizes
from dataset.prepare.declarations import DataSet

PAGE = Path(__file__).parents[2] / "docs/pretraining_data.md"
BEGIN = "<!-- `python -m dataset.prepare.document` writes this table from the declarations in dataset/prepare/sets -->"
END = "<!-- end of the written table -->"
COLUMNS = (
    "data set",
    "command",
    "official files",
    "folders of records",
    "official size",
    "in the paper, *p*",
    "stated licence",
)


def table() -> str:
    """Returns the table in Markdown."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *map(_row, SETS.values())]
    return "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in row)}|\n" for row in rows)


def _row(data_set: DataSet) -> list[str]:
    files = "; ".join(f"`{names}`: {content}" for names, content in data_set.files.items())
    folders = "; ".join(f"`{folder}`: {content}" for folder, content in data_set.folders)
    command = f"`python run.py prepare {data_set.name}`" + (f", in `{data_set.group}`" if data_set.group else "")
    name = f"{data_set.title}, {data_set.home}"
    return [name, command, files, folders, official_sizes(data_set), data_set.paper, data_set.licence]


def with_table(page: str) -> str:
    """Returns the text of the page with the current table."""
    before, _, rest = page.partition(f"{BEGIN}\n\n")
    _, _, after = rest.partition(f"\n{END}")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
