# SPDX-License-Identifier: Apache-2.0
"""A recipe that trains in a second."""

from __future__ import annotations

from monai_ssl.transferability import StudyRecipe

TINY = {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]}
RECIPE = StudyRecipe("densenet121", TINY, image_size=32, batch_size=16, max_epochs=1, source_epochs=1)
