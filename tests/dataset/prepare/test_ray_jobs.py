"""Jobs on a local Ray cluster with the real package: order, failures, and errors in one line."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import pytest

from dataset.prepare.ray_jobs import in_order_on_ray
from tests.dataset.prepare.ray_work import ten_times
from utils.errors import UserError


def results(work: Callable[[int], int], address: str = "local") -> Iterator[int]:
    return in_order_on_ray(work, range(6), address, workers=2, died=lambda job: -job)


@pytest.mark.night
def test_results_are_ordered_killed_jobs_are_reported_and_errors_are_raised_unchanged():
    made = results(ten_times)
    assert list(itertools.islice(made, 5)) == [0, 10, 20, -3, 40]
    with pytest.raises(UserError, match=r"^job 5 is refused$"):
        next(made)


@pytest.mark.night
def test_an_address_without_a_cluster_is_reported_in_one_line(monkeypatch):
    def init(**_: object) -> None:  # the real function would find another test's cluster
        raise ConnectionError("Could not find any running Ray instance.\nPlease start one.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(UserError, match=r"^--ray auto: [^\n]*; start a cluster with `ray start`, or pass --ray local$"):
        next(results(ten_times, "auto"))


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'^--ray: needs ray, which is not installed: pip install -e "\.\[ray\]"$'):
        next(results(ten_times))
