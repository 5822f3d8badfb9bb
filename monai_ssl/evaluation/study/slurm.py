# SPDX-License-Identifier: Apache-2.0
"""A SLURM job array that computes a study's cells, one task of the array a cell."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from monai_ssl.evaluation.study.cells import study_cells
from monai_ssl.evaluation.study.config import Study
from monai_ssl.weights import atomic_file

__all__ = ["write_slurm_array"]


def write_slurm_array(study: Study, command: str, path: str | os.PathLike) -> Path:
    """Write a script for ``sbatch``.

    Cells that are done, or that another process holds, end at once, so the array can be submitted again after a
    failure. Memory, time and partition are for the user to fill in (``sbatch --time=... --gres=gpu:1 FILE``).

    Args:
        study: whose cells.
        command: that computes a cell when ``--cell NUMBER`` follows.
        path: of the script.

    Returns:
        The path.
    """
    path, last = Path(path), len(study_cells(study)) - 1
    logs = study.output_dir / "slurm"
    lines = [
        "#!/bin/bash",
        "#SBATCH --job-name=monai_ssl",
        f"#SBATCH --array=0-{last}",
        f"#SBATCH --output={logs}/%A_%a.txt",
        "",
        "# Afterwards, once all are done, the report:",
        f"#   {command} --report_only",
        "",
        "set -euo pipefail",
        f"cd {shlex.quote(os.getcwd())}",
        f'{command} --cell "$SLURM_ARRAY_TASK_ID"',
        "",
    ]
    logs.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write("\n".join(lines).encode())
    return path
