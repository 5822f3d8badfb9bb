# SPDX-License-Identifier: Apache-2.0
"""How torchvision, timm and others name the tensors of the networks that MONAI has too, and MONAI's names for them.

Sources: torchvision/models/{resnet,densenet,efficientnet,vision_transformer}.py, timm/models/vision_transformer.py,
lukemelas/EfficientNet-PyTorch (the checkpoints that MONAI itself downloads).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["NAMINGS", "Naming", "recognise"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Naming:
    """One way to name a family of networks.

    Attributes:
        name: for messages.
        signature: keys that every such checkpoint has.
        stem_key: MONAI's key of the first convolution's weight.
        to_monai: renames a whole checkpoint; the classifier is left out.
        stem_stride: stride of the first convolution, where the shape does not tell it.
        note: why features may differ although every tensor fits; empty if they do not.
    """

    name: str
    signature: tuple[str, ...]
    stem_key: str
    to_monai: Callable[[Tensors], Tensors]
    stem_stride: tuple[int, int] | None = None
    note: str = ""


def recognise(tensors: Tensors) -> tuple[Naming, Tensors, str] | None:
    """Find the naming of a checkpoint, also under a common prefix such as ``module.`` or ``encoder_q.``.

    Returns:
        The naming, the tensors under that prefix with the prefix removed, and the prefix; None if nothing is known.
    """
    for naming in NAMINGS:
        first = naming.signature[0]
        for key in tensors:
            prefix = key.removesuffix(first)
            if key != prefix + first or (prefix and not prefix.endswith(".")):
                continue
            if all(prefix + other in tensors for other in naming.signature):
                inside = {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}
                return naming, inside, prefix
    return None


def _renamed(tensors: Tensors, rules: list[tuple[str, str]], dropped: tuple[str, ...]) -> Tensors:
    """Apply the first rule whose pattern matches a whole key; keys that no rule matches keep their name."""
    compiled = [(re.compile(pattern), template) for pattern, template in rules]
    renamed = {}
    for key, value in tensors.items():
        if key.startswith(dropped):
            continue
        match, template = next(((m, t) for rule, t in compiled if (m := rule.fullmatch(key))), (None, ""))
        renamed[match.expand(template) if match else key] = value
    return renamed


def _resnet(tensors: Tensors) -> Tensors:
    return _renamed(tensors, [], ("fc.",))


def _densenet(tensors: Tensors) -> Tensors:
    # torchvision before 0.4, and its downloads to this day: denselayer1.norm.1.weight
    rules = [(r"(.*denselayer\d+)\.(norm|conv)\.?([12])\.(\w+)", r"\1.layers.\2\3.\4")]
    return _renamed(tensors, rules, ("classifier.", "class_layers."))


_EFFICIENTNET_OUTER = [
    (r"features\.0\.0\.weight", r"_conv_stem.weight"),
    (r"features\.0\.1\.(\w+)", r"_bn0.\1"),
    (r"features\.8\.0\.weight", r"_conv_head.weight"),
    (r"features\.8\.1\.(\w+)", r"_bn1.\1"),
]
_EFFICIENTNET_BLOCK = [  # after the expansion, which the first stage does not have, has been numbered -1
    (r"-1\.0\.weight", "_expand_conv.weight"),
    (r"-1\.1\.(\w+)", r"_bn0.\1"),
    (r"0\.0\.weight", "_depthwise_conv.weight"),
    (r"0\.1\.(\w+)", r"_bn1.\1"),
    (r"1\.fc1\.(\w+)", r"_se_reduce.\1"),
    (r"1\.fc2\.(\w+)", r"_se_expand.\1"),
    (r"2\.0\.weight", "_project_conv.weight"),
    (r"2\.1\.(\w+)", r"_bn2.\1"),
]


def _efficientnet_torchvision(tensors: Tensors) -> Tensors:
    """``features.{1 + stage}.{block in stage}.block.{layer}`` to ``_blocks.{stage}.{block in all}.``."""
    inner = re.compile(r"features\.(\d+)\.(\d+)\.block\.(\d+)\.(.+)")
    parts = {key: match for key in tensors if (match := inner.fullmatch(key))}
    blocks = sorted({(int(match[1]), int(match[2])) for match in parts.values()})
    expanded = {(int(match[1]), int(match[2])) for match in parts.values() if match[3] == "3"}
    renamed = {}
    for key, match in parts.items():
        block = (int(match[1]), int(match[2]))
        layer = int(match[3]) - (block in expanded)
        ((name, _),) = _renamed({f"{layer}.{match[4]}": tensors[key]}, _EFFICIENTNET_BLOCK, ("classifier.",)).items()
        renamed[f"_blocks.{block[0] - 1}.{blocks.index(block)}.{name}"] = tensors[key]
    outer = {key: value for key, value in tensors.items() if key not in parts}
    return _renamed(outer, _EFFICIENTNET_OUTER, ("classifier.",)) | renamed


def _efficientnet_lukemelas(tensors: Tensors) -> Tensors:
    """``_blocks.{block in all}`` to ``_blocks.{stage}.{block in all}``: a stage begins where the width or stride does.

    The stages are told by the number of output channels, which is another in each of them.
    """
    width = {int(k.split(".")[1]): v.shape[0] for k, v in tensors.items() if k.endswith("._project_conv.weight")}
    stage, stages = 0, {}
    for block in sorted(width):
        stage += block > 0 and width[block] != width[block - 1]
        stages[block] = stage
    rules = [(rf"_blocks\.{block}\.(.+)", rf"_blocks.{stages[block]}.{block}.\1") for block in stages]
    return _renamed(tensors, rules, ("_fc.",))


def _vit_timm(tensors: Tensors) -> Tensors:
    rules = [
        (r"pos_embed", "patch_embedding.position_embeddings"),
        (r"patch_embed\.proj\.(\w+)", r"patch_embedding.patch_embeddings.\1"),
        (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"blocks.\1.attn.out_proj.\2"),
        (r"blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"blocks.\1.mlp.linear\2.\3"),
    ]
    return _split_class_position(_renamed(tensors, rules, ("head.", "fc_norm.", "pre_logits.")))


def _vit_torchvision(tensors: Tensors) -> Tensors:
    layer = r"encoder\.layers\.encoder_layer_(\d+)\."
    rules = [
        (r"class_token", "cls_token"),
        (r"encoder\.pos_embedding", "patch_embedding.position_embeddings"),
        (r"conv_proj\.(\w+)", r"patch_embedding.patch_embeddings.\1"),
        (layer + r"ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (layer + r"self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        (layer + r"self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.out_proj.\2"),
        (layer + r"mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.linear1.\2"),
        (layer + r"mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.linear2.\2"),
        (r"encoder\.ln\.(\w+)", r"norm.\1"),
    ]
    return _split_class_position(_renamed(tensors, rules, ("heads.",)))


def _split_class_position(tensors: Tensors) -> Tensors:
    """Move the class token's position, which MONAI does not have, into the class token, to which it is added anyway."""
    key = "patch_embedding.position_embeddings"
    positions = tensors[key]  # (1, tokens, F)
    if "cls_token" in tensors and math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]:
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors[key] = positions[:, 1:]
    return tensors


