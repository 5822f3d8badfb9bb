# SPDX-License-Identifier: Apache-2.0
"""Measure what a training consists of: reading images, making views, and steps in each precision."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_ssl.data import UnreadableImageError, build_index, prepare_store, read_radiograph
from monai_ssl.data.examples import make_example_radiographs
from monai_ssl.data.index import list_files
from monai_ssl.data.store import FACTS_NAME, ImageStore
from monai_ssl.doctor.section import Section
from monai_ssl.engines import choose_precision
from monai_ssl.engines.precision import AUTOCAST_TYPES, to_memory_format
from monai_ssl.methods import MoCoV2
from monai_ssl.networks import build_encoder
from monai_ssl.transforms import radiograph_views

__all__ = ["reading_section", "step_section"]

_READING_SECONDS = 3.0
_MOST_FILES = 64


def reading_section(folder: Path | None) -> tuple[Section, float]:
    """Time the reading of images in this process, one after the other.

    Args:
        folder: of images, or a store. None: a few made-up DICOM files, and a store of them.

    Returns:
        The section, and images a second of what training would read: the store if there is one.

    Raises:
        ValueError: the folder holds no readable image.
    """
    section = Section("reading, in one process")
    if folder is not None and any(
        (place := store) for store in (folder, folder / "store") if (store / FACTS_NAME).is_file()
    ):
        store = ImageStore(place)
        rate = _rate(store.read, _some(range(len(store))))
        section.add("store", f"{rate:.0f} images/s ({place})")
        return section, rate
    if folder is not None:
        rate = _rate(_read_or_none, [folder / name for name in _some([name for name, _, _ in list_files(folder)[0]])])
        section.add("files", f"{rate:.0f} images/s ({folder})")
        section.advise("prepare the images once (python -m monai_ssl prepare): a store is read many times faster")
        return section, rate
    with tempfile.TemporaryDirectory() as temporary:
        source = make_example_radiographs(Path(temporary) / "images", 10, (1, 1), num_workers=1)
        files = sorted(source.glob("images/*.dcm"))
        rate = _rate(_read_or_none, files)
        section.add("DICOM files", f"{rate:.0f} images/s (made-up radiographs of 256 x 256)")
        index = build_index(source, num_workers=0, progress=False)
        store = prepare_store(index, source, Path(temporary) / "store", num_workers=0, progress=False)
        rate = _rate(store.read, range(len(store)))
        section.add("a store of them", f"{rate:.0f} images/s")
    return section, rate


def step_section(device: torch.device, architecture: str, size: int, batch_size: int, reading_rate: float) -> Section:
    """Time two views and a MoCo v2 step on random images, in every precision and memory format that is right here.

    Args:
        device: where to train.
        architecture: for ``build_encoder``.
        size: side of the views.
        batch_size: images a step.
        reading_rate: images a second that one process reads.

    Raises:
        ValueError: the architecture is unknown, or a number is out of range.
    """
    if size < 32 or batch_size < 2:
        raise ValueError(f"size is {size} (32 or more), batch_size {batch_size} (2 or more)")
    section = Section(f"a step: {architecture}, {batch_size} images, two views of {size} x {size}")
    generator = torch.Generator(device).manual_seed(0)
    images = torch.rand(batch_size, 1, 512, 512, generator=generator, device=device)
    multi = radiograph_views(size)
    views_seconds = _median_seconds(lambda: multi(images, generator), device)
    section.add("views", f"{batch_size / views_seconds:.0f} images/s (two views each, from 512 x 512)")

    method = MoCoV2(build_encoder(architecture), queue_size=1024).to(device)
    batch = {"views": multi(images, generator), "index": torch.arange(batch_size), "generator": generator}
    bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
    choice = choose_precision(method, batch, precisions=("fp32", "bf16") if bf16 else ("fp32",), time_budget_s=12.0)
    section.add("precision", choice.table)
    for parameter in method.parameters():
        parameter.data = to_memory_format(parameter.data, choice.channels_last)
    batch["views"] = [to_memory_format(view, choice.channels_last) for view in batch["views"]]
    seconds = views_seconds + _median_seconds(lambda: _step(method, batch, device, choice.precision), device)
    rate = batch_size / seconds
    last = ", channels last" if choice.channels_last else ""
    section.add(
        "views and step",
        f"{rate:.1f} images/s in {choice.precision}{last}, which precision 'auto' finds by itself; "
        f"10,000 images take {_duration(1e4 / rate)}",
    )
    if reading_rate < 1.5 * rate:
        section.advise(
            f"one process reads {reading_rate:.0f} images/s, a step uses {rate:.0f}: read with "
            f"num_workers={max(1, -int(-1.5 * rate // reading_rate))} or more"
        )
    return section


def _step(method: MoCoV2, batch: dict[str, Any], device: torch.device, precision: str) -> None:
    dtype = AUTOCAST_TYPES[precision]
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
        loss = method(batch)["loss"]
    loss.backward()
    method.after_step(0.5)


def _median_seconds(action: Callable[[], Any], device: torch.device, repetitions: int = 3) -> float:
    """Median time of an action, after one that does not count."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _rate(read: Callable[[Any], Any], items: Iterable[Any]) -> float:
    """Images a second over the items, as many of them as a few seconds allow."""
    done, start = 0, time.perf_counter()
    for item in items:
        done += read(item) is not None
        if time.perf_counter() - start > _READING_SECONDS:
            break
    if not done:
        raise ValueError("none of the folder's first files is a readable image; 'python -m monai_ssl index' says why")
    return done / (time.perf_counter() - start)


def _read_or_none(path: Path) -> np.ndarray | None:
    try:
        return read_radiograph(path)[0]
    except (UnreadableImageError, OSError):
        return None


def _some(items: Any) -> list[Any]:
    """Some items, spread over all."""
    positions = (
        np.unique(np.linspace(0, len(items) - 1, min(len(items), _MOST_FILES)).astype(int)) if len(items) else []
    )
    return [items[position] for position in positions]


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
