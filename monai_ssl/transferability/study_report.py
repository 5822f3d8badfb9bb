# SPDX-License-Identifier: Apache-2.0
"""What a study found: transfer scores, the ranking of the sources, and whether any measure foretold it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from monai_ssl.evaluation.run_facts import csv_bytes, shown_number, table_line
from monai_ssl.weights import atomic_file

from .correlation import Correlation, correlation
from .experts import read_expert_distances
from .pair_measures import ENCODER_MEASURES, SET_MEASURES
from .source_study import RANDOM_SOURCE, SourceStudy
from .study_plots import heat_map_png, scatter_png

__all__ = ["MEASURES", "StudyReport", "study_report", "transfer_score", "verdict"]

MEASURES = {**SET_MEASURES, "experts": "experts' distance", **ENCODER_MEASURES}
"""All measures by name. Of those of :data:`ENCODER_MEASURES` higher should be better, of the others lower."""

_LEVEL = 0.05


def transfer_score(aucs: Sequence[float], reference: Sequence[float]) -> float:
    """Mean over folds of the relative change of the AUC in percent: ``100 (a - r) / r``, fold by fold.

    Args:
        aucs: of each fold, after transfer.
        reference: of the same folds.

    Raises:
        ValueError: the numbers of folds differ.

    Example:
        >>> transfer_score([0.9, 0.6], [0.6, 0.8])
        12.5
    """
    a, r = np.asarray(aucs, dtype=float), np.asarray(reference, dtype=float)
    if a.shape != r.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"both need the same folds, got {a.shape} and {r.shape}")
    return round(float((100 * (a - r) / r).mean()), 12)


def verdict(found: Correlation, higher_is_better: bool) -> str:
    """Say in a sentence whether a measure foretold the transfer.

    Args:
        found: its correlation with the transfer scores.
        higher_is_better: which sign it should have.
    """
    letter = "r" if found.kind == "pearson" else "rho"
    told = f"{letter} = {found.value:.2f}, permutation p = {found.permutation_p:.2f}"
    if found.permutation_p > _LEVEL:
        return f"did not predict the transfer as far as {found.n} pairs can tell ({told}): do not choose by it alone"
    if (found.value > 0) != higher_is_better:
        return f"pointed the wrong way in {found.n} pairs ({told}): do not choose by it"
    return f"went with the transfer in {found.n} pairs ({told})"


@dataclass
class StudyReport:
    """The findings of a study.

    Attributes:
        rows: one dictionary for each finished pair.
        correlations: one for each measure, kind and with or without the pairs of a set with itself.
        excluded: pairs that were left out, and why.
        missing: pairs that are not trained yet.
        undefined: measures that are not defined for a pair, and why.
        reference: what scores are relative to: ``"self"`` or ``"random"``.
        facts: of the study.
    """

    rows: list[dict[str, Any]]
    correlations: list[dict[str, Any]]
    excluded: dict[str, str]
    missing: list[str]
    undefined: dict[str, str]
    reference: str
    facts: dict[str, Any]

    def as_markdown(self) -> str:
        """Return the report as text with tables."""
        relative = "the target's own cell" if self.reference == "self" else "training from random weights"
        lines = [
            "# Sources and targets",
            "",
            f"Area under the ROC curve over {self.facts['num_folds']} folds "
            f"({'by patient' if self.facts['by_patient'] else 'image by image'}); score: its change in %, fold by "
            f"fold, relative to {relative}. Rank 1 is the best source of a target.",
            "",
            "| target | source | rank | AUC | std | score | against random |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in sorted(self.rows, key=lambda row: (row["target"], row["rank"] or 99)):
            cells = [row["target"], row["source"], row["rank"] or "-", shown_number(row["auc"])]
            cells += [shown_number(row["std"]), shown_number(row["score"], 2), shown_number(row["gain"], 2)]
            lines.append(table_line(cells))
        missing = [(pair, "") for pair in self.missing]
        for title, pairs in (
            ("Left out", self.excluded.items()),
            ("Not trained yet", missing),
            ("Measures not defined", self.undefined.items()),
        ):
            if pairs:
                lines += ["", f"{title}: " + "; ".join(f"{pair}{why and ': '}{why}" for pair, why in pairs) + "."]
        lines += [
            "",
            "## Did a measure foretell it?",
            "",
            "Correlation with the score. p of the permutation test shuffles within a target; the intervals resample "
            "sources. Of distances r should be negative, of the others positive. What counts for a choice is the order "
            "within a target (ranks among its sources, all targets together): the sentences below go by it. With few "
            "pairs and many measures one in twenty looks significant by chance.",
            "",
            "| measure | self-pairs | n | Pearson r | interval | p | permutation p | Spearman rho | p "
            "| rho within targets | permutation p |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.correlations:
            if "pearson" in row:
                r, rho, within = row["pearson"], row["spearman"], row["within"]
                interval = f"{shown_number(r['low'], 2)} to {shown_number(r['high'], 2)}"
                cells = [shown_number(r["value"], 2), interval, shown_number(r["p_value"], 2)]
                cells += [shown_number(r["permutation_p"], 2), shown_number(rho["value"], 2)]
                cells = [r["n"], *cells, shown_number(rho["p_value"], 2), shown_number(within["value"], 2)]
                cells.append(shown_number(within["permutation_p"], 2))
            else:
                cells = [row["n"], row["undefined"], *["-"] * 7]
            lines.append(table_line([MEASURES[row["measure"]], "with" if row["self_pairs"] else "without", *cells]))
        if any(row["self_pairs"] for row in self.correlations):
            lines += ["", "In self-pairs the encoder was trained by the very labels it is asked about."]
        told = [row for row in self.correlations if not row["self_pairs"] and "verdict" in row]
        lines += ["", *(f"- {MEASURES[row['measure']]} {row['verdict']}." for row in told)]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write ``report.md``, ``report.json``, ``report.csv``, ``heat_map.png`` and a scatter plot for each measure.

        Returns:
            The path of ``report.md``.
        """
        folder = Path(folder)
        contents = {
            "report.md": self.as_markdown().encode(),
            "report.json": json.dumps(asdict(self), indent=1).encode(),
        }
        if self.rows:
            contents["report.csv"] = csv_bytes([{k: v for k, v in row.items() if k != "aucs"} for row in self.rows])
            contents["heat_map.png"] = heat_map_png(self.rows)
        for name in dict.fromkeys(row["measure"] for row in self.correlations if "pearson" in row):
            r = next(row["pearson"] for row in self.correlations if row["measure"] == name and "pearson" in row)
            title = f"r = {r['value']:.2f}, p = {r['p_value']:.2f}, n = {r['n']}"
            contents[f"scatter_{name}.png"] = scatter_png(self.rows, name, MEASURES[name], title)
        for name, content in contents.items():
            with atomic_file(folder / name) as file:
                file.write(content)
        return folder / "report.md"


