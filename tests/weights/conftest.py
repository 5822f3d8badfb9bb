# SPDX-License-Identifier: Apache-2.0
"""The inputs here are tiny: a second thread only waits for the first."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
