# SPDX-License-Identifier: Apache-2.0
"""The doctor sees containers' limits and missing packages, measures, and advises."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_ssl.doctor import examine, machine, packages
from monai_ssl.doctor.machine import cpu_limit, machine_section, memory_limit
from monai_ssl.doctor.packages import decoder_section, package_section
from monai_ssl.doctor.section import Section
from monai_ssl.doctor.speed import reading_section


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_limits_of_control_groups_version_2(tmp_path):
    process = write(tmp_path / "cgroup", "0::/pod/container\n")
    write(tmp_path / "fs/pod/container/cpu.max", "max 100000\n")
    write(tmp_path / "fs/pod/cpu.max", "150000 100000\n")
    write(tmp_path / "fs/pod/container/memory.max", "4000000000\n")
    write(tmp_path / "fs/pod/memory.max", "max\n")
    assert cpu_limit(process, tmp_path / "fs") == 1.5
    assert memory_limit(process, tmp_path / "fs") == 4_000_000_000


def test_limits_of_control_groups_version_1(tmp_path):
    # Inside a container the named folder does not exist; the mounted root is the container's own.
    process = write(tmp_path / "cgroup", "4:memory:/docker/1\n3:cpuset:/\n1:cpu,cpuacct:/docker/1\n0::/\n")
    write(tmp_path / "fs/cpu/cpu.cfs_quota_us", "300000\n")
    write(tmp_path / "fs/cpu/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert cpu_limit(process, tmp_path / "fs") == 3
    assert memory_limit(process, tmp_path / "fs") is None
    write(tmp_path / "fs/cpu/cpu.cfs_quota_us", "-1\n")
    assert cpu_limit(process, tmp_path / "fs") is None


def test_no_control_groups(tmp_path):
    assert cpu_limit(tmp_path / "nothing", tmp_path) is None
    assert memory_limit(write(tmp_path / "cgroup", "0::/\n"), tmp_path / "fs") is None


@pytest.mark.parametrize(("cores", "advice"), [(1, "set OMP_NUM_THREADS=1"), (4, "leaves 1 of 4"), (3, None)])
def test_threads_are_compared_with_cores(monkeypatch, tmp_path, cores, advice):
    monkeypatch.setattr(machine, "default_workers", lambda: 8)
    monkeypatch.setattr(machine, "cpu_limit", lambda: float(cores))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = [text for text in machine_section(tmp_path, torch.device("cpu")).advice if "OMP_NUM_THREADS" in text]
    assert len(found) == (advice is not None) and (advice is None or advice in found[0])


def test_little_room_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "free_memory", lambda: 10**9)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**8}))
    advice = " ".join(machine_section(tmp_path, torch.device("cpu")).advice)
    assert "1.0 GB of memory is little" in advice and "only 0.1 GB are free" in advice


def test_missing_and_foreign_versions_come_with_the_command(monkeypatch):
    assert not [text for text in package_section().advice if "pip install" in text], "this environment is complete"
    versions = {"pyjpegls": None, "monai": "1.4.0"}
    true_version = metadata.version

    def version(name: str) -> str:
        found = versions.get(name, true_version(name) if name not in versions else None)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(packages.metadata, "version", version)
    section = package_section()
    assert any("pyjpegls is missing: pip install" in text for text in section.advice)
    assert any("monai 1.4.0 is installed" in text and "<1.7" in text for text in section.advice)
    assert "pytorch-ignite" in str(section) and "extra 'itk'" in str(section)


def test_missing_decoders_come_with_the_command(monkeypatch):
    def decoders() -> dict:
        return {
            "pyjpegls": {"version": None, "transfer_syntaxes": []},
            "python-gdcm": {"version": "3.2", "transfer_syntaxes": ["a", "b"]},
        }

    monkeypatch.setattr(packages, "available_decoders", decoders)
    section = decoder_section()
    assert section.advice == ["pyjpegls is missing; it decodes JPEG-LS: pip install pyjpegls"]
    assert "3.2, 2 transfer syntaxes" in str(section)


def test_reading_is_timed_where_the_images_lie(tmp_path):
    with pytest.raises(ValueError, match="none of the folder's first files"):
        reading_section(tmp_path)
    random = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    section, rate = reading_section(tmp_path)
    assert rate > 0 and f"{rate:.0f} images/s" in str(section)
    assert "prepare" in section.advice[0]


def test_long_facts_are_wrapped_and_tables_are_not():
    section = Section("title")
    section.add("name", "word " * 40 + "\ncolumn      " + "1 " * 100)
    lines = str(section).splitlines()
    assert lines[0] == "title" and lines[1].startswith("  name   ")
    assert max(map(len, lines[:-1])) <= 120 and lines[-1].count("1") == 100


def test_the_whole_examination():
    report = examine(architecture="resnet10", size=32, batch_size=2, device="cpu")
    for word in ("packages", "decoders", "python-gdcm", "disk", "a store of them", "fp32, channels first", "images/s"):
        assert word in report, word
    assert report.rstrip().splitlines()[-1].startswith(("  * ", "nothing to change"))
    with pytest.raises(ValueError, match="unknown architecture"):
        examine(architecture="resnet12", device="cpu")
    with pytest.raises(ValueError, match="batch_size 1"):
        examine(batch_size=1, device="cpu")
    with pytest.raises(FileNotFoundError):
        examine("/no/such/folder")
