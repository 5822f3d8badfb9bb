# SPDX-License-Identifier: Apache-2.0
"""Label efficiency of an encoder: linear and fine-tuned, beside the untrained network and training from scratch.

Every cell is one run of the bundle ``radiograph_classification`` in a process of its own; finished cells are kept, so
the same command goes on where it stopped. All cells of a fraction and seed share the same labelled images.

    python -m benchmarks.label_efficiency --dataset_dir FOLDER --output_dir OUT --encoder_weights encoder.safetensors \
        --where "source=Kermany*" --label_column label
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from monai_ssl.evaluation import collect_reports, report_table

BUNDLE = Path(__file__).parents[1] / "bundles/radiograph_classification"


def cells(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Name and overrides of each run."""
    starts = {"linear-untrained": ["--mode", "linear"], "scratch": ["--mode", "scratch"]}
    if arguments.encoder_weights:
        weights = ["--encoder_weights", str(Path(arguments.encoder_weights).resolve())]
        starts |= {"linear": ["--mode", "linear", *weights], "finetune": ["--mode", "finetune", *weights]}
        starts["finetune"] += ["--backbone_factor", f"{arguments.backbone_factor}"]
    return [
        (f"{name}/fraction-{fraction:g}/seed-{seed}", [*start, "--label_fraction", f"{fraction}", "--seed", f"{seed}"])
        for seed, fraction, (name, start) in itertools.product(
            range(arguments.seeds), arguments.fractions, starts.items()
        )
    ]


def run_cell(arguments: argparse.Namespace, name: str, overrides: list[str], further: list[str]) -> int:
    """Run one cell, unless its report is there; its output goes to ``log.txt`` in its folder."""
    folder = Path(arguments.output_dir).resolve() / name
    if (folder / "test_report.json").is_file():
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(BUNDLE)]
    command += ["--config_file", str(BUNDLE / "configs/train.yaml"), "--output_dir", str(folder)]
    command += ["--cache_dir", str(Path(arguments.output_dir).resolve() / "data")]
    command += ["--dataset_dir", str(Path(arguments.dataset_dir).resolve()), "--label_column", arguments.label_column]
    command += ["--image_size", str(arguments.image_size), *overrides, *further]
    if arguments.where:
        command += ["--where", arguments.where]
    with open(folder / "log.txt", "w") as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    print(f"{name}: {'done' if status == 0 else f'FAILED ({status}), see {folder}/log.txt'}", flush=True)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--encoder_weights")
    parser.add_argument("--where")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone_factor", type=float, default=0.1, help="encoder's learning rate in fine-tuning")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time; set OMP_NUM_THREADS to match")
    arguments, further = parser.parse_known_args()  # anything else is an override of the bundle
    with ThreadPoolExecutor(arguments.jobs) as pool:
        statuses = list(pool.map(lambda cell: run_cell(arguments, *cell, further), cells(arguments)))
    print(report_table(collect_reports(arguments.output_dir)))
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
