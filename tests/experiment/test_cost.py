from __future__ import annotations

import mmap
import sys
import time

import pytest
import torch

from nas_dynamic.experiment import cost
from nas_dynamic.experiment.cost import CostMeter

CPU = torch.device("cpu")


def counter(folder, name, microjoules, limit=999_999):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")


def test_energy_of_all_packages_across_the_end_of_a_counter(tmp_path):
    packages = [tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:1"]
    counter(packages[0], "package-0", 900_000)
    counter(packages[1], "package-1", 0)
    counter(tmp_path / "intel-rapl:0:0", "core", 5)  # a part of package-0
    counter(tmp_path / "intel-rapl:2", "psys", 5)  # all of the machine
    meter = CostMeter(CPU, powercap=tmp_path)
    counter(packages[0], "package-0", 100_000)
    meter.update()
    counter(packages[0], "package-0", 700_000)
    meter.update()
    counter(packages[0], "package-0", 300_000)
    counter(packages[1], "package-1", 250_000)
    counter(tmp_path / "intel-rapl:0:0", "core", 90_000)
    counter(tmp_path / "intel-rapl:2", "psys", 90_000)
    result = meter.result()
    assert result.joules == pytest.approx(0.2 + 0.6 + 0.6 + 0.25)
    assert result.energy_of == ["package-0 (RAPL)", "package-1 (RAPL)"]

    again = CostMeter(CPU, powercap=tmp_path, before=result)
    counter(packages[1], "package-1", 300_000)
    assert again.result().joules == pytest.approx(1.65 + 0.05)


def test_energy_that_cannot_be_read_is_none(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    assert CostMeter(CPU, powercap=tmp_path).result().joules is None
    assert CostMeter(CPU, powercap=tmp_path / "nowhere").result().energy_of == []
    # A part of the work was not measured, so the whole is not known.
    before = CostMeter(CPU, powercap=tmp_path).result()
    counter(tmp_path / "intel-rapl:0", "package-0", 0)
    result = CostMeter(CPU, powercap=tmp_path, before=before).result()
    assert (result.joules, result.energy_of) == (None, [])


def test_seconds_add_up_over_starts(tmp_path):
    first = CostMeter(CPU, powercap=tmp_path)
    time.sleep(0.05)
    result = first.result()
    assert 0.05 <= result.seconds < 5
    second = CostMeter(CPU, powercap=tmp_path, before=result)
    assert result.seconds <= second.result().seconds < result.seconds + 5


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be reset on Linux only")
def test_peak_memory_is_that_of_the_work(tmp_path):
    meter = CostMeter(CPU, powercap=tmp_path)
    before = meter.result().peak_memory
    # Mapped, since an allocator may hand out memory that earlier work freed and the process kept.
    with mmap.mmap(-1, 320 << 20) as block:
        for _ in range(320):
            block.write(bytes(1 << 20))
    result = meter.result()
    peak = result.peak_memory
    assert peak - before == pytest.approx(320 << 20, rel=0.2)
    later = CostMeter(CPU, powercap=tmp_path)
    assert later.result().peak_memory < peak - 200e6
    resumed = CostMeter(CPU, powercap=tmp_path, before=result)
    assert resumed.result().peak_memory == peak


def test_peak_memory_that_is_not_told_is_none(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 5 kB\n")
    monkeypatch.setattr(cost, "STATUS", tmp_path / "status")
    assert CostMeter(CPU, powercap=tmp_path).result().peak_memory is None
