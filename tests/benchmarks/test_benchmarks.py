"""Every benchmark runs: a small model and one round, whose ratio means nothing."""

import re

import pytest

from benchmarks import answer_ranking, captioning, data, gpu, pretrain_step, rerank, step_memory, video_memory


def test_reranking_scores_as_the_usual_way_and_prints_its_ratio(capsys):
    rerank.main(["--small", "--rounds", "1"])
    assert re.fullmatch(r"ratio: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])


def test_answers_are_ranked_as_the_naive_way_does_and_the_ratio_is_printed(capsys):
    answer_ranking.main(["--small", "--rounds", "1"])
    assert re.fullmatch(r"ratio: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])


def test_captioning_runs_and_ends_with_its_ratio(capsys):
    captioning.main(["--small", "--rounds", "1"])
    assert re.fullmatch(r"ratio: \d+\.\d\d", capsys.readouterr().out.splitlines()[-1])


def test_the_memory_of_reading_videos_is_printed(capsys):
    video_memory.main(["--files", "12"])
    assert re.fullmatch(r"12 files: \d+ MB, \d+ ms a file", capsys.readouterr().out.splitlines()[-1])


def test_the_data_path_is_timed_by_stage_and_the_ratio_is_printed(capsys):
    data.main(["--small", "--rounds", "1"])
    *lines, last = capsys.readouterr().out.splitlines()
    stages = [line[:20].strip() for line in lines]
    assert {"read", "decode", "resize", "RandAugment", "tokenise and mask", "collate"} <= set(stages)
    assert sum("images/s a core, " in line for line in lines) == 2, "the loader without workers and with two"
    assert any(line.startswith("pretrain/base_4m ") for line in lines), "what each config needs"
    assert re.fullmatch(r"ratio: \d+\.\d\d", last)


@pytest.mark.parametrize("benchmark", [answer_ranking, captioning, data, gpu, pretrain_step, rerank])
def test_no_rounds_are_refused_in_a_line(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--small", "--rounds", "0"])
    assert "argument --rounds: '0' is not a positive number" in capsys.readouterr().err


def test_the_planned_memory_of_a_step_is_within_15_percent_of_what_it_takes(capsys):
    """A tiny model in fp32 and a middle one in bf16, with the optimiser's states, each in a process of its own."""
    step_memory.main(["--small"])
    *cases, last = capsys.readouterr().out.splitlines()
    assert len(cases) == 2
    assert 0.85 < float(last.removeprefix("ratio: ")) < 1.15


def test_a_step_of_pre_training_is_held_against_the_bare_backbone(capsys):
    pretrain_step.main(["--small", "--rounds", "1"])
    *_, memory, fastest, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"peak memory of the steps: \d+\.\d\d GiB", memory)
    assert re.fullmatch(r"fastest step over fastest backbone: \d+\.\d\d", fastest)
    assert re.fullmatch(r"ratio: \d+\.\d\d", last)


def test_the_ways_to_a_step_are_split_into_their_phases(capsys):
    """Without the compiled one: its compiler takes a minute, and tests/engine/test_static_step.py looks at what it is given."""
    gpu.main(["--small", "--rounds", "1", "--ways", "plain", "eager", "--peak-tflops", "0.1"])
    plain, eager, last = capsys.readouterr().out.splitlines()
    for line in (plain, eager):
        assert re.search(
            r"\(data [\d.]+, forward [\d.]+, backward [\d.]+, optimiser [\d.]+, communication 0\.0\)", line
        )
        assert re.search(r"[\d.]+ TFLOP/s, utilisation [\d.]+ %$", line)
    assert re.fullmatch(r"ratio: \d+\.\d\d", last)
