# SPDX-License-Identifier: Apache-2.0
"""Write and read weight files: safetensors with a manifest in the header, whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

__all__ = ["WeightsFileError", "atomic_file", "read_header", "read_tensors", "write_tensors"]

_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class WeightsFileError(ValueError):
    """A file of weights can't be read: truncated, damaged, or of another format."""


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open a new file for writing that takes the place of ``path`` only when all of it is on the disk.

    The bytes go to a hidden file in the same folder, which is synchronised and renamed at the end of the ``with``
    block. After an error, Ctrl-C or a lost machine, ``path`` is what it was before. Folders are made as needed.

    Raises:
        OSError: the disk is full (``errno.ENOSPC`` or ``EDQUOT``), with the space left and what became of the old file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        full = _disk_full_cause(error)
        if full is None:
            raise
        kept = "the file that was there before is unchanged" if path.exists() else "nothing was left behind"
        free = shutil.disk_usage(path.parent).free / 1e6
        message = f"not enough space on the disk ({free:.1f} MB free): {path} was not written; {kept}"
        raise OSError(full.errno, message) from error


def write_tensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and text metadata as one safetensors file, atomically.

    Raises:
        OSError: the disk is full (see :func:`atomic_file`).
    """
    data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, metadata)
    with atomic_file(path) as file:
        file.write(data)


def read_header(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Return a safetensors file's metadata and each tensor's (dtype, shape), without reading the tensors.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: truncated, damaged, or not safetensors.
    """
    with _opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dictionary)
        return file.metadata() or {}, {key: (s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        WeightsFileError: truncated, damaged, or not safetensors.
    """
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dictionary)


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[safe_open]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file has the length of its JSON header in the first eight bytes, then the JSON's brace.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:] != b"{":
        raise WeightsFileError(
            f"{path} is a PyTorch checkpoint (pickle), not a safetensors file of monai_ssl; "
            "load_imagenet_weights reads plain checkpoints"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsFileError(
            f"{path} ({path.stat().st_size} bytes) is truncated, damaged or no safetensors file: {error}"
        ) from error


def _disk_full_cause(error: BaseException | None) -> OSError | None:
    """Find the disk-full error behind a library's own (torch.save wraps it)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows does not open folders
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
