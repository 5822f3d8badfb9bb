# SPDX-License-Identifier: Apache-2.0
"""Example volumes that all tests of bundles share, and the folder where they are prepared once."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_ssl.data import make_example_volumes


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_example_volumes(tmp_path_factory.mktemp("volumes") / "files", num_patients=10)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")
