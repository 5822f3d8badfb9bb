# SPDX-License-Identifier: Apache-2.0
"""The tables of a study of labelling: learning curves, areas under them, and labels needed for a target."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_ssl.label.study.config import LabelStudy
from monai_ssl.label.study.rounds import ALL_LABELS, chains, read_chain, read_test
from monai_ssl.metrics import area_under_roc, bootstrap_difference, bootstrap_interval, holm, labels_to_reach

__all__ = ["StudyTables", "area_under_curve", "study_tables"]

Row = dict[str, Any]


@dataclass(frozen=True)
class StudyTables:
    """Tables as rows of plain values.

    Attributes:
        rounds: one row for each strategy, seed and round.
        curves: one row for each strategy and number of labels: mean over the seeds.
        strategies: one row for each strategy, by the area under the curve.
        full_score: with all labels, None if not computed.
        full_labels: how many that are.
        target: share of ``full_score`` to be reached.
        measure: ``"auc"`` or ``"dice"``.
        missing: chains that are not whole.
    """

    rounds: list[Row]
    curves: list[Row]
    strategies: list[Row]
    full_score: float | None
    full_labels: int | None
    target: float | None
    measure: str
    missing: int


def area_under_curve(num_labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under a learning curve over the logarithm of the labels, divided by its width: a mean score.

    With a single point it is that point.

    Example:
        >>> area_under_curve([10, 100, 1000], [0.6, 0.8, 0.9])
        0.775
    """
    x, y = np.log(np.asarray(num_labels, dtype=np.float64)), np.asarray(scores, dtype=np.float64)
    if len(x) == 1:
        return float(y[0])
    return float(round(np.trapezoid(y, x) / (x[-1] - x[0]), 12))


def study_tables(study: LabelStudy) -> StudyTables:
    """Make the tables of all chains that are whole.

    The intervals resample the patients of the test split, all seeds together: they tell how surely the test images tell
    strategies apart. ``seed_sd`` tells how much the seeds differ.

    Raises:
        FileNotFoundError: nothing has been computed.
        ValueError: no chain is whole, or a file is damaged.
    """
    test = read_test(study)
    truth, patients = test["truth"], test["patients"]
    measure = "auc" if study.task.kind == "classification" else "dice"
    found: dict[str, list[list[Row]]] = {}
    missing = 0
    for name, seed in chains(study):
        rounds = read_chain(study, name, seed)[: len(study.budgets)]
        if len(rounds) == len(study.budgets):
            found.setdefault(name, []).append(rounds)
        else:
            missing += 1
    if not found:
        raise ValueError(f"no chain of rounds in {study.output_dir} is whole; run the study again, it goes on")
    full = read_chain(study, ALL_LABELS)
    full_score = full[0]["score"] if full else None
    target = None if full_score is None else study.target_share * full_score
    rounds = [_round_row(content) for seeds in found.values() for chain in seeds for content in chain]
    options = {"groups": patients, "n": study.resamples, "confidence": study.confidence}
    curves = [row for name, seeds in found.items() for row in _curve(name, seeds, truth, measure, options)]
    strategies = [
        _strategy_row(name, seeds, found.get("random"), truth, measure, target, options)
        for name, seeds in found.items()
    ]
    compared = [row for row in strategies if row["p"] is not None]
    for row, p in zip(compared, holm([row["p"] for row in compared]), strict=True):
        row["p_holm"] = float(p)
    strategies.sort(key=lambda row: -row["area"])
    full_labels = full[0]["labels"] if full else None
    return StudyTables(rounds, curves, strategies, full_score, full_labels, target, measure, missing)


def _round_row(content: Row) -> Row:
    return {name: content[name] for name in ("strategy", "seed", "round", "chosen_by", "labels", "score", "seconds")}


