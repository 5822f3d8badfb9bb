# SPDX-License-Identifier: Apache-2.0
"""One stored image: shrunk in floating point, kept in the narrowest lossless type, compressed for partial reads.

An item is a Blosc2 array (``.b2nd``). Its value in [0, 1] is ``stored / levels``; the physical value is
``low + value * (high - low)`` with the policy's ``limits`` (low, high).

Codec and block sizes are measured (one thread, 512 x 512): Zstandard level 1 with byte shuffle and byte delta keeps
16-bit radiographs in 0.72 of their bytes and gives a whole image in 0.46 ms; LZ4 with bit shuffle needs 0.88 and
0.26 ms; for 8 bit, Zstandard with bit shuffle 0.61 and 0.41 ms, LZ4 0.74 and 0.25 ms. (The same image as PNG: 2.3 ms.)
Volumes are read in patches, and there decompression is most of the time: of a CT in steps of 1 HU, LZ4 level 9 with bit
shuffle needs 0.58 of 16 bits and gives a patch of 96 x 96 x 96 in 2.3 ms, Zstandard 0.50 and 8.3 ms. Label maps hold
long runs: Zstandard needs 0.02 to 0.07 of their bytes, LZ4 half as much again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from scipy import sparse

from monai_ssl.data.errors import UnreadableImageError
from monai_ssl.data.files import write_whole

_META = "monai_ssl"
# Reading goes on in forked workers, where Blosc2's own threads are gone and waiting for them would never end.
_ONE_THREAD = {"nthreads": 1}
_BLOCKS = {2: (128, 128), 3: (16, 32, 32)}
_MAX_CHUNK_BYTES = 64 * 2**20

Box = Sequence[slice | tuple[int, int]]


def shrunk_shape(shape: tuple[int, ...], max_side: int) -> tuple[int, ...]:
    """Shape after shrinking the longest side to ``max_side`` at the same aspect ratio; never larger than it was.

    >>> shrunk_shape((3000, 2500), 512), shrunk_shape((300, 200), 512)
    ((512, 427), (300, 200))
    """
    longest = max(shape)
    if longest <= max_side:
        return tuple(shape)
    return tuple(max(1, round(side * max_side / longest)) for side in shape)


def shrink(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Shrink an image by area averaging: each new pixel is the mean of exactly the area it covers.

    Args:
        image: float32, any number of dimensions.
        shape: the new shape, no side larger than the old one.

    Returns:
        float32 of that shape, in the image's own units.
    """
    for axis, (old, new) in enumerate(zip(image.shape, shape, strict=True)):
        if new == old:
            continue
        lines = np.moveaxis(image, axis, 0)
        rest = lines.shape[1:]
        lines = _area_weights(old, new) @ np.ascontiguousarray(lines).reshape(old, -1)  # (new, all other axes)
        image = np.moveaxis(lines.reshape(new, *rest), 0, axis)
    return np.ascontiguousarray(image, dtype=np.float32)


@lru_cache(maxsize=64)
def _area_weights(old: int, new: int) -> sparse.csr_matrix:
    """Matrix (new, old) whose row i averages the interval [i, i + 1) * old / new of the old pixels."""
    edges = np.arange(new + 1) * (old / new)
    first = np.floor(edges[:-1]).astype(np.int64)
    taps = int((np.ceil(edges[1:]) - first).max())
    pixels = first[:, None] + np.arange(taps)  # (new, taps)
    weights = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    weights = np.clip(weights, 0.0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(new), taps)
    entries = (weights.ravel().astype(np.float32), (rows, np.minimum(pixels, old - 1).ravel()))
    return sparse.csr_matrix(entries, shape=(new, old))


def encode(image: np.ndarray, limits: tuple[float, float]) -> tuple[np.ndarray, int]:
    """Clip an image to its limits and give it the narrowest type that keeps every value.

    Whole numbers between whole limits keep their steps: up to 256 of them become uint8, up to 65,536 uint16, and
    nothing is lost. Other values (resized, rescaled) become uint16 in steps of 1/65535 of the range.

    Args:
        image: physical values, float.
        limits: values that become 0 and 1.

    Returns:
        The array to store, and ``levels``: the stored value that means 1.

    Raises:
        UnreadableImageError: if a value is not finite, or all are the same between the limits.
    """
    low, high = limits
    image = np.asarray(image)
    if not np.isfinite(image).all():
        raise UnreadableImageError("it has values that are not finite")
    steps = high - low
    inside = np.clip(image, low, high)
    if float(low).is_integer() and float(high).is_integer() and steps <= 65535 and (inside == np.rint(inside)).all():
        stored = (inside - low).astype(np.uint8 if steps <= 255 else np.uint16)
    else:
        stored = np.rint((inside - low) * (65535.0 / steps)).astype(np.uint16)
        steps = 65535
    if stored.min() == stored.max():
        raise UnreadableImageError("all its pixels have the same grey value")
    return stored, int(steps)


