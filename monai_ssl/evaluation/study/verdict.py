# SPDX-License-Identifier: Apache-2.0
"""What a study says in words: one sentence for each encoder, mode and task, no stronger than its numbers."""

from __future__ import annotations

from typing import Any

from monai_ssl.evaluation.study.config import Study
from monai_ssl.evaluation.study.tables import grouped

__all__ = ["verdicts"]

_LEVEL = 0.05


def verdicts(study: Study, tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Return sentences about every comparison with random weights, after Holm's correction at 5 %.

    >>> row = {"task": "t", "encoder": "c2l", "mode": "linear", "fraction": 0.1, "difference": 0.1, "p_holm": 0.01}
    >>> verdicts(None, {"comparisons": [{**row, "better_seeds": 3, "seeds": 3}]})
    ['t: with a linear probe, c2l is better than random weights with a label fraction of 0.1 (+0.100).']
    """
    found = []
    uses = {"linear": "a linear probe", "knn": "nearest neighbours", "frozen": "a frozen encoder"}
    for (task, encoder, mode), rows in grouped(tables["comparisons"], "task", "encoder", "mode").items():
        use = uses.get(mode, "fine-tuning")
        parts = {True: [], False: []}
        for row in rows:
            if row["p_holm"] is not None and row["p_holm"] < _LEVEL:
                parts[row["difference"] > 0].append(f"{row['fraction']:g} ({row['difference']:+.3f})")
        words = [
            f"{'better' if better else 'WORSE'} than random weights with a label fraction of {' and '.join(values)}"
            for better, values in parts.items()
            if values
        ]
        if words:
            found.append(f"{task}: with {use}, {encoder} is {' and '.join(words)}.")
        elif all(row["p_holm"] is None for row in rows):
            ahead, seeds = (sum(row[name] for row in rows) for name in ("better_seeds", "seeds"))
            found.append(
                f"{task}: with {use}, {encoder} is ahead of random weights in {ahead} of {seeds} cells; no test."
            )
        else:
            found.append(f"{task}: with {use}, {encoder} can't be told from random weights with any number of labels.")
    for row in tables.get("representation", ()):
        if row["collapsed"]:
            found.append(
                f"{row['task']}: the features of {row['encoder']} have collapsed: all images look alike to it."
            )
    return found
