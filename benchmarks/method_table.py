# SPDX-License-Identifier: Apache-2.0
"""Every method of a pretraining bundle, by its fragments: a linear probe of its encoder and of the untrained one.

Every cell is one run of the bundle in a process of its own; finished cells are kept, so the same command goes on where
it stopped. All cells share the prepared images.

    python -m benchmarks.method_table --bundle radiograph_joint_embedding_pretraining --output_dir OUT --seeds 0 1 2
    python -m benchmarks.method_table --bundle volume_joint_embedding_pretraining --output_dir OUT --methods simclr byol
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from monai.bundle import ConfigParser

BUNDLES = Path(__file__).parents[1] / "bundles"
DEFAULT = "simclr"  # what train.yaml alone trains


def methods_of(bundle: Path) -> list[str]:
    """The default, then every fragment that names a method."""
    fragments = sorted(path for path in (bundle / "configs").glob("*.yaml") if path.stem != "train")
    return [DEFAULT, *(path.stem for path in fragments if "method" in ConfigParser.load_config_file(path))]


def run_cell(arguments: argparse.Namespace, method: str, seed: int, further: list[str]) -> int:
    """Run one cell, unless its summary is there; its output goes to ``log.txt`` in its folder."""
    bundle, folder = BUNDLES / arguments.bundle, Path(arguments.output_dir).resolve() / method / f"seed-{seed}"
    if (folder / "summary.json").is_file():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    configs = [str(bundle / "configs/train.yaml")]
    configs += [] if method == DEFAULT else [str(bundle / f"configs/{method}.yaml")]
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle), "--config_file", str(configs)]
    command += ["--output_dir", str(folder), "--cache_dir", str(Path(arguments.output_dir).resolve() / "data")]
    with open(folder / "log.txt", "w") as log:
        status = subprocess.run([*command, "--seed", f"{seed}", *further], stdout=log, stderr=log).returncode
    print(f"{method}, seed {seed}: {'done' if status == 0 else f'FAILED ({status}), see {folder}/log.txt'}", flush=True)
    return status


def table(folder: Path) -> str:
    """Markdown, one row a method: means over the seeds, each seed's difference with its interval, and the time."""
    rows = ["| method | linear AUC | untrained | difference, seed by seed | few labels, difference | rank | min |"]
    rows.append("|---|---|---|---|---|---|---|")
    for method in sorted(path.name for path in folder.iterdir() if any(path.glob("seed-*/summary.json"))):
        cells = sorted((folder / method).glob("seed-*/summary.json"))
        found = [json.loads(path.read_text()) for path in cells]
        probes = [summary["probe"] for summary in found if summary["probe"]]
        if not probes:
            continue
        after, before = (statistics.mean(p[name]["auc"] for p in probes) for name in ("pretrained", "untrained"))
        gains = [p["difference"] for p in probes]
        shown = ", ".join(
            f"{g['auc']:+.3f}" + (f" ({g['low']:+.3f} to {g['high']:+.3f})" if g["low"] is not None else "")
            for g in gains
        )
        few = [p["few_labels"] for p in probes if p["few_labels"]]
        gain = f"{statistics.mean(f['pretrained']['auc'] - f['untrained']['auc'] for f in few):+.3f}" if few else "-"
        rank = statistics.mean(summary["effective_rank"]["pretrained"] for summary in found)
        minutes = statistics.mean(_seconds(path.parent) for path in cells) / 60
        rows.append(
            f"| {method} | {after:.3f} | {before:.3f} | {shown} | {gain} | {rank:.0f} of {found[0]['num_features']} "
            f"| {minutes:.1f} |"
        )
    return "\n".join(rows)


def _seconds(folder: Path) -> float:
    """Time of the training itself, by its own table."""
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    return float(lines[-1].split(",")[header.split(",").index("seconds")])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="radiograph_joint_embedding_pretraining")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--methods", nargs="+", help="names of fragments; all that name a method, and simclr")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; set OMP_NUM_THREADS to match")
    arguments, further = parser.parse_known_args()  # anything else is an override of the bundle
    cells = itertools.product(arguments.seeds, arguments.methods or methods_of(BUNDLES / arguments.bundle))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        statuses = list(pool.map(lambda cell: run_cell(arguments, cell[1], cell[0], further), cells))
    print(table(Path(arguments.output_dir)))
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
