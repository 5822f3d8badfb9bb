# SPDX-License-Identifier: Apache-2.0
"""The encoders that the tests of networks and weights build, small enough for a laptop."""

from __future__ import annotations

SMALL_VIT = {"patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 4, "num_heads": 2, "img_size": 32}
SMALL_DENSENET = {"block_config": [2, 2, 2, 2]}

SMALL_SEGRESNET = {"blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
SMALL_NESTED = {"channels": [4, 8, 16], "num_res_units": 1}
SMALL_FLEXIBLE = {"backbone": "resnet10", "decoder_channels": [8, 8, 8, 8, 8]}
SMALL_UNET = {"features": [4, 4, 8, 8, 16, 4]}
SMALL_SWIN = {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [2, 2, 2, 2], "window_size": 4}
SMALL_MEDNEXT = {"init_filters": 4, "blocks_down": [1, 2], "blocks_up": [1, 1], "blocks_bottleneck": 1}
SMALL_MEDNEXT |= {"use_residual_connection": True, "kernel_size": 3}
SMALL_UNETR = {"img_size": 32, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "feature_size": 4}
SMALL_DYNUNET = {"filters": [4, 8, 8, 16], "strides": [1, 2, 2, 2]}

# Networks with a decoder: architecture, arguments, channels and strides of the pyramid.
DECODERS = [
    ("segresnet", SMALL_SEGRESNET, [8, 16, 32], [1, 2, 4]),
    ("unet", SMALL_NESTED, [4, 8, 16], [2, 4, 4]),
    ("basicunet", SMALL_UNET, [4, 4, 8, 8, 16], [1, 2, 4, 8, 16]),
    ("flexibleunet", SMALL_FLEXIBLE, [64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
    ("dynunet", SMALL_DYNUNET, [4, 8, 8, 16], [1, 2, 4, 8]),
    ("dynunet", SMALL_DYNUNET | {"res_block": True, "filters": [4, 4, 8, 8]}, [4, 4, 8, 8], [1, 2, 4, 8]),
    ("swinunetr", SMALL_SWIN, [12, 12, 24, 48, 96, 192], [1, 2, 4, 8, 16, 32]),
    ("mednext", SMALL_MEDNEXT, [4, 8, 16], [1, 2, 4]),
    ("unetr", SMALL_UNETR, [4, 24, 24, 24, 24], [1, 16, 16, 16, 16]),
]
NOT_SCRIPTABLE = {"swinunetr", "mednext"}  # nor is what MONAI builds

# One of each family, as cheap as it gets.
FAMILIES = [("resnet10", {}), ("densenet121", SMALL_DENSENET), ("efficientnet-b0", {}), ("vit", SMALL_VIT)]
FAMILIES += [(architecture, arguments) for architecture, arguments, _, _ in DECODERS]

# architecture, arguments, features, channels of the pyramid
ENCODERS = [
    ("resnet18", {}, 512, [64, 64, 128, 256, 512]),
    ("resnet34", {}, 512, [64, 64, 128, 256, 512]),
    ("resnet50", {}, 2048, [64, 256, 512, 1024, 2048]),
    ("densenet121", {}, 1024, [64, 256, 512, 1024, 1024]),
    ("efficientnet-b0", {}, 1280, [16, 24, 40, 112, 320]),
    ("efficientnet-b2", {}, 1408, [16, 24, 48, 120, 352]),
    ("vit", SMALL_VIT, 24, [24, 24, 24, 24]),
]
