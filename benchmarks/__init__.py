# SPDX-License-Identifier: Apache-2.0
"""Side-by-side benchmarks with other libraries: ``python -m benchmarks``."""

from __future__ import annotations

import os

# Before torch is imported. Threads that wait for each other sleep: where another process has one of the cores, spinning
# ones take turns on the other, and every parallel loop lasts a time slice of the scheduler (8 ms here).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which tells the peak memory, is talkative
