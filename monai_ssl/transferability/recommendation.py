# SPDX-License-Identifier: Apache-2.0
"""Rank encoders and data sets for a target, and say how little such a ranking may mean."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from monai_ssl.evaluation import Preprocessing
from monai_ssl.evaluation.run_facts import table_line
from monai_ssl.weights import open_encoder, read_manifest

from .frechet import frechet_distance
from .h_score import regularised_h_score
from .knn_transfer import knn_transfer
from .label_transport import label_transport_distance
from .labelled_set import LabelledSet, open_labelled_set
from .logme import log_me
from .mmd import squared_mmd
from .pair_measures import Probe, features_of

__all__ = ["Recommendation", "SourceRanking", "recommend_sources"]

logger = logging.getLogger(__name__)

_LABELS = {"log_me": log_me, "regularised_h_score": regularised_h_score, "knn": knn_transfer}
_SHOWN = {
    "log_me": "LogME",
    "regularised_h_score": "reg. H-score",
    "knn": "neighbours' AUC",
    "frechet": "Fréchet",
    "mmd": "squared MMD",
    "label_transport": "label transport",
}
WARNING = (
    "Such measures often predict poorly which source transfers best: in the study of van den Brandt et al. "
    "(arXiv 2107.05940) neither Task2Vec (r = -0.11, p = 0.61) nor experts (r = 0.24, p = 0.26) did over 24 pairs. "
    "Take the ranking as the order in which to try, and measure by fine-tuning."
)


@dataclass(frozen=True)
class SourceRanking:
    """One source among those of its kind.

    Attributes:
        name: of the source.
        values: each measure on all images.
        rank: mean rank over the measures, on all images.
        low: 5th percentile of that rank over half-samples, as a place (1 is the best).
        high: 95th percentile.
        best: share of the half-samples in which it is the first.
    """

    name: str
    values: dict[str, float]
    rank: float
    low: float
    high: float
    best: float


@dataclass(frozen=True)
class Recommendation:
    """A ranking of encoders, a ranking of data sets, and what to make of them.

    Attributes:
        encoders: best first; by what their features tell about the target's labels.
        data_sets: best first; by their distance from the target in a probe's features.
        notes: sentences for the user; the last one is always there.
    """

    encoders: list[SourceRanking]
    data_sets: list[SourceRanking]
    notes: list[str]

    def as_text(self) -> str:
        """Return both tables and the notes."""
        lines = []
        for title, ranking in (("Encoders", self.encoders), ("Data sets", self.data_sets)):
            if not ranking:
                continue
            names = list(ranking[0].values)
            lines += [
                title,
                "",
                table_line(["source", *(_SHOWN[n] for n in names), "mean rank", "place, 90 %", "first"]),
            ]
            lines.append("|" + "---|" * (len(names) + 4))
            for one in ranking:
                figures = [f"{one.values[name]:.3g}" for name in names]
                place = f"{one.low:.0f} to {one.high:.0f}"
                lines.append(table_line([one.name, *figures, f"{one.rank:.1f}", place, f"{one.best:.0%}"]))
            lines.append("")
        return "\n".join([*lines, *self.notes])


def recommend_sources(
    target: str | Path,
    sources: Sequence[str | Path],
    cache_dir: str | Path,
    *,
    label_column: str | None = None,
    where: str | None = None,
    probe_weights: str | Path | None = None,
    study: str | Path | None = None,
    max_images: int = 500,
    image_size: int | None = None,
    resamples: int = 100,
    device: str = "cpu",
    seed: int = 0,
    num_workers: int | None = None,
) -> Recommendation:
    """Rank sources for a target without training.

    Encoders are ranked by LogME, the regularised H-score and nearest neighbours on the target's labels; data sets by
    Fréchet distance, MMD and label-aware transport of a probe's features. The ranks are averaged. The uncertainty comes
    from half-samples: half of the target's patients (of data sets: also half of the source's images) are drawn without
    putting back, which spreads a mean as much as a new sample would, and makes no doubles, which nearest neighbours and
    MMD would take for real.

    Args:
        target: folder of labelled images.
        sources: encoder files (``.safetensors``), and folders of labelled images.
        cache_dir: for prepared images.
        label_column: of the target's table and of the sources'; default: ``"label"``.
        where: row filter of the target.
        probe_weights: encoder file of the network that data sets are compared by; None: the first encoder among the
            sources, else random weights.
        study: folder of a finished study, whose findings about the measures are cited.
        max_images: most images of a set that are looked at.
        image_size: side of the images in pixels; None: as the weights say, 96 for random ones.
        resamples: half-samples.
        device: where to compute.
        seed: of all draws.
        num_workers: processes that prepare images.

    Returns:
        Both rankings.

    Raises:
        FileNotFoundError: a source, the target or the study is not there.
        ValueError: two sources have one name, there are fewer than two of them, or the target's labels are too few.
    """
    paths = _named_sources(sources)
    if len(paths) < 2:
        raise ValueError("a ranking needs at least two sources")
    cache_dir = Path(cache_dir)
    options = {"label_column": label_column, "num_workers": num_workers}
    data = open_labelled_set(target, cache_dir / "target", where=where, **options)
    rows = data.draw(max_images, seed)
    files = {name: path for name, path in paths.items() if path.is_file()}
    folders = {name: path for name, path in paths.items() if path.is_dir()}
    halves = [_half(data.classes_of(rows), data.patients_of(rows), seed + n) for n in range(resamples)]
    notes = []
    encoders = _rank_encoders(files, data, rows, halves, image_size, device) if files else []
    sets: list[SourceRanking] = []
    if folders:
        probe = Probe(
            probe_weights or next(iter(files.values()), None), image_size=image_size, device=device, seed=seed
        )
        opened = {
            name: open_labelled_set(path, cache_dir / name, name=name, **options) for name, path in folders.items()
        }
        shared = {name: len(other.contents() & data.contents()) for name, other in opened.items()}
        notes += [f"{count} images of the target are in {name} too." for name, count in shared.items() if count]
        if probe.random:
            notes.append("Data sets were compared by a random network; --probe takes a pretrained one.")
        sets = _rank_sets(opened, data, rows, halves, probe, max_images, seed)
    notes += [text for text in (_overlap("encoders", encoders), _overlap("data sets", sets)) if text]
    notes += _of_study(study, encoders, sets) if study else []
    return Recommendation(encoders, sets, [*notes, WARNING])


def _rank_encoders(
    files: dict[str, Path],
    data: LabelledSet,
    rows: np.ndarray,
    halves: list[np.ndarray],
    image_size: int | None,
    device: str,
) -> list[SourceRanking]:
    y, groups = data.classes_of(rows), data.patients_of(rows)
    size = None if image_size is None else (image_size,) * 2
    features = {}
    for name, path in files.items():
        preprocessing = Preprocessing.from_manifest(read_manifest(path), size)
        features[name] = features_of(open_encoder(path), data, rows, preprocessing, device)

    def values(x: np.ndarray, chosen: np.ndarray) -> list[float]:
        extra = {"knn": {"groups": groups[chosen]}}
        return [measure(x[chosen], y[chosen], **extra.get(key, {})) for key, measure in _LABELS.items()]

    whole = np.array([values(x, np.arange(len(rows))) for x in features.values()])  # (sources, measures)
    drawn = np.array([[values(x, half) for x in features.values()] for half in halves])
    return _ranked(list(features), list(_LABELS), whole, drawn, higher_is_better=True)


def _rank_sets(
    opened: dict[str, LabelledSet],
    data: LabelledSet,
    rows: np.ndarray,
    halves: list[np.ndarray],
    probe: Probe,
    max_images: int,
    seed: int,
) -> list[SourceRanking]:
    count = min(max_images, len(rows), *(len(one.rows) for one in opened.values()))
    chosen = {name: one.draw(count, seed) for name, one in opened.items()}
    probe.settle([(data, rows), *((opened[name], mine) for name, mine in chosen.items())])
    x, y = probe.features(data, rows), data.classes_of(rows)
    facts = {name: (probe.features(opened[name], mine), opened[name].classes_of(mine)) for name, mine in chosen.items()}
    of_target = np.flatnonzero(np.isin(rows, data.draw(count, seed)))

    def values(name: str, mine: np.ndarray, theirs: np.ndarray) -> list[float]:
        a, labels = facts[name]
        transport = label_transport_distance(a[theirs], labels[theirs], x[mine], y[mine], max_samples=200)
        return [frechet_distance(a[theirs], x[mine]), squared_mmd(a[theirs], x[mine]), transport]

    whole = np.array([values(name, of_target, np.arange(count)) for name in facts])
    drawn = []
    for number, half in enumerate(halves):
        mine = half[: count // 2] if len(half) > count // 2 else half
        parts = {
            name: _half(labels, np.arange(count).astype(str), seed + 7919 + number)[: len(mine)]
            for name, (_, labels) in facts.items()
        }
        drawn.append([values(name, mine, part) for name, part in parts.items()])
    return _ranked(list(facts), ["frechet", "mmd", "label_transport"], whole, np.array(drawn), higher_is_better=False)


def _half(classes: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Positions of half of the groups, rounded up, in random order: of each class apart, at least two of its groups.

    A group counts for the class of its first sample.
    """
    rng = np.random.default_rng(seed)
    _, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    taken = []
    for number in np.unique(classes[first]):
        mine = rng.permutation(np.flatnonzero(classes[first] == number))
        taken += mine[: max(2, -(-len(mine) // 2))].tolist()
    return rng.permutation(np.flatnonzero(np.isin(codes, taken)))


def _ranked(
    names: list[str], measures: list[str], whole: np.ndarray, drawn: np.ndarray, higher_is_better: bool
) -> list[SourceRanking]:
    """Order sources by the mean of their ranks.

    Args:
        names: of the sources.
        measures: names.
        whole: (sources, measures) values on all samples.
        drawn: (resamples, sources, measures).
        higher_is_better: of all measures.
    """
    sign = -1 if higher_is_better else 1
    mean = rankdata(sign * whole, axis=0).mean(axis=1)
    means = rankdata(sign * drawn, axis=1).mean(axis=2)  # (resamples, sources)
    places = rankdata(means, axis=1, method="min")
    best = (places == 1) / (places == 1).sum(axis=1, keepdims=True)
    low, high = np.quantile(places, [0.05, 0.95], axis=0, method="nearest")
    ranking = [
        SourceRanking(
            name,
            dict(zip(measures, whole[n].tolist(), strict=True)),
            float(mean[n]),
            float(low[n]),
            float(high[n]),
            float(best[:, n].mean()),
        )
        for n, name in enumerate(names)
    ]
    return sorted(ranking, key=lambda one: (one.rank, -one.best))


def _overlap(kind: str, ranking: list[SourceRanking]) -> str | None:
    if len(ranking) < 2:
        return None
    rivals = [one.name for one in ranking[1:] if one.low <= ranking[0].high]
    if not rivals:
        return f"Of the {kind}, {ranking[0].name} comes first in all but few half-samples."
    return f"Of the {kind}, {ranking[0].name} is not clearly ahead of {', '.join(rivals)}: the intervals overlap."


def _of_study(study: str | Path, encoders: list[SourceRanking], sets: list[SourceRanking]) -> list[str]:
    """Cite what a finished study found about the measures that were used."""
    path = Path(study) / "report.json"
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["correlations"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: the study has no report yet; run it to its end") from error
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is not the report of a study") from error
    used = {name for ranking in (encoders, sets) for one in ranking[:1] for name in one.values}
    told = [row for row in found if row["measure"] in used and not row["self_pairs"] and "verdict" in row]
    return [f"In that study {_SHOWN[row['measure']]} {row['verdict']}." for row in told]


def _named_sources(sources: Sequence[str | Path]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for source in sources:
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"the source {path}: there is no such file or folder")
        name = path.resolve().parent.name if path.stem == "encoder" and path.is_file() else path.resolve().stem
        if name in paths:
            raise ValueError(f"two sources are called {name!r}; rename a file or folder")
        paths[name] = path
    return paths