def study_report(study: SourceStudy, reference: str = "self", resamples: int = 1000) -> StudyReport:
    """Collect what a study has found so far.

    Args:
        study: cells that are not there yet are named in the report.
        reference: ``"self"``: scores are relative to the target's own cell, as in the paper; ``"random"``: to training
            from random weights.
        resamples: of the bootstrap of the correlations.

    Raises:
        ValueError: the reference is neither, or the experts' table does not have the study's names.
    """
    if reference not in ("self", RANDOM_SOURCE):
        raise ValueError(f"reference must be 'self' or {RANDOM_SOURCE!r}, got {reference!r}")
    cells, measures = study.results()
    experts = {}
    if study.experts is not None:
        experts = read_expert_distances(study.experts, study.sources, study.targets)
    aucs = {pair: [fold["auc"] for fold in cell["folds"]] for pair, cell in cells.items() if "folds" in cell}
    rows = []
    for (source, target), values in aucs.items():
        found = dict(measures.get((source, target), {"values": {}})["values"])
        if (source, target) in experts:
            found["experts"] = experts[source, target]
        base = aucs.get((target if reference == "self" else RANDOM_SOURCE, target))
        scratch = aucs.get((RANDOM_SOURCE, target))
        rows.append(
            {
                "source": source,
                "target": target,
                "auc": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)),
                "score": None if base is None else transfer_score(values, base),
                "gain": None if scratch is None else transfer_score(values, scratch),
                "rank": None,
                "aucs": values,
                **{name: found.get(name) for name in MEASURES},
            }
        )
    for target in study.targets:
        mine = [row for row in rows if row["target"] == target and row["source"] in study.sources]
        for row, rank in zip(mine, rankdata([-row["auc"] for row in mine], method="min"), strict=True):
            row["rank"] = int(rank)
    both = (True, False) if set(study.sources) & set(study.targets) else (False,)
    correlations = [
        {"measure": name, "self_pairs": with_self, **_correlations(rows, name, with_self, study.sources, resamples)}
        for name in MEASURES
        for with_self in both
        if any(row[name] is not None for row in rows)
    ]
    named = {f"{s} to {t}": (s, t) for s, t in study.cells()}
    excluded = {text: cells[pair]["excluded"] for text, pair in named.items() if "excluded" in cells.get(pair, {})}
    missing = [text for text, pair in named.items() if pair not in cells]
    facts = {"num_folds": study.num_folds, "by_patient": study.by_patient, "recipe": asdict(study.recipe)}
    undefined = {
        f"{MEASURES[name]} of {s} to {t}": why
        for (s, t), found in measures.items()
        for name, why in found["undefined"].items()
    }
    return StudyReport(rows, correlations, excluded, missing, undefined, reference, facts)


def _correlations(
    rows: Sequence[Mapping[str, Any]], name: str, with_self: bool, sources: Sequence[str], resamples: int
) -> dict[str, Any]:
    used = [
        row
        for row in rows
        if row["source"] in sources
        and row[name] is not None
        and row["score"] is not None
        and (with_self or row["source"] != row["target"])
    ]
    x, y = [row[name] for row in used], [row["score"] for row in used]
    options = {
        "groups": np.array([row["source"] for row in used]),
        "blocks": np.array([row["target"] for row in used]),
        "resamples": resamples,
    }
    try:
        found = {kind: correlation(x, y, kind=kind, **options) for kind in ("pearson", "spearman")}
        # A source is chosen for one target, and figures of different targets need not be comparable (LogME's are not).
        ranks = (_ranks_within(values, options["blocks"]) for values in (x, y))
        found["within"] = replace(correlation(*ranks, **options), kind="spearman")
    except ValueError as error:
        return {"n": len(used), "undefined": str(error)}
    told = {} if name == "cka" else {"verdict": verdict(found["within"], name in ENCODER_MEASURES)}
    return {"n": len(used), **{kind: asdict(value) for kind, value in found.items()}, **told}


def _ranks_within(values: Sequence[float], blocks: np.ndarray) -> np.ndarray:
    """Ranks among the sources of each target, less their mean."""
    ranks = np.zeros(len(values))
    for block in np.unique(blocks):
        mine = blocks == block
        ranks[mine] = rankdata(np.asarray(values)[mine]) - (mine.sum() + 1) / 2
    return ranks
