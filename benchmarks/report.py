# SPDX-License-Identifier: Apache-2.0
"""What is written in the end: one JSON file and one Markdown table, with what they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.rounds import Row

_PACKAGES = ("monai-ssl", "torch", "monai", "lightly", "torchvision", "pillow", "numpy", "blosc2")
_COLUMNS = ("bench", "setting", "threads", "against", "unit", "ours", "theirs", "times as fast or small", "load")


def machine() -> dict[str, Any]:
    """Name the processor, the system and the versions of the libraries; None for one that is not installed."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "wait_policy": os.environ["OMP_WAIT_POLICY"].lower(),
        "versions": versions,
    }


def moment() -> dict[str, Any]:
    """Time (UTC) and load averages over 1, 5 and 15 minutes."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"utc": now.isoformat(timespec="seconds"), "load_average": [round(load, 2) for load in os.getloadavg()]}


def write(folder: Path, rows: list[Row], facts: dict[str, Any]) -> tuple[Path, Path]:
    """Write ``benchmarks.json`` and ``benchmarks.md`` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, table = folder / "benchmarks.json", folder / "benchmarks.md"
    data.write_text(json.dumps(facts | {"rows": [row.as_dict() for row in rows]}, indent=1) + "\n", encoding="utf-8")
    table.write_text(markdown(rows, facts), encoding="utf-8")
    return data, table


def markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """The facts, the table, and the notes below it."""
    start, end, host = facts["start"], facts["end"], facts["machine"]
    versions = ", ".join(f"{name} {number or '(not installed)'}" for name, number in host["versions"].items())
    lines = [
        f"`{facts['command']}`",
        "",
        f"{host['cpu']}, {host['cpus']} CPUs, Python {host['python']}; {versions}.",
        f"{facts['rounds']} rounds, interleaved; medians (least to greatest); OpenMP waits: {host['wait_policy']}. "
        f"From {start['utc']} to {end['utc']}; load average {start['load_average'][0]} at the start, "
        f"{end['load_average'][0]} at the end (over 15 minutes {start['load_average'][2]} and "
        f"{end['load_average'][2]}).",
        *(["**Tiny sizes: this only shows that everything runs; the figures mean nothing.**"] if facts["tiny"] else []),
        "",
        _line(_COLUMNS),
        _line("---" for _ in _COLUMNS),
    ]
    notes: dict[str, int] = {}
    for row in rows:
        mark = f" [{notes.setdefault(row.note, len(notes) + 1)}]" if row.note else ""
        cells = (row.bench, row.setting, row.threads, row.peer + mark, row.unit, row.ours, row.theirs, row.verdict)
        lines.append(_line((*cells, row.load)))
    lines += ["", *(f"[{number}] {note}." + "\n" for note, number in notes.items())]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
