# SPDX-License-Identifier: Apache-2.0
"""Cells that train a network: one run of the task's bundle, in this process, with its output in the cell's folder."""

from __future__ import annotations

import contextlib
import csv
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow

from monai_ssl.engines.plain_errors import own_error
from monai_ssl.evaluation.study.question import Question
from monai_ssl.evaluation.study.results import Predictions, numbered, read_json

__all__ = ["run_bundle", "run_predictions", "train_bundle", "validation_curve"]


def run_bundle(question: Question, **overrides: Any) -> dict[str, Any]:
    """Train, validate and test as the bundle says; an interrupted training goes on from its last checkpoint.

    Args:
        question: what is trained for.
        overrides: settings or parts of the bundle in place of the question's, such as ``labels``.

    Returns:
        The first row of the bundle's test report: figures over all classes, and the facts of the run.

    Raises:
        ValueError, RuntimeError, OSError: this package's own error that the run ended with.
    """
    settings = {**question.settings, **overrides}
    folder = Path(settings["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    resume = (folder / "checkpoints").is_dir()
    train_bundle(question.task.config_file, folder / "log.txt", **settings, resume=resume)
    row = read_json(folder / "test_report.json")["rows"][0]
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the run is over; model.pt and the report stay
    return row


def train_bundle(config_file: Path, log: Path, **settings: Any) -> None:
    """Run a bundle's training in this process; what it prints and logs goes to a file.

    Args:
        config_file: of the bundle.
        log: file that is appended to.
        settings: settings or parts in place of the file's.

    Raises:
        ValueError, RuntimeError, OSError: this package's own error that the run ended with.
    """
    with _output_to(log):
        try:
            workflow = ConfigWorkflow(str(config_file), logging_file=False, workflow_type="train", **settings)
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except Exception as error:
            own = own_error(error)
            raise error if own is None else own from None


def run_predictions(question: Question) -> Predictions:
    """Return what a finished training of a classifier says of the test images.

    Raises:
        ValueError: the bundle's table of predictions is of other images.
    """
    labels, path = question.labels, Path(question.settings["output_dir"]) / "test_report_predictions.csv"
    with open(path, newline="", encoding="utf-8") as file:
        _, *lines = csv.reader(file)
    test = labels.rows["test"]
    row_of = dict(zip(question.store.table["path"].take(test).to_pylist(), test.tolist(), strict=True))
    if {line[0] for line in lines} != row_of.keys():
        raise ValueError(f"{path} is not of this task's test images; delete the cell's folder and run it again")
    found = {row_of[line[0]]: [float(value) for value in line[2:]] for line in lines}
    p = np.array([found[row] for row in test.tolist()])
    return Predictions(test, labels.targets[test], p, numbered(labels.groups[test]))


def validation_curve(folder: Path, metric: str, interval: int = 1) -> tuple[list[float], list[float]] | None:
    """Read the steps and values at which a training was validated from its ``metrics.csv``.

    Args:
        folder: of the run.
        metric: column, such as ``"val_auc"``.
        interval: epochs between validations; the table repeats a value until it is measured again.

    Returns:
        Steps and values; None if the training has no such table or column.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(metric) and int(row["epoch"]) % interval == 0]
    return ([float(row["step"]) for row in rows], [float(row[metric]) for row in rows]) if rows else None


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what is printed and logged to a file."""
    root, bundle = logging.getLogger(), logging.getLogger("monai.bundle.workflows")
    handlers, level = root.handlers[:], root.level
    with open(path, "a", encoding="utf-8") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        root.handlers[:] = [handler]
        root.setLevel(logging.INFO)
        bundle.setLevel(logging.ERROR)  # it has a handler of its own
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            root.handlers[:], root.level = handlers, level
            bundle.setLevel(logging.NOTSET)
