"""The log file of a run."""

from __future__ import annotations

import logging
import shutil

from utils import log


def test_a_log_file_is_recreated_after_its_folder_was_deleted(tmp_path):
    file = tmp_path / "run/log.txt"
    log.set_up(file)
    logging.getLogger("a").info("before")
    shutil.rmtree(file.parent)
    logging.getLogger("a").info("after")
    assert "after" in file.read_text() and "before" not in file.read_text()
