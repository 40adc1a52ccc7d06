"""Checks the files and folders that the config names."""

from __future__ import annotations

from models.checkpoints.files import WEIGHT_FILES
from tasks.prepared import NotCheckedError
from tools.doctor.findings import Report
from tools.doctor.subject import Subject, shorten
from utils.findings import Finding
from utils.hub import check_hub, is_local, looks_like_path
from utils.inputs import inputs_of, remedy_of


def check_inputs(subject: Subject, report: Report) -> None:
    """Checks that the files and folders exist."""
    subject.make_inputs()
    found = missing_files(subject)
    count = len({path for _, _, path in inputs_of(subject.config)})
    all_exist = "the file of the config exists" if count == 1 else f"all {count} files and folders of the config exist"
    report.add("inputs", found, all_exist)


def check_tokenizer(subject: Subject, report: Report) -> None:
    """Loads the tokenizer."""
    encoder = subject.config.model.text.encoder
    subject.require_inputs("model.text.encoder")
    tokenizer = subject.load_tokenizer()
    report.ok("tokenizer", f"{encoder}, {len(tokenizer):,} tokens")


def check_download(subject: Subject, report: Report) -> None:
    """Checks that the text encoder of ``init.text`` can be downloaded, if the run has to download it."""
    name = subject.config.init.text
    if name is not None and not looks_like_path(name) and not is_local(name, WEIGHT_FILES):
        subject.unfetched = name
        check_hub(name, "init.text")
        raise NotCheckedError(f"{name} is not in the Hub's cache; the run downloads it")


def missing_files(subject: Subject) -> list[Finding]:
    """Returns a finding for each missing input."""
    return [
        Finding("refused", shorten(keys, 2), f"{path} does not exist", remedy_of(path, keys))
        for path, keys in subject.missing.items()
    ]
