# SPDX-License-Identifier: Apache-2.0
"""Write a DynUNet's weights as a checkpoint that nnU-Net fine-tunes.

MONAI's DynUNet without residual blocks and nnU-Net's ``PlainConvUNet`` (Isensee et al., Nature Methods 2021) are one
network under two sets of names. nnU-Net reads a pretrained checkpoint by an adaptation plan inside it, which says how
the network is built and where its encoder lies: ``documentation`` of nnU-Net, "Finetuning from nnssl (self-supervised)
checkpoints", commands ``nnUNetv2_preprocess_like_nnssl``, ``nnUNetv2_plan_like_dynamic`` and
``nnUNetv2_train_pretrained``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks import nets
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from torch import nn

from monai_ssl.networks import ImageEncoder

from .adapt import adapt_channels
from .files import atomic_file
from .load import open_encoder, read_manifest

__all__ = ["export_nnunet"]

_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.BatchNorm2d, nn.BatchNorm3d)
_CLASS = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def export_nnunet(
    path: str | os.PathLike,
    output: str | os.PathLike,
    *,
    in_channels: int | None = None,
    channel_policy: str = "sum",
    patch_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> Path:
    """Write the weights of a ``"dynunet"`` file as nnU-Net reads them, with the adaptation plan.

    The names become those of ``PlainConvUNet``, so that nnU-Net's network gives the same output. Its convolutions have
    biases, DynUNet's have none: they are written as 0. The decoder is written if the file has it and the kernels of
    neighbouring stages are equal (the two networks take them from different stages in the decoder). Dropout is left
    out; the segmentation layers start anew.

    What nnU-Net loads is up to its command: ``nnUNetv2_train_pretrained`` the encoder, ``nnUNetv2_train
    -pretrained_weights`` encoder and decoder, for a plan with the same network. The first needs 3D, and as many input
    channels as the data set has: give ``in_channels`` (its own adaptation does not reach this network's first layer).

    Args:
        path: a file of :func:`monai_ssl.weights.save_encoder` with ``architecture="dynunet"``, without residual blocks.
        output: a ``.pth`` file, or a folder for ``checkpoint_final.pth``; ``adaptation_plan.json`` is written beside.
        in_channels: of the data set it is for; None: as in the file.
        channel_policy: how the first layer gets them, see :func:`monai_ssl.weights.adapt_channels`.
        patch_size: of training, in voxels, array order; None: the manifest's.
        spacing_mm: of the training images, array order; None: the manifest's, or none if it has none (images of their
            own spacing each).

    Returns:
        The path of the checkpoint.

    Raises:
        FileNotFoundError, WeightsFileError: see :func:`monai_ssl.weights.read_manifest`.
        ValueError: the network has no counterpart in nnU-Net (the message says why), or no patch size is known.
    """
    manifest = read_manifest(path)
    if manifest["network"]["architecture"] != "dynunet":
        raise ValueError(
            f"{path} holds a {manifest['network']['architecture']}, which nnU-Net has no network for: only what "
            "build_encoder('dynunet') makes, without residual blocks, can be exported"
        )
    encoder = open_encoder(path)
    _check_structure(encoder.net, str(path))
    patch_size = [int(side) for side in patch_size or manifest["patch_size"] or ()]
    if len(patch_size) != encoder.spatial_dims:
        raise ValueError(
            f"patch_size must have {encoder.spatial_dims} numbers, got {patch_size or 'none'} "
            f"({path} says {manifest['patch_size'] or 'nothing'})"
        )
    spacing = [float(step) for step in spacing_mm or manifest["spacing_mm"] or ()] or None
    weights = _network_weights(encoder, bool(manifest["network"].get("decoder")), in_channels, channel_policy)
    plan = _adaptation_plan(encoder, manifest, in_channels or encoder.in_channels, patch_size, spacing)
    output = Path(output)
    checkpoint = output if output.suffix == ".pth" else output / "checkpoint_final.pth"
    content = {"network_weights": weights, "nnssl_adaptation_plan": plan, "citations": [], "monai_ssl": manifest}
    with atomic_file(checkpoint) as file:
        torch.save(content, file)
    with atomic_file(checkpoint.parent / "adaptation_plan.json") as file:
        file.write(json.dumps(plan, indent=2).encode())
    return checkpoint


def _check_structure(net: nets.DynUNet, path: str) -> None:
    """Refuse what PlainConvUNet can't be built as."""
    problem = ""
    norm, act = net.input_block.norm1, net.input_block.lrelu
    if not isinstance(net.input_block, UnetBasicBlock):
        problem = (
            "its blocks are residual (res_block=True); nnU-Net's residual networks have a stem before their first "
            "block and pool in their shortcuts, MONAI's have neither"
        )
    elif not isinstance(norm, _NORMS):
        problem = f"its normalisation is {type(norm).__name__}; nnU-Net's plans know instance and batch norm"
    elif not isinstance(act, (nn.LeakyReLU, nn.ReLU)):
        problem = f"its activation is {type(act).__name__}; LeakyReLU and ReLU can be exported"
    elif _sides(net, net.upsample_kernel_size) != _sides(net, net.strides)[1:]:
        problem = "upsample_kernel_size is not strides[1:]"
    for kernel, stride in zip(_sides(net, net.kernel_size), _sides(net, net.strides), strict=True):
        # MONAI pads by (kernel - stride + 1) / 2, nnU-Net by (kernel - 1) / 2, both rounded down.
        if any((k - s + 1) // 2 != (k - 1) // 2 for k, s in zip(kernel, stride, strict=True)):
            problem = f"kernel {kernel} with stride {stride} is padded otherwise in nnU-Net"
    if problem:
        raise ValueError(f"{path} holds a dynunet that nnU-Net has no network for: {problem}")


def _network_weights(
    encoder: ImageEncoder, with_decoder: bool, in_channels: int | None, channel_policy: str
) -> dict[str, torch.Tensor]:
    """The state dict under nnU-Net's names, which name many a tensor twice or more."""
    net = encoder.net
    weights: dict[str, torch.Tensor] = {}
    for stage, block in enumerate([net.input_block, *net.downsamples, net.bottleneck]):
        _add_block(weights, f"encoder.stages.{stage}.0.convs", block)
    stem = weights["encoder.stages.0.0.convs.0.conv.weight"]
    if in_channels is not None and in_channels != stem.shape[1]:
        stem = adapt_channels(stem, in_channels, channel_policy)
        weights["encoder.stages.0.0.convs.0.conv.weight"] = stem
        weights["encoder.stages.0.0.convs.0.all_modules.0.weight"] = stem
    kernels = _sides(net, net.kernel_size)
    if with_decoder and kernels[1:] == kernels[:-1]:
        for level, up in enumerate(net.upsamples):
            step = up.transp_conv.conv
            weights[f"decoder.transpconvs.{level}.weight"] = step.weight.detach()
            weights[f"decoder.transpconvs.{level}.bias"] = _bias(step, step.out_channels)
            _add_block(weights, f"decoder.stages.{level}.convs", up.conv_block)
        weights |= {f"decoder.{key}": value for key, value in weights.items() if key.startswith("encoder.")}
    return weights


def _add_block(weights: dict[str, torch.Tensor], prefix: str, block: UnetBasicBlock) -> None:
    for i, (conv, norm) in enumerate(((block.conv1.conv, block.norm1), (block.conv2.conv, block.norm2))):
        tensors = {"weight": conv.weight.detach(), "bias": _bias(conv, conv.out_channels)}
        for names, values in ((("conv", "all_modules.0"), tensors), (("norm", "all_modules.1"), norm.state_dict())):
            weights.update({f"{prefix}.{i}.{name}.{key}": value for name in names for key, value in values.items()})


def _bias(conv: nn.Module, channels: int) -> torch.Tensor:
    return torch.zeros(channels) if conv.bias is None else conv.bias.detach()


def _adaptation_plan(
    encoder: ImageEncoder, manifest: dict[str, Any], in_channels: int, patch_size: list[int], spacing: list | None
) -> dict[str, Any]:
    net, dims = encoder.net, encoder.spatial_dims
    kernels, stages = _sides(net, net.kernel_size), len(net.filters)
    policy = (manifest["intensity"] or {}).get("policy") or {}
    scheme = "CTNormalization" if policy.get("unit") == "HU" else "ZScoreNormalization"  # the nearest of nnU-Net's
    return {
        "architecture_plans": {
            "arch_class_name": _CLASS,
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(net.filters),
                "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
                "kernel_sizes": kernels,
                "strides": _sides(net, net.strides),
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                **_norm_and_activation(net),
                "dropout_op": None,
                "dropout_op_kwargs": None,
            },
            "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "pretrain_plan": {
            "dataset_name": "monai_ssl",
            "plans_name": f"monai_ssl_{manifest['method']}",
            "configurations": {
                "3d_fullres" if dims == 3 else "2d": {
                    "data_identifier": "monai_ssl",
                    "normalization_schemes": [scheme] * in_channels,
                    "spacing": spacing,
                    "patch_size": patch_size,
                }
            },
        },
        "pretrain_num_input_channels": in_channels,
        "recommended_downstream_patchsize": patch_size,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stages.0",
        "keys_to_in_proj": ["encoder.stages.0.0.convs.0.all_modules.0", "encoder.stages.0.0.convs.0.conv"],
        "key_to_lpe": None,
        "architecture_kwargs": {"kernel_sizes": kernels, "n_stages": stages},
    }


def _norm_and_activation(net: nets.DynUNet) -> dict[str, Any]:
    norm, act = net.input_block.norm1, net.input_block.lrelu
    slope = {"negative_slope": act.negative_slope} if isinstance(act, nn.LeakyReLU) else {}
    return {
        "norm_op": f"{type(norm).__module__}.{type(norm).__name__}",
        "norm_op_kwargs": {"eps": norm.eps, "affine": norm.affine},
        "nonlin": f"torch.nn.{type(act).__name__}",
        "nonlin_kwargs": {**slope, "inplace": True},
    }


def _sides(net: nets.DynUNet, values: Sequence) -> list[list[int]]:
    """One list of ``spatial_dims`` numbers for each entry."""
    return [[value] * net.spatial_dims if isinstance(value, int) else list(value) for value in values]
