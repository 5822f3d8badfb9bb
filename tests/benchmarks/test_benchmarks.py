# SPDX-License-Identifier: Apache-2.0
"""The benchmark command runs at tiny sizes, writes what it promises, and skips a peer that is not there."""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VOLUME_STEPS = (
    "masked autoencoding step",
    "masked autoencoding, peak memory",
    "masked autoencoding from a store",
)
CROPS = ("crops, cached", "crops, from the store", "crops, 5 epochs with prepare")


@pytest.fixture
def benchmarks(monkeypatch):
    """Import a module of the benchmarks, in an environment without lightly."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setitem(sys.modules, "lightly", None)  # importing it fails, installed or not
    peers = importlib.import_module("benchmarks.peers")
    peers.lightly.cache_clear()
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    peers.lightly.cache_clear()


def test_one_command_writes_json_and_markdown(benchmarks, tmp_path, capsys):
    benchmarks("__main__").main(["--tiny", "--rounds", "1", "--threads", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert sum("skipped: lightly" in line for line in printed.splitlines()) == 1
    assert "lightly" not in printed.replace("skipped: lightly", "").split("requirements.txt", 1)[1]

    facts = json.loads((tmp_path / "benchmarks.json").read_text())
    views = {"two views", "multi-crop", "two volume views"}
    benches = {"NT-Xent", "InfoNCE", "reading", "SimCLR step", *views, *CROPS, *VOLUME_STEPS}
    assert {row["bench"] for row in facts["rows"]} == benches
    assert facts["machine"]["versions"]["torch"] and facts["machine"]["cpu"]
    assert len(facts["start"]["load_average"]) == len(facts["end"]["load_average"]) == 3
    for row in facts["rows"]:
        assert row["threads"] == 1
        assert row["ours"]["median"] > 0 and row["theirs"]["median"] > 0
        assert (row["bench"] == "two views") <= ("16-bit grey level" in row["note"])

    table = (tmp_path / "benchmarks.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(lines) == 1 + len(facts["rows"])
    assert len({line.count("|") for line in lines}) == 1
    assert facts["machine"]["cpu"] in table and "load average" in table and "figures mean nothing" in table


def test_only_some_benches(benchmarks, tmp_path):
    command = benchmarks("__main__")
    command.main(["--tiny", "--rounds", "2", "--threads", "1", "--only", "losses", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "benchmarks.json").read_text())["rows"]
    assert {row["bench"] for row in rows} == {"NT-Xent", "InfoNCE"}
    assert all("equal values" in row["note"] for row in rows)


@pytest.mark.parametrize("option", [["--only", "speed"], ["--threads", "two"], ["--rounds", "0"]])
def test_wrong_options_are_named(benchmarks, option, capsys):
    with pytest.raises(SystemExit):
        benchmarks("__main__").main(option)
    assert option[0] in capsys.readouterr().err


def test_rounds_alternate_and_ratios_pair_within_a_round(benchmarks):
    rounds = benchmarks("rounds")
    order = []

    def contestant(name, values):
        values = iter(values)

        def measure():
            order.append(name)
            return next(values)

        return measure

    figures = rounds.interleaved({"a": contestant("a", [9, 1, 2]), "b": contestant("b", [9, 2, 8])}, 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert figures == {"a": [1, 2], "b": [2, 8]}

    shared = {"bench": "x", "setting": "y", "threads": 1, "peer": "b"}
    faster = rounds.compare_times(figures["a"], figures["b"], goal=2.5, **shared)
    assert (faster.ratio.min, faster.ratio.median, faster.ratio.max) == (2, 3, 4)
    assert faster.reached and "reached" in faster.verdict
    slower = rounds.compare_rates(figures["a"], figures["b"], unit="images/s", goal=1.0, **shared)
    assert slower.ratio.max == 0.5 and not slower.reached and "MISSED" in slower.verdict
    unclear = rounds.compare_rates([1.0, 3.0], [2.0, 2.0], unit="images/s", **shared)
    assert unclear.reached is None and "no clear difference" in unclear.verdict


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_peak_memory_is_that_of_the_work_alone(benchmarks):
    held = os.urandom(200 * 2**20)  # ru_maxrss of a child would begin at this
    peak = benchmarks("memory").peak_mib("benchmarks.memory", partial(os.urandom, 1), partial(os.urandom, 64 * 2**20))
    assert len(held) and 60 < peak < 90


def test_our_views_are_checked_for_depth(benchmarks, monkeypatch):
    bench = benchmarks("bench_views")
    sizes = bench.Sizes(side=64, view=32, batch=1, batches=1)
    assert "100%" in bench._depth(sizes)
    in_full = bench._as_float
    monkeypatch.setattr(bench, "_as_float", lambda image: in_full(image >> 8 << 8))
    with pytest.raises(RuntimeError, match="lose depth"):
        bench._depth(sizes)
