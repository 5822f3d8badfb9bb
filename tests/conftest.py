# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# One thread: the tests' tensors are small, and threads that wait for each other make a busy machine crawl.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real, openly licensed images; the test is skipped without it."""
    folder = os.environ.get("MONAI_SSL_DATA")
    if not folder:
        pytest.skip("MONAI_SSL_DATA is not set")
    return Path(folder).resolve()
