# SPDX-License-Identifier: Apache-2.0
"""The benchmark command runs at tiny sizes, writes what it promises, and skips a peer that is not there."""

from __future__ import annotations

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
VOLUME_STEPS = (
    "masked autoencoding step",
    "masked autoencoding, peak memory",
    "masked autoencoding from a store",
)
METHODS = (
    *("SimCLR", "MoCo v2", "MoCo v3", "BYOL", "SimSiam", "SwAV", "Barlow Twins", "VICReg", "DINO", "PIRL", "rotation"),
    *("dense", "C2L"),
)
TRANSFER = ("LogME", "Fréchet distance", "H-score, shrunk")
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


@pytest.mark.slow
def test_one_command_writes_json_and_markdown(benchmarks, tmp_path, capsys):
    benchmarks("__main__").main(["--tiny", "--rounds", "1", "--threads", "1", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert sum("skipped: lightly" in line for line in printed.splitlines()) == 1
    assert "lightly" not in printed.replace("skipped: lightly", "").split("requirements.txt", 1)[1]

    facts = json.loads((tmp_path / "benchmarks.json").read_text())
    views = {"two views", "multi-crop", "two volume views"}
    steps = {f"method step, {name}" for name in METHODS}
    benches = {"NT-Xent", "InfoNCE", "reading", "SimCLR step", "loss, peak memory", "search", "embedding", "next image"}
    benches |= {*views, *steps, *CROPS, *VOLUME_STEPS, *TRANSFER}
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


def test_bare_passes_are_those_of_the_step(benchmarks):
    """MoCo's student and teacher see one view each, DINO's teacher the large views only."""
    bench = benchmarks("bench_methods")
    for name, learned, taught in (("MoCo v2", [4], [4]), ("DINO", [8, 24], [8])):
        step = bench.Step(bench.CASES[name], bench.TINY, "fp32", False)
        passes = [call for call in step.calls if not call.head]
        rows = {learns: [len(c.arguments[0]) for c in passes if (c.weight is not None) == learns] for learns in (0, 1)}
        assert rows == {1: learned, 0: taught}
        step.encode()
        student = [parameter for parameter in step.method.encoder.parameters() if parameter.requires_grad]
        others = {id(p) for p in step.method.parameters()} - {id(p) for p in student}
        assert all(p.grad is not None for p in student)
        assert all(p.grad is None for p in step.method.parameters() if id(p) in others)
        before = {key: value.clone() for key, value in step.method.encoder.state_dict().items()}
        step.run_without_encoder()
        assert all(value.equal(before[key]) for key, value in step.method.encoder.state_dict().items()), (
            "it was not run"
        )
        assert "forward" not in vars(step.method.encoder), "and is itself again"


@pytest.fixture
def labelled_folder(tmp_path):
    """Forty made-up images of twenty patients; those of one class are darker."""
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    lines = ["file,patient_id,group_id,split,label"]
    for number in range(40):
        patient, bright = number // 2, number // 2 % 2
        pixels = generator.integers(0, 256, (32, 32)) // (1 if bright else 2)
        Image.fromarray(pixels.astype(np.uint8)).resize((64, 64)).save(folder / f"{number}.png")
        split = ("train", "train", "test", "train")[patient // 2 % 4]
        lines.append(f"{number}.png,p{patient},p{patient},{split},{'bright' if bright else 'dark'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_equal_time_goes_on_where_it_stopped(benchmarks, labelled_folder, tmp_path, monkeypatch, capsys):
    equal_time = benchmarks("equal_time")
    started = []

    def here(command, **_):  # in this process, to be fast
        started.append(json.loads(command[-1])["cell"])
        arguments = equal_time.argparse.Namespace(**json.loads(command[-1]))
        equal_time.run_cell(arguments, arguments.cell, arguments.cell_seed)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(equal_time, "subprocess", SimpleNamespace(run=here, STDOUT=None))
    monkeypatch.setattr(equal_time.torch, "set_num_threads", lambda number: None)

    def command(*contestants, minutes="0.02"):
        options = ["--minutes", minutes, "--threads", "1", "--image_size", "32", "--architecture", "resnet10"]
        options += ["--dataset_dir", str(labelled_folder), "--output_dir", str(tmp_path / "out"), "--seeds", "1"]
        options += ["--draws", "2", "--label_fraction", "0.5", "--contestants", *contestants]
        monkeypatch.setattr(sys, "argv", ["equal_time", *options])
        return equal_time.main()

    assert command("raw pixels") == 0
    for name, value in {"batch_size": 8, "precision": "fp32", "channels_last": False}.items():
        monkeypatch.setitem(equal_time.TRAINING, name, value)  # without the measurement of precision, to be fast
    assert command("raw pixels", "ours MoCo v2") == 0
    assert started == ["raw pixels", "ours MoCo v2"]
    cell = json.loads((tmp_path / "out/cells/ours_moco_v2/seed-0.json").read_text())
    assert len(cell["probe"]["auc"]) == 2 and cell["training"]["steps"] >= 1 and cell["training"]["seconds"] > 0
    pixels = json.loads((tmp_path / "out/cells/raw_pixels/seed-0.json").read_text())
    assert min(pixels["probe"]["auc"]) > 0.9 and pixels["probe"]["subsets"] == cell["probe"]["subsets"]
    rows = [line for line in (tmp_path / "out/equal_time.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows if "---" not in row] == [
        "| contestant",
        "| ours MoCo v2",
        "| raw pixels",
    ]
    with pytest.raises(SystemExit):
        command("lightly SimCLR")
    assert "lightly is not here" in capsys.readouterr().err, "said before anything is trained"
    with pytest.raises(SystemExit, match=r"other settings \(minutes: 0.02 and 0.03\)"):
        command("raw pixels", minutes="0.03")


def test_our_views_are_checked_for_depth(benchmarks, monkeypatch):
    bench = benchmarks("bench_views")
    sizes = bench.Sizes(side=64, view=32, batch=1, batches=1)
    assert "100%" in bench._depth(sizes)
    in_full = bench._as_float
    monkeypatch.setattr(bench, "_as_float", lambda image: in_full(image >> 8 << 8))
    with pytest.raises(RuntimeError, match="lose depth"):
        bench._depth(sizes)


@pytest.mark.slow
def test_probe_cells(benchmarks, capsys):
    arguments = ["--images", "120", "--fractions", "0.5", "1.0", "--seeds", "1", "--threads", "1"]
    benchmarks("probe_cells").main(arguments)
    assert "2 cells in " in capsys.readouterr().out
