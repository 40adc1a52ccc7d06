"""Every benchmark runs: a small model and one round, whose ratio means nothing."""

import re

from benchmarks import captioning, rerank


def test_reranking_scores_as_the_usual_way_and_prints_its_ratio(capsys):
    rerank.main(["--small", "--rounds", "1"])
    assert re.fullmatch(r"ratio: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])


def test_captioning_runs_and_ends_with_its_ratio(capsys):
    captioning.main(["--small", "--rounds", "1"])
    assert re.fullmatch(r"ratio: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])
