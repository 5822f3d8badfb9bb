# SPDX-License-Identifier: Apache-2.0
"""Run the configs of a bundle as `monai.bundle run` does, for the tests of bundles."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from monai_ssl.engines.plain_errors import own_error

BUNDLES = Path(__file__).parents[2] / "bundles"
WORKFLOWS = {"train": "train", "evaluate": "evaluation", "inference": "inference"}


class BundleRuns:
    """The configs of one bundle.

    Args:
        name: of its folder.
    """

    def __init__(self, name: str) -> None:
        self.folder = BUNDLES / name

    def run(self, config: str, settings: dict[str, Any], **options: Any) -> ConfigWorkflow:
        """Run one config with the settings in place of its own."""
        workflow = ConfigWorkflow(
            config_file=str(next((self.folder / "configs").glob(f"{config}.*"))),
            workflow_type=WORKFLOWS[config],
            bundle_root=str(self.folder),
            **{"logging_file": False, **options},
            **settings,
        )
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()
        return workflow

    def message(self, config: str, settings: dict[str, Any]) -> str:
        """Return what the package says about a mistake."""
        return str(self.error(config, settings))

    def error(self, config: str, settings: dict[str, Any]) -> Exception:
        """Return the package's own error that a run ends with."""
        with pytest.raises((RuntimeError, ValueError)) as caught:
            self.run(config, settings)
        error = own_error(caught.value)
        assert error is not None, caught.value
        return error

    def train_in_two_processes(self, settings: dict[str, Any]) -> str:
        """Run the training with `multi_gpu_train.yaml` and return what it printed."""
        configs = [str(self.folder / "configs" / name) for name in ("train.yaml", "multi_gpu_train.yaml")]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["-m", "monai.bundle", "run", "--bundle_root", str(self.folder), "--config_file", str(configs)]
        for key, value in settings.items():
            command += [f"--{key}", str(value)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout


@contextmanager
def untouched_logging() -> Iterator[None]:
    """Undo what a bundle's logging.conf changes."""
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        yield
    finally:
        logging.root.handlers[:], logging.root.level = handlers, level
