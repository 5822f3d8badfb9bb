# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as torchvision, timm and others name them, written independently of the maps under test.

The names typed out here are those of the real checkpoints: torchvision's resnet18-f37072fd.pth,
densenet121-a639ec97.pth (old style), efficientnet_b0_rwightman-*.pth and vit_b_16-*.pth, timm's vit_base_patch16_224,
and efficientnet-b0-355c32eb.pth of lukemelas/EfficientNet-PyTorch.
"""

from __future__ import annotations

import torch

# All parameters of torchvision's resnet18, in order.
RESNET18 = """
conv1.weight bn1.weight bn1.bias
layer1.0.conv1.weight layer1.0.bn1.weight layer1.0.bn1.bias layer1.0.conv2.weight layer1.0.bn2.weight layer1.0.bn2.bias
layer1.1.conv1.weight layer1.1.bn1.weight layer1.1.bn1.bias layer1.1.conv2.weight layer1.1.bn2.weight layer1.1.bn2.bias
layer2.0.conv1.weight layer2.0.bn1.weight layer2.0.bn1.bias layer2.0.conv2.weight layer2.0.bn2.weight layer2.0.bn2.bias
layer2.0.downsample.0.weight layer2.0.downsample.1.weight layer2.0.downsample.1.bias
layer2.1.conv1.weight layer2.1.bn1.weight layer2.1.bn1.bias layer2.1.conv2.weight layer2.1.bn2.weight layer2.1.bn2.bias
layer3.0.conv1.weight layer3.0.bn1.weight layer3.0.bn1.bias layer3.0.conv2.weight layer3.0.bn2.weight layer3.0.bn2.bias
layer3.0.downsample.0.weight layer3.0.downsample.1.weight layer3.0.downsample.1.bias
layer3.1.conv1.weight layer3.1.bn1.weight layer3.1.bn1.bias layer3.1.conv2.weight layer3.1.bn2.weight layer3.1.bn2.bias
layer4.0.conv1.weight layer4.0.bn1.weight layer4.0.bn1.bias layer4.0.conv2.weight layer4.0.bn2.weight layer4.0.bn2.bias
layer4.0.downsample.0.weight layer4.0.downsample.1.weight layer4.0.downsample.1.bias
layer4.1.conv1.weight layer4.1.bn1.weight layer4.1.bn1.bias layer4.1.conv2.weight layer4.1.bn2.weight layer4.1.bn2.bias
fc.weight fc.bias
"""

# Other networks: typed names beside MONAI's, one of each kind.
PAIRS = {
    "densenet": [
        ("features.conv0.weight", "features.conv0.weight"),
        ("features.norm0.running_var", "features.norm0.running_var"),
        (
            "features.denseblock1.denselayer1.norm1.weight",
            "features.denseblock1.denselayer1.layers.norm1.weight",
        ),
        (
            "features.denseblock4.denselayer2.conv2.weight",
            "features.denseblock4.denselayer2.layers.conv2.weight",
        ),
        ("features.transition1.norm.bias", "features.transition1.norm.bias"),
        ("features.transition3.conv.weight", "features.transition3.conv.weight"),
        ("features.norm5.weight", "features.norm5.weight"),
    ],
    "densenet_old": [
        (
            "features.denseblock1.denselayer1.norm.1.running_mean",
            "features.denseblock1.denselayer1.layers.norm1.running_mean",
        ),
        (
            "features.denseblock3.denselayer2.conv.2.weight",
            "features.denseblock3.denselayer2.layers.conv2.weight",
        ),
    ],
    "efficientnet_torchvision": [
        ("features.0.0.weight", "_conv_stem.weight"),
        ("features.0.1.running_mean", "_bn0.running_mean"),
        ("features.1.0.block.0.0.weight", "_blocks.0.0._depthwise_conv.weight"),
        ("features.1.0.block.0.1.bias", "_blocks.0.0._bn1.bias"),
        ("features.1.0.block.1.fc1.weight", "_blocks.0.0._se_reduce.weight"),
        ("features.1.0.block.1.fc2.bias", "_blocks.0.0._se_expand.bias"),
        ("features.1.0.block.2.0.weight", "_blocks.0.0._project_conv.weight"),
        ("features.1.0.block.2.1.weight", "_blocks.0.0._bn2.weight"),
        ("features.2.0.block.0.0.weight", "_blocks.1.1._expand_conv.weight"),
        ("features.2.0.block.0.1.weight", "_blocks.1.1._bn0.weight"),
        ("features.2.1.block.1.0.weight", "_blocks.1.2._depthwise_conv.weight"),
        ("features.4.2.block.2.fc2.weight", "_blocks.3.7._se_expand.weight"),
        ("features.6.3.block.3.1.running_var", "_blocks.5.14._bn2.running_var"),
        ("features.7.0.block.3.0.weight", "_blocks.6.15._project_conv.weight"),
        ("features.8.0.weight", "_conv_head.weight"),
        ("features.8.1.bias", "_bn1.bias"),
    ],
    "efficientnet_lukemelas": [
        ("_conv_stem.weight", "_conv_stem.weight"),
        ("_blocks.0._depthwise_conv.weight", "_blocks.0.0._depthwise_conv.weight"),
        ("_blocks.2._expand_conv.weight", "_blocks.1.2._expand_conv.weight"),
        ("_blocks.11._se_reduce.bias", "_blocks.5.11._se_reduce.bias"),
        ("_blocks.15._bn2.running_var", "_blocks.6.15._bn2.running_var"),
    ],
    "vit_timm": [
        ("patch_embed.proj.weight", "patch_embedding.patch_embeddings.weight"),
        ("patch_embed.proj.bias", "patch_embedding.patch_embeddings.bias"),
        ("blocks.0.norm1.weight", "blocks.0.norm1.weight"),
        ("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight"),
        ("blocks.1.attn.proj.bias", "blocks.1.attn.out_proj.bias"),
        ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.linear1.weight"),
        ("blocks.1.mlp.fc2.bias", "blocks.1.mlp.linear2.bias"),
        ("norm.weight", "norm.weight"),
    ],
    "vit_torchvision": [
        ("conv_proj.weight", "patch_embedding.patch_embeddings.weight"),
        ("encoder.layers.encoder_layer_0.ln_1.weight", "blocks.0.norm1.weight"),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "blocks.0.attn.qkv.weight"),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_bias", "blocks.0.attn.qkv.bias"),
        ("encoder.layers.encoder_layer_1.self_attention.out_proj.weight", "blocks.1.attn.out_proj.weight"),
        ("encoder.layers.encoder_layer_1.ln_2.bias", "blocks.1.norm2.bias"),
        ("encoder.layers.encoder_layer_0.mlp.0.weight", "blocks.0.mlp.linear1.weight"),
        ("encoder.layers.encoder_layer_1.mlp.3.bias", "blocks.1.mlp.linear2.bias"),
        ("encoder.ln.bias", "norm.bias"),
    ],
}


def with_buffers(parameters: str) -> list[str]:
    """Add the running statistics behind each BatchNorm weight."""
    names = []
    for name in parameters.split():
        names.append(name)
        if name.endswith(("bn1.bias", "bn2.bias", "downsample.1.bias")):
            names += [name.replace("bias", end) for end in ("running_mean", "running_var", "num_batches_tracked")]
    return names


def as_foreign(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Rename MONAI's encoder tensors to another project's names, and give the stem three channels again."""
    return {_foreign_name(key, kind): value for key, value in state.items() if "norm_cross_attn" not in key}


