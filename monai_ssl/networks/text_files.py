# SPDX-License-Identifier: Apache-2.0
"""The optional text packages, and the files of a BERT in a local folder or in the Hugging Face hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

__all__ = ["need_text_package", "text_file"]


def need_text_package(name: str) -> ModuleType:
    """Import ``transformers``, ``tokenizers`` or ``huggingface_hub``.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'reports need the package {name}: pip install "monai-ssl[text]"') from error


def text_file(source: str | Path, name: str) -> Path | None:
    """Return the path of a file of a local folder or of a model in the hub, or None where it has no such file.

    Only files that are asked for are fetched; they are kept in Hugging Face's own cache.

    Args:
        source: a folder, or the name of a model in the hub.
        name: of the file.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a model, or the hub can't be reached.
        ImportError: the extra ``text`` is not installed.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    hub = need_text_package("huggingface_hub")
    errors = importlib.import_module("huggingface_hub.errors")
    no_such = f"there is no folder {str(source)!r}, and "
    if folder.is_absolute() or str(source).count("/") > 1:
        raise FileNotFoundError(no_such.removesuffix(", and "))
    try:
        return Path(hub.hf_hub_download(str(source), name))
    except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError too, so it comes first
        raise FileNotFoundError(
            f"{no_such}the Hugging Face hub can't be reached to look for a model of that name. Copy the model's folder "
            "(config.json, model.safetensors, vocab.txt or tokenizer.json) from a machine with a connection and give "
            "its path"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        raise FileNotFoundError(f"{no_such}the Hugging Face hub has no model of that name") from error
    except OSError as error:  # no network at all
        raise FileNotFoundError(f"{no_such}the Hugging Face hub can't be reached ({type(error).__name__})") from error
