"""Two processes never lock one folder, and a killed process leaves its folder unlocked."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.messages import OneLine, naming
from utils import folder_lock
from utils.errors import UserError
from utils.folder_lock import LEASE_FILE, LOCK_FILE, FolderLock

HOLD = """
import os, sys, time
from pathlib import Path
from utils.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(60)  # a worker that outlives its run
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_error_for_a_locked_folder_names_the_holder_and_a_killed_process_unlocks_it(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(UserError) as caught, FolderLock(tmp_path):
            pass
        message = str(caught.value)
        assert message == OneLine(tmp_path, f"process {process.pid}", socket.gethostname())
        process.send_signal(signal.SIGKILL)
        process.wait()
        with FolderLock(tmp_path):  # although the worker is still alive
            assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_folder_in_use_is_waited_for_on_request(tmp_path, caplog):
    process = holder(tmp_path)
    try:
        started = time.monotonic()
        with pytest.raises(UserError, match=naming("in use", "process")), FolderLock(tmp_path, wait_s=0.1):
            pass
        assert time.monotonic() - started >= 0.1
        assert (
            OneLine(tmp_path, f"process {process.pid}") in caplog.messages
            and "waiting up to 0 s (--wait)" in caplog.text
        )
        threading.Timer(0.5, process.kill).start()
        with FolderLock(tmp_path, wait_s=60):
            assert process.wait() == -signal.SIGKILL
        assert time.monotonic() - started < 30
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with (
            pytest.raises(UserError, match=naming("--output", "another folder")),
            FolderLock(bad),
        ):
            pass


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    monkeypatch.setattr(folder_lock, "RENEW_S", 0.01)
    monkeypatch.setattr(folder_lock, "SETTLE_S", 0.05)


def test_a_disk_without_locks_uses_leases(tmp_path, no_locks):
    with FolderLock(tmp_path):
        with pytest.raises(UserError, match=naming(f"process {os.getpid()}")), FolderLock(tmp_path):
            pass
        os.utime(tmp_path / LEASE_FILE, (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / LEASE_FILE).stat().st_mtime < 1:  # the lease is renewed
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with FolderLock(tmp_path):
        pass


def test_a_lease_is_waited_for_and_never_taken_from_a_process_that_renews_it(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(folder_lock, "POLL_S", 0.02)
    with FolderLock(tmp_path):
        ours = (tmp_path / LEASE_FILE).read_text()
        with pytest.raises(UserError, match=naming("in use", "process")), FolderLock(tmp_path, wait_s=0.2):
            pass
        assert (tmp_path / LEASE_FILE).read_text() == ours
    waited = FolderLock(tmp_path, wait_s=60)
    with ThreadPoolExecutor() as pool, FolderLock(tmp_path):
        entered = pool.submit(waited.__enter__)
        time.sleep(0.1)
        assert not entered.done()
    entered.result(10).__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_lease_released_between_two_checks_is_free(tmp_path, no_locks, monkeypatch):
    (tmp_path / LEASE_FILE).write_text("{}")

    def leave(self):
        (tmp_path / LEASE_FILE).unlink()
        return age(self)

    age = FolderLock._age
    monkeypatch.setattr(FolderLock, "_age", leave)
    with FolderLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LEASE_FILE).read_text()


def test_a_stale_lease_is_taken_over(tmp_path, no_locks):
    (tmp_path / LEASE_FILE).write_text("{}")
    os.utime(tmp_path / LEASE_FILE, (0, 0))
    with FolderLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LEASE_FILE).read_text()


def test_a_fifo_in_place_of_the_lock_is_named(tmp_path):
    os.mkfifo(tmp_path / LOCK_FILE)
    with pytest.raises(UserError, match=naming(LOCK_FILE, "FIFO")), FolderLock(tmp_path):
        pass
