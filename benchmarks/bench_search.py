# SPDX-License-Identifier: Apache-2.0
"""Searching vectors, beside libraries made for it, and embedding a folder, beside the network alone.

A query is what ``EmbeddedFolder.nearest`` does: all cosines from the mapped file, the ten best, their lines of the
table. The peers hold the vectors in memory and return numbers only. faiss and usearch are measured where they are
installed (``pip install faiss-cpu usearch``).
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch
from threadpoolctl import threadpool_limits

from benchmarks.bench_loader import store_of
from benchmarks.images import grey_images, write_folders
from benchmarks.rounds import Row, compare_rates, compare_times, interleaved, torch_threads
from monai_ssl.evaluation import OpenImageText, untrained_image_text
from monai_ssl.search import EmbeddedFolder, embed_folder
from monai_ssl.search.embedded_folder import write_index

_AIM_MS, _HITS = 50.0, 10
_TEXTS = ["There is a pleural effusion.", "No pleural effusion is seen.", "The heart is enlarged."]


@dataclass(frozen=True)
class Sizes:
    """How much is searched and embedded."""

    vectors: int
    width: int
    queries: int
    images: int
    side: int
    batch: int


FULL = Sizes(vectors=100_000, width=512, queries=50, images=2000, side=128, batch=32)
TINY = Sizes(vectors=50, width=8, queries=2, images=4, side=32, batch=2)


def run(rounds: int, threads: list[int], tiny: bool = False) -> Iterator[Row]:
    """Yield rows of queries for each number of threads, and one of embedding for the most."""
    sizes = TINY if tiny else FULL
    with tempfile.TemporaryDirectory() as folder:
        yield from _queries(Path(folder), sizes, rounds, threads)
        yield _embedding(Path(folder), sizes, max(threads))


def _queries(folder: Path, sizes: Sizes, rounds: int, threads: list[int]) -> Iterator[Row]:
    vectors, queries = clustered(sizes)
    names = [f"{number}" for number in range(len(vectors))]
    table = pa.table({"path": names, "group_id": names, "store_item": names})
    (folder / "index").mkdir()
    store = SimpleNamespace(table=table, folder=folder / "store")
    write_index(folder / "index", store, vectors, {"model_sha256": ""}, folder / "model")
    index = EmbeddedFolder(folder / "index")
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :_HITS]
    for number in threads:
        searches = {"ours": lambda query: [hit.row for hit in index.nearest(query, _HITS)]}
        searches |= _peers(vectors, number)
        contestants = {name: _timed(search, queries) for name, search in searches.items()}
        with torch_threads(number), threadpool_limits(number):
            figures = interleaved(contestants | {"the aim": lambda: _AIM_MS}, rounds)
            found = {name: _recall(search, queries, truth) for name, search in searches.items()}
        for name in list(figures)[1:]:
            theirs = f", the peer {found[name]:.3f}" if name in found else ""
            yield compare_times(
                figures["ours"],
                figures[name],
                bench="search",
                setting=f"{sizes.vectors:,} x {sizes.width} vectors, {_HITS} hits",
                threads=number,
                peer=name,
                goal=1.0 if name == "the aim" else None,
                note=f"a single query; share of the true nearest {_HITS}: ours {found['ours']:.3f}{theirs}",
            )


def clustered(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors about a thousand centres, as those of like images are: (N, D) and (Q, D)."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((min(1000, sizes.vectors), sizes.width), dtype=np.float32)
    made = []
    for count in (sizes.vectors, sizes.queries):
        values = centres[random.integers(len(centres), size=count)]
        values = values + random.standard_normal(values.shape, dtype=np.float32)
        made.append(values / np.linalg.norm(values, axis=1, keepdims=True))
    return made[0], made[1]


def _peers(vectors: np.ndarray, threads: int) -> dict[str, Callable[[np.ndarray], list[int]]]:
    neighbours = importlib.import_module("sklearn.neighbors").NearestNeighbors(n_neighbors=_HITS, algorithm="brute")
    neighbours.fit(vectors)
    found = {"scikit-learn, brute": lambda query: neighbours.kneighbors(query[None], return_distance=False)[0].tolist()}
    faiss = _installed("faiss")
    if faiss is not None:
        faiss.omp_set_num_threads(threads)
        flat, graph = faiss.IndexFlatIP(vectors.shape[1]), faiss.IndexHNSWFlat(vectors.shape[1], 32, 0)
        for index in (flat, graph):
            index.add(vectors)
        graph.hnsw.efSearch = 64
        found["faiss, exact"] = lambda query: flat.search(query[None], _HITS)[1][0].tolist()
        found["faiss, HNSW"] = lambda query: graph.search(query[None], _HITS)[1][0].tolist()
    usearch = _installed("usearch.index")
    if usearch is not None:
        kind = usearch.MetricKind.IP
        options = {"exact": True, "threads": threads}
        found["usearch, exact"] = lambda query: usearch.search(
            vectors, query[None], _HITS, kind, **options
        ).keys.tolist()
    return found


def _installed(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"skipped: {module.partition('.')[0]} ({error})", flush=True)
        return None


def _timed(search: Callable[[np.ndarray], list[int]], queries: np.ndarray) -> Callable[[], float]:
    def milliseconds() -> float:
        start = time.perf_counter()
        for query in queries:
            search(query)
        return 1e3 * (time.perf_counter() - start) / len(queries)

    return milliseconds


def _recall(search: Callable[[np.ndarray], list[int]], queries: np.ndarray, truth: np.ndarray) -> float:
    return float(
        np.mean([len({*search(query)} & {*right}) / _HITS for query, right in zip(queries, truth, strict=True)])
    )


def _embedding(folder: Path, sizes: Sizes, threads: int) -> Row:
    """Images a second of a whole embedding, from the store to the index on the disk, beside the network alone."""
    deep, _ = write_folders(grey_images(sizes.images, sizes.side), folder)
    store = store_of(deep, folder / "prepared")
    opened = untrained_image_text(_TEXTS, sizes.side)
    batch = torch.rand(sizes.batch, 1, sizes.side, sizes.side)

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as target:
            start = time.perf_counter()
            made = embed_folder(store, target, opened, folder / "model", batch_size=sizes.batch, progress=False)
            return len(made) / (time.perf_counter() - start)

    with torch_threads(threads):
        figures = interleaved({"ours": ours, "the network alone": lambda: _bare_rate(opened, batch, sizes)}, 1, False)
    return compare_rates(
        figures["ours"],
        figures["the network alone"],
        unit="images/s",
        bench="embedding",
        setting=f"{sizes.images:,} stored images of {sizes.side} px, ResNet-18, batch {sizes.batch}",
        threads=threads,
        peer="the network alone",
        note="one round, not warmed up; the network alone runs on one batch in memory",
    )


@torch.no_grad()
def _bare_rate(opened: OpenImageText, batch: torch.Tensor, sizes: Sizes) -> float:
    start, done = time.perf_counter(), 0
    while done < sizes.images:
        opened.model.embed_images(batch)
        done += len(batch)
    return done / (time.perf_counter() - start)
