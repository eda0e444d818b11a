"""The price book and the datasheets: every row has a source and a date, and unknown is never 0."""

from __future__ import annotations

import re

import pytest

from moeprof.core import yamlfile
from moeprof.core.errors import PriceError, WorkloadError
from moeprof.core.hardware import datasheets, find_datasheet
from moeprof.core.prices import PriceRow, _File, find_price, price_book


@pytest.mark.parametrize("row", price_book(), ids=lambda row: row.device)
def test_every_price_has_one_positive_figure_a_source_and_a_date(row: PriceRow) -> None:
    given = [p for p in (row.usd_per_device_hour, row.usd_per_vcpu_hour) if p is not None]
    assert len(given) == 1
    assert given[0] > 0
    assert row.source
    assert row.kind
    assert re.fullmatch(r"20\d\d(-\d\d)?(-\d\d)?", row.date)


@pytest.mark.parametrize(
    ("name", "usd"),
    [
        ("NVIDIA H100 80GB HBM3", 1.69),
        ("NVIDIA H200", 1.74),
        ("NVIDIA B200", 2.34),
        ("AMD Instinct MI300X", 1.40),
        ("NVIDIA A100-SXM4-80GB", 2.736),
        ("NVIDIA L4", 0.684),
    ],
)
def test_a_gpu_is_priced_by_the_name_its_driver_gives(name: str, usd: float) -> None:
    price = find_price(name)
    assert price.usd_per_device_hour == usd
    assert price.includes_power
    assert price.date in price.source


def test_a_cloud_cpu_is_priced_as_a_whole_machine() -> None:
    assert find_price("AMD EPYC 7763 64-Core Processor", num_vcpus=4).usd_per_device_hour == pytest.approx(0.172)


def test_a_cpu_without_a_known_number_of_processors_has_no_price() -> None:
    with pytest.raises(PriceError, match="per vCPU"):
        find_price("AMD EPYC 7763 64-Core Processor")


@pytest.mark.parametrize("name", ["Intel(R) Xeon(R) Processor", "NVIDIA GH200 480GB", "NVIDIA A100-PCIE-40GB", "", "X"])
def test_an_unknown_device_is_an_error_that_says_how_to_give_a_price(name: str) -> None:
    with pytest.raises(PriceError, match="--usd-per-device-hour") as error:
        find_price(name, num_vcpus=2)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("price", ["usd_per_device_hour: -1.69", "usd_per_vcpu_hour: 0"])
def test_a_row_of_the_book_that_is_not_above_zero_is_refused_with_its_line(price: str) -> None:
    row = f"- {{device: X, pattern: X, {price}, includes_power: true, kind: list price, source: me, date: '2026'}}"
    with pytest.raises(WorkloadError, match=r"book.yaml:2: .*more than 0 is allowed"):
        yamlfile.loads(f"prices:\n{row}\n", _File, "book.yaml")


def test_a_part_of_a_gpu_has_no_price_and_no_datasheet() -> None:
    with pytest.raises(PriceError, match="part of a GPU"):
        find_price("NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    assert find_datasheet("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


@pytest.mark.parametrize(
    ("name", "tflops", "tb_per_s"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 2.039),
        ("NVIDIA H100 80GB HBM3", 989, 3.35),
        ("NVIDIA H100 PCIe", 756, 2.0),
        ("NVIDIA H200", 989, 4.8),
    ],
)
def test_datasheet_figures_are_dense(name: str, tflops: float, tb_per_s: float) -> None:
    row = find_datasheet(name)
    assert row is not None
    assert row.bf16_flops_per_s == tflops * 1e12
    assert row.bandwidth_bytes_per_s == pytest.approx(tb_per_s * 1e12)
    assert row.source
    assert row.date


def test_an_unknown_device_has_no_datasheet() -> None:
    assert find_datasheet("Intel(R) Xeon(R) Processor") is None
    assert find_datasheet("NVIDIA GH200 480GB") is None
    assert len({row.name for row in datasheets()}) == len(datasheets())
