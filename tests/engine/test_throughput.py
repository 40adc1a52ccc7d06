"""Rates computed from made-up times, and the peak FLOP/s of known devices."""

import math

import pytest

from batches.losses import Work
from engine.devices import PEAKS, peak, peak_key
from engine.report import Throughput


def test_neither_the_first_step_nor_a_validation_counts():
    throughput = Throughput(devices=2, peak_tflops=10)
    throughput.add(Work(8, 8, 80, 1e13), at=100.0, data_wait_s=90.0)
    throughput.add(Work(8, 4, 80, 1e13), at=101.0, data_wait_s=0.5)
    throughput.exclude(50.0)
    throughput.add(Work(4, 4, 40, 1e13), at=152.0, data_wait_s=0.1)
    found = throughput.rates()
    expected = {"samples_per_s": 6, "images_per_s": 4, "tokens_per_s": 60, "tflops_per_s": 10, "utilisation": 0.5}
    assert found == pytest.approx({**expected, "data_wait": 0.3})


def test_the_first_excluded_steps_do_not_count():
    throughput = Throughput(devices=1, peak_tflops=None, excluded_steps=3)
    for at in (0.0, 60.0, 90.0):
        throughput.add(Work(samples=5), at, data_wait_s=9.0)
        assert throughput.rates() == {}
    throughput.add(Work(samples=6), 92.0, data_wait_s=1.0)
    assert throughput.rates().items() >= {"samples_per_s": 3, "data_wait": 0.5}.items()


def test_reading_the_rates_resets_them():
    throughput = Throughput(devices=1, peak_tflops=None)
    assert throughput.rates() == {}
    for at in (0.0, 1.0):
        throughput.add(Work(samples=5), at)
    assert throughput.rates()["samples_per_s"] == 5
    assert throughput.rates() == {}
    throughput.add(Work(samples=6), 4.0, data_wait_s=1.5)
    assert throughput.rates().items() >= {"samples_per_s": 2, "data_wait": 0.5}.items()
    throughput.add(Work(samples=6), 5.0)
    assert throughput.rates()["data_wait"] == 0


def test_values_unknown_to_a_task_have_no_rate():
    throughput = Throughput(devices=1, peak_tflops=10)
    for at in (0.0, 1.0):
        throughput.add(Work(5, 5, math.nan, math.nan), at)
    assert throughput.rates() == {"samples_per_s": 5, "images_per_s": 5, "data_wait": 0}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100S-PCIE-32GB", "v100s"),
        ("NVIDIA GeForce RTX 3090", "3090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("NVIDIA A10G", None),
    ],
)
def test_a_device_is_recognised_by_its_full_name(name, key):
    assert peak_key(name) == key


def test_peaks_are_for_dense_products_and_fall_with_wider_numbers():
    for key, each in PEAKS.items():
        assert each.half > (each.tf32 or each.single) >= each.single, key
    assert (peak("a100", "bf16"), peak("a100", "O1"), peak("a100", "fp32")) == (312, 312, 19.5)