NAMINGS: tuple[Naming, ...] = (
    Naming(
        "torchvision or timm ResNet",
        ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"),
        "conv1.weight",
        _resnet,
        stem_stride=(2, 2),
    ),
    Naming(
        "torchvision DenseNet", ("features.conv0.weight", "features.norm5.weight"), "features.conv0.weight", _densenet
    ),
    Naming(
        "torchvision EfficientNet",
        ("features.0.0.weight", "features.1.0.block.0.0.weight", "features.8.0.weight"),
        "_conv_stem.weight",
        _efficientnet_torchvision,
        note="torchvision pads convolutions evenly, MONAI as TensorFlow does (and b0 to b4 have a BatchNorm eps of "
        "1e-5, MONAI 1e-3): close features, not equal ones",
    ),
    Naming(
        "lukemelas EfficientNet",
        ("_conv_stem.weight", "_blocks.0._depthwise_conv.weight"),
        "_conv_stem.weight",
        _efficientnet_lukemelas,
    ),
    Naming(
        "timm ViT",
        ("patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"),
        "patch_embedding.patch_embeddings.weight",
        _vit_timm,
        note="timm's ViT feeds a class token and has a LayerNorm eps of 1e-6 (MONAI 1e-5, no class token): "
        "close features, not equal ones",
    ),
    Naming(
        "torchvision ViT",
        ("conv_proj.weight", "encoder.pos_embedding", "encoder.layers.encoder_layer_0.ln_1.weight"),
        "patch_embedding.patch_embeddings.weight",
        _vit_torchvision,
        note="torchvision's ViT feeds a class token and has a LayerNorm eps of 1e-6 (MONAI 1e-5, no class token): "
        "close features, not equal ones",
    ),
)
