# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks: ``python -m benchmarks [--rounds N] [--threads 1,2] [--output FOLDER] [--only losses,views]``.

Prints each row as it comes and writes one JSON file and one Markdown table. Peers that are not installed print a line
and are skipped.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    bench_loader,
    bench_loss_memory,
    bench_losses,
    bench_methods,
    bench_multi_crop,
    bench_next_image,
    bench_patches,
    bench_search,
    bench_step,
    bench_transferability,
    bench_views,
    bench_volume_loader,
    bench_volume_step,
    bench_volume_views,
    report,
)

BENCHES = {
    "losses": bench_losses.run,
    "loss_memory": bench_loss_memory.run,
    "views": bench_views.run,
    "multi_crop": bench_multi_crop.run,
    "volume_views": bench_volume_views.run,
    "loader": bench_loader.run,
    "patches": bench_patches.run,
    "step": bench_step.run,
    "methods": bench_methods.run,
    "volume_step": bench_volume_step.run,
    "volume_loader": bench_volume_loader.run,
    "search": bench_search.run,
    "next_image": bench_next_image.run,
    "transferability": bench_transferability.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    options = _parsed(arguments)
    warnings.filterwarnings("ignore", module="(torch|torchvision|lightly|monai)")
    logging.getLogger("ignite").setLevel(logging.WARNING)
    facts = {
        "command": "python -m benchmarks" + _shown(options),
        "tiny": options.tiny,
        "rounds": options.rounds,
        "threads": options.threads,
        "machine": report.machine(),
        "start": report.moment(),
    }
    print(f"{facts['machine']['cpu']}, load average {facts['start']['load_average']}", flush=True)
    rows = []
    for name in options.only:
        for row in BENCHES[name](options.rounds, options.threads, options.tiny):
            print(row, flush=True)
            rows.append(row)
        written = report.write(options.output, rows, facts | {"end": report.moment()})  # an interruption keeps it
    for path in written:
        print(f"wrote {path}")


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each contestant (default 5)")
    parser.add_argument("--threads", default="1,2", help="threads, separated by commas; the steps take the most (1,2)")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"), help="folder for the results")
    parser.add_argument("--only", default=",".join(BENCHES), help=f"some of {','.join(BENCHES)}")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that everything runs")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    unknown = [name for name in options.only if name not in BENCHES]
    if unknown:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    try:
        options.threads = [int(number) for number in options.threads.split(",")]
    except ValueError:
        parser.error(f"--threads: {options.threads!r} is not a list of numbers such as 1,2")
    if options.rounds < 1 or min(options.threads) < 1:
        parser.error("--rounds and --threads are 1 or more")
    return options


def _shown(options: argparse.Namespace) -> str:
    """The options that decide what was measured."""
    threads = ",".join(map(str, options.threads))
    text = f" --rounds {options.rounds} --threads {threads}"
    if options.only != list(BENCHES):
        text += f" --only {','.join(options.only)}"
    return text + (" --tiny" if options.tiny else "")


if __name__ == "__main__":
    main()
