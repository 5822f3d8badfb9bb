# SPDX-License-Identifier: Apache-2.0
"""Side-by-side benchmarks with other libraries: ``python -m benchmarks``."""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which tells the peak memory, is talkative