def write_item(path: str | Path, stored: np.ndarray, levels: int, *, label_map: bool = False, **meta: Any) -> int:
    """Write one item, whole or not at all.

    Args:
        path: the ``.b2nd`` file; its folder must exist.
        stored: 2D or 3D array.
        levels: stored value that means 1.
        label_map: whether it holds labels, which compress otherwise than grey values.
        meta: further facts to keep with it, JSON values.

    Returns:
        Bytes written.

    Raises:
        OSError: if it cannot be written; nothing of it stays.
    """
    stored = np.ascontiguousarray(stored)
    itemsize = stored.dtype.itemsize
    chunks, blocks = item_layout(stored.shape, itemsize)
    filters: dict[str, Any] = {"filters": [blosc2.Filter.BITSHUFFLE], "filters_meta": [0]}
    if stored.ndim == 3 and not label_map:
        codec, level = blosc2.Codec.LZ4, 9
    else:
        codec, level = blosc2.Codec.ZSTD, 1
        if itemsize > 1:
            filters = {"filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA], "filters_meta": [0, itemsize]}
    array = blosc2.asarray(
        stored,
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": codec, "clevel": level, **filters, "nthreads": 1},
        meta={_META: {"levels": levels, **meta}},
    )
    frame = array.to_cframe()
    write_whole(path, frame, sync=False)  # a short file is noticed when it is opened
    return len(frame)


def item_layout(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks of an array: a read decompresses only the blocks it touches.

    Raises:
        ValueError: if the array is neither 2D nor 3D.
    """
    if len(shape) not in _BLOCKS:
        raise ValueError(f"an image has 2 or 3 dimensions, not {len(shape)}")
    blocks = tuple(min(block, side) for block, side in zip(_BLOCKS[len(shape)], shape, strict=True))
    chunks = list(shape)
    while np.prod(chunks, dtype=np.int64) * itemsize > _MAX_CHUNK_BYTES:
        axis = int(np.argmax(np.array(chunks) / np.array(blocks)))
        halved = -(-chunks[axis] // 2)
        chunks[axis] = -(-halved // blocks[axis]) * blocks[axis]
    return tuple(chunks), blocks


def read_item(path: str | Path, box: Box | None = None) -> np.ndarray:
    """Read an item or a part of it in its stored type.

    Args:
        path: the ``.b2nd`` file.
        box: for each axis a slice or a pair (start, stop); only the blocks it touches are read. None: everything.

    Raises:
        FileNotFoundError: if there is no such file.
        RuntimeError: if it is damaged.
        ValueError: if the box is empty or reaches over the edge.
    """
    array = _open(path)
    where = ... if box is None else _slices(box, array.shape)
    try:
        return array[where]
    except RuntimeError as error:
        raise _damaged(path) from error


def item_facts(path: str | Path) -> dict[str, Any]:
    """Read an item's shape, dtype name, bytes on disk, levels and further facts, but not its pixels.

    Raises:
        FileNotFoundError: if there is no such file.
        RuntimeError: if it is damaged.
    """
    array = _open(path)
    try:
        meta = array.schunk.meta[_META]
    except KeyError as error:
        raise _damaged(path) from error
    return {"shape": list(array.shape), "dtype": str(array.dtype), "bytes": Path(path).stat().st_size, **meta}


def _open(path: str | Path) -> blosc2.NDArray:
    try:
        return blosc2.open(str(path), mode="r", dparams=_ONE_THREAD)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: the stored image is missing; prepare the store again") from error
    except (RuntimeError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: str | Path) -> RuntimeError:
    return RuntimeError(f"{path}: the stored image is damaged; delete this file and prepare the store again")


def _slices(box: Box, shape: tuple[int, ...]) -> tuple[slice, ...]:
    if len(box) != len(shape):
        raise ValueError(f"box has {len(box)} axes, the image has {len(shape)}: {tuple(shape)}")
    slices = []
    for part, side in zip(box, shape, strict=True):
        start, stop, step = (part.start, part.stop, part.step) if isinstance(part, slice) else (*part, None)
        start, stop = 0 if start is None else int(start), side if stop is None else int(stop)
        if step not in (None, 1) or not 0 <= start < stop <= side:
            raise ValueError(f"box {box} is empty or reaches over the edge of an image of shape {tuple(shape)}")
        slices.append(slice(start, stop))
    return tuple(slices)
