# SPDX-License-Identifier: Apache-2.0
"""Self-supervised learning on medical images, as MONAI parts and bundles.

Importing this package loads nothing heavy: import the rooms you need (``monai_ssl.transforms``, ``monai_ssl.losses``,
``monai_ssl.networks``, ``monai_ssl.methods``, ``monai_ssl.data``, ...).
"""

__version__ = "0.1.0"