def _curve(name: str, seeds: list[list[Row]], truth: np.ndarray, measure: str, options: dict) -> list[Row]:
    rows = []
    for contents in zip(*seeds, strict=True):
        scores = [content["score"] for content in contents]
        values = np.stack([content["values"] for content in contents], axis=1)  # (N, seeds, ...)
        low, high = _interval(lambda y, v: _mean_score(measure, y, v), truth, values, options)
        rows.append(
            {
                "strategy": name,
                "labels": contents[0]["labels"],
                "mean": statistics.mean(scores),
                "low": low,
                "high": high,
                "seed_sd": statistics.stdev(scores) if len(scores) > 1 else None,
                "seeds": len(scores),
            }
        )
    return rows


def _strategy_row(
    name: str,
    seeds: list[list[Row]],
    random: list[list[Row]] | None,
    truth: np.ndarray,
    measure: str,
    target: float | None,
    options: dict,
) -> Row:
    labels = [content["labels"] for content in seeds[0]]

    def area(y: np.ndarray, values: np.ndarray) -> float:
        return area_under_curve(labels, [_mean_score(measure, y, values[:, :, i]) for i in range(len(labels))])

    values = _stacked(seeds)
    areas = [area_under_curve(labels, [content["score"] for content in chain]) for chain in seeds]
    mean_scores = np.mean([[content["score"] for content in chain] for chain in seeds], axis=0)
    low, high = _interval(area, truth, values, options)
    row = {
        "strategy": name,
        "area": statistics.mean(areas),
        "area_low": low,
        "area_high": high,
        "seed_sd": statistics.stdev(areas) if len(areas) > 1 else None,
        "seeds": len(areas),
        "first": float(mean_scores[0]),
        "last": float(mean_scores[-1]),
        "labels_needed": None,
        "needed": "-",
        **dict.fromkeys(("difference", "difference_low", "difference_high", "p", "p_holm")),
        "better_seeds": None,
    }
    if target is not None:
        needed = labels_to_reach(labels, mean_scores, target)
        row |= {"labels_needed": needed.labels, "needed": str(needed)}
    if name == "random" or random is None:
        return row
    theirs = {chain[0]["seed"]: chain for chain in random}
    pairs = [(chain, theirs[chain[0]["seed"]]) for chain in seeds if chain[0]["seed"] in theirs]
    if not pairs:
        return row
    ours, others = (_stacked(side) for side in zip(*pairs, strict=True))
    score = [[area_under_curve(labels, [one["score"] for one in chain]) for chain in pair] for pair in pairs]
    row |= {
        "difference": statistics.mean(a - b for a, b in score),
        "better_seeds": sum(a > b for a, b in score),
    }
    try:
        found = bootstrap_difference(area, truth, ours, others, **options)
    except ValueError:  # too few patients with some class
        return row
    return row | {"difference_low": found.low, "difference_high": found.high, "p": found.p_value}


def _stacked(seeds: list[list[Row]]) -> np.ndarray:
    """Values of the test images (N, seeds, rounds, ...)."""
    return np.stack([np.stack([content["values"] for content in chain], axis=1) for chain in seeds], axis=1)


def _mean_score(measure: str, truth: np.ndarray, values: np.ndarray) -> float:
    """Mean figure over the seeds of values (N, seeds, ...)."""
    return float(np.mean([score_of(measure, truth, values[:, i]) for i in range(values.shape[1])]))


def score_of(measure: str, truth: np.ndarray, values: np.ndarray) -> float:
    """Return the figure of one model on the test images, as its learner does."""
    if measure == "auc":
        return area_under_roc(truth, values)
    from monai_ssl.evaluation.segmentation_report import class_mean

    return class_mean(values)


def _interval(metric: Any, truth: np.ndarray, values: np.ndarray, options: dict) -> tuple[float | None, float | None]:
    try:
        found = bootstrap_interval(metric, truth, values, **options)
    except ValueError:  # too few patients with some class
        return None, None
    return found.low, found.high