def _foreign_name(key: str, kind: str) -> str:
    parts = key.split(".")
    if kind == "densenet":
        return key.replace(".layers.", ".")
    if kind == "densenet_old":
        return key.replace(".layers.norm", ".norm.").replace(".layers.conv", ".conv.")
    if kind == "efficientnet_lukemelas":
        return ".".join([parts[0], *parts[2:]]) if parts[0] == "_blocks" else key
    if kind == "efficientnet_torchvision":
        outer = {
            "_conv_stem": "features.0.0",
            "_bn0": "features.0.1",
            "_conv_head": "features.8.0",
            "_bn1": "features.8.1",
        }
        if parts[0] in outer:
            return f"{outer[parts[0]]}.{parts[1]}"
        stage, block, layer, end = int(parts[1]), int(parts[2]), parts[3], parts[4]
        first_of_stage = [0, 1, 3, 5, 8, 11, 15][stage]  # efficientnet-b0
        shift = 0 if stage == 0 else 1
        inner = {
            "_expand_conv": "0.0",
            "_bn0": "0.1",
            "_depthwise_conv": f"{shift}.0",
            "_bn1": f"{shift}.1",
            "_se_reduce": f"{shift + 1}.fc1",
            "_se_expand": f"{shift + 1}.fc2",
            "_project_conv": f"{shift + 2}.0",
            "_bn2": f"{shift + 2}.1",
        }
        return f"features.{stage + 1}.{block - first_of_stage}.block.{inner[layer]}.{end}"
    if kind == "vit_timm":
        for ours, theirs in [
            ("patch_embedding.position_embeddings", "pos_embed"),
            ("patch_embedding.patch_embeddings", "patch_embed.proj"),
            ("attn.out_proj", "attn.proj"),
            ("mlp.linear", "mlp.fc"),
        ]:
            key = key.replace(ours, theirs)
        return key
    assert kind == "vit_torchvision"
    for ours, theirs in [
        ("patch_embedding.position_embeddings", "encoder.pos_embedding"),
        ("patch_embedding.patch_embeddings", "conv_proj"),
        ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.out_proj", "self_attention.out_proj"),
        ("mlp.linear1", "mlp.0"),
        ("mlp.linear2", "mlp.3"),
    ]:
        key = key.replace(ours, theirs)
    if parts[0] == "blocks":
        key = key.replace(f"blocks.{parts[1]}.", f"encoder.layers.encoder_layer_{parts[1]}.").replace("norm", "ln_")
    return key.replace("norm.", "encoder.ln.") if parts[0] == "norm" else key
