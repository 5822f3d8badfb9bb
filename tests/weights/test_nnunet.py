# SPDX-License-Identifier: Apache-2.0
"""The nnU-Net checkpoint: names, plan, and that nnU-Net's network gives what MONAI's gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from weight_cases import FIELDS, lived_in

from monai_ssl.networks import build_encoder
from monai_ssl.weights import export_nnunet, save_encoder

SMALL = {"filters": [4, 6, 8, 8], "strides": [1, 2, 2, 2]}
FLAT = {"filters": [4, 6, 8], "strides": [1, [1, 2, 2], 2], "kernel_size": [[1, 3, 3], [1, 3, 3], 3]}
PLACES = {"patch_size": [32, 32, 32], "spacing_mm": [3.0, 1.0, 1.0]}


def file_of(folder: Path, spatial_dims: int = 3, with_decoder: bool = True, fields: dict | None = None, **arguments):
    encoder = lived_in(build_encoder("dynunet", spatial_dims, out_channels=1, **arguments))
    path = folder / "encoder.safetensors"
    places = {name: value[:spatial_dims] for name, value in PLACES.items()}
    save_encoder(encoder, path, FIELDS | places | (fields or {}), with_decoder)
    return encoder, path


def plain_conv_unet(content: dict, x: torch.Tensor, prefix: str = "encoder.stages") -> list[torch.Tensor]:
    """nnU-Net's PlainConvUNet, written down from its plan's fields: the maps of its stages, or its decoder's last."""
    weights, plans = content["network_weights"], content["nnssl_adaptation_plan"]["architecture_plans"]
    kwargs = plans["arch_kwargs"]
    dims = int(kwargs["conv_op"][-2])
    conv, up = getattr(functional, f"conv{dims}d"), getattr(functional, f"conv_transpose{dims}d")

    def stack(x, name, count, kernel, stride):
        for i in range(count):
            w = {part: weights[f"{name}.convs.{i}.{part}"] for part in ("conv.weight", "conv.bias")}
            assert list(w["conv.weight"].shape[2:]) == kernel
            padding = [(side - 1) // 2 for side in kernel]
            x = conv(x, w["conv.weight"], w["conv.bias"], stride if i == 0 else 1, padding)
            norm = [weights[f"{name}.convs.{i}.norm.{part}"] for part in ("weight", "bias")]
            assert "InstanceNorm" in kwargs["norm_op"] and kwargs["norm_op_kwargs"]["affine"]
            x = functional.instance_norm(x, None, None, *norm, eps=kwargs["norm_op_kwargs"]["eps"])
            assert kwargs["nonlin"] == "torch.nn.LeakyReLU"
            x = functional.leaky_relu(x, kwargs["nonlin_kwargs"]["negative_slope"])
        return x

    maps = []
    for stage in range(kwargs["n_stages"]):
        count, kernel, stride = (kwargs[name][stage] for name in ("n_conv_per_stage", "kernel_sizes", "strides"))
        maps.append(x := stack(x, f"encoder.stages.{stage}.0", count, kernel, stride))
    if prefix == "encoder.stages":
        return maps
    for level in range(kwargs["n_stages"] - 1):
        stride = kwargs["strides"][-1 - level]
        weight, bias = (weights[f"decoder.transpconvs.{level}.{part}"] for part in ("weight", "bias"))
        assert list(weight.shape[2:]) == stride
        x = torch.cat((up(x, weight, bias, stride), maps[-2 - level]), 1)
        x = stack(
            x,
            f"decoder.stages.{level}",
            kwargs["n_conv_per_stage_decoder"][level],
            kwargs["kernel_sizes"][-2 - level],
            1,
        )
    return [x]


@pytest.mark.parametrize("spatial_dims, arguments", [(2, SMALL), (3, SMALL), (3, SMALL | {"trans_bias": True})])
@torch.no_grad()
def test_nnunets_network_gives_the_same_maps(tmp_path, spatial_dims, arguments):
    encoder, path = file_of(tmp_path, spatial_dims, **arguments)
    content = torch.load(export_nnunet(path, tmp_path / "nnunet"), weights_only=True)
    x = torch.rand(1, 1, *[16] * spatial_dims, generator=torch.Generator().manual_seed(0))
    maps = encoder.feature_maps(x)
    for ours, theirs in zip(maps, plain_conv_unet(content, x), strict=True):
        torch.testing.assert_close(theirs, ours)
    inputs = []
    encoder.net.output_block.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    encoder.decode(maps)
    torch.testing.assert_close(plain_conv_unet(content, x, "decoder")[0], inputs[0])


@torch.no_grad()
def test_unequal_kernels_and_strides(tmp_path):
    encoder, path = file_of(tmp_path, **FLAT)
    content = torch.load(export_nnunet(path, tmp_path / "nnunet"), weights_only=True)
    x = torch.rand(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(encoder.feature_maps(x), plain_conv_unet(content, x), strict=True):
        torch.testing.assert_close(theirs, ours)
    # nnU-Net's decoder has another kernel beside the 3 x 3 x 3 stage: only the encoder can be given.
    assert not any(key.startswith("decoder.") for key in content["network_weights"])


def test_the_plan_has_what_nnunet_reads(tmp_path):
    _, path = file_of(tmp_path, **SMALL)
    checkpoint = export_nnunet(path, tmp_path / "nnunet")
    assert checkpoint.name == "checkpoint_final.pth"
    content = torch.load(checkpoint, weights_only=True)
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    assert json.loads((tmp_path / "nnunet" / "adaptation_plan.json").read_text()) == plan
    configuration = next(iter(plan["pretrain_plan"]["configurations"].values()))
    assert (configuration["spacing"], configuration["patch_size"]) == ([3.0, 1.0, 1.0], [32, 32, 32])
    assert plan["recommended_downstream_patchsize"] == [32, 32, 32] and plan["pretrain_num_input_channels"] == 1
    # As nnU-Net cuts it up: encoder and stem by prefix; each convolution and norm is there under two names.
    stem = {key for key in weights if key.startswith(plan["key_to_stem"])}
    assert len(stem) == 16 and stem < {key for key in weights if key.startswith(plan["key_to_encoder"])}
    for key in plan["keys_to_in_proj"]:
        assert weights[f"{key}.weight"].shape == (4, 1, 3, 3, 3)
    for key, value in weights.items():
        alias = key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        assert weights[alias].data_ptr() == value.data_ptr()  # one tensor on the disk
        if key.startswith("encoder."):
            assert weights[f"decoder.{key}"].data_ptr() == value.data_ptr()
    arguments = plan["architecture_plans"]["arch_kwargs"]
    assert set(plan["architecture_plans"]["arch_kwargs_requiring_import"]) <= set(arguments)
    assert arguments["strides"] == [[1] * 3] + [[2] * 3] * 3 and arguments["conv_bias"] is True
    assert plan["architecture_kwargs"] == {"kernel_sizes": arguments["kernel_sizes"], "n_stages": 4}
    assert content["monai_ssl"]["method"] == "C2L"


def test_what_the_caller_says_comes_before_the_manifest(tmp_path):
    policy = {"kind": "ct", "unit": "HU", "name": "window", "citation": ""}
    fields = {"patch_size": None, "spacing_mm": None, "intensity": {"policy": policy}}
    encoder, path = file_of(tmp_path, with_decoder=False, fields=fields, **SMALL)
    with pytest.raises(ValueError, match="patch_size must have 3 numbers, got none"):
        export_nnunet(path, tmp_path / "nnunet")
    checkpoint = export_nnunet(path, tmp_path / "my.pth", patch_size=(64, 96, 96), in_channels=2)
    content = torch.load(checkpoint, weights_only=True)
    plan, weights = content["nnssl_adaptation_plan"], content["network_weights"]
    configuration = plan["pretrain_plan"]["configurations"]["3d_fullres"]
    assert checkpoint == tmp_path / "my.pth" and plan["pretrain_num_input_channels"] == 2
    assert configuration["spacing"] is None and configuration["patch_size"] == [64, 96, 96]
    assert configuration["normalization_schemes"] == ["CTNormalization"] * 2
    assert not any(key.startswith("decoder.") for key in weights)
    x = torch.rand(1, 1, 16, 16, 16)
    maps = plain_conv_unet(content, x.expand(-1, 2, -1, -1, -1))
    torch.testing.assert_close(maps[-1], encoder.feature_maps(x)[-1])
    assert all(weights[f"{key}.weight"].shape[1] == 2 for key in plan["keys_to_in_proj"])


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ({"res_block": True}, "its blocks are residual"),
        ({"norm_name": ["group", {"num_groups": 2}]}, "GroupNorm"),
        ({"act_name": "prelu"}, "PReLU"),
        ({"upsample_kernel_size": [4, 2, 2], "strides": [1, 2, 2, 2]}, "upsample_kernel_size is not"),
    ],
)
def test_networks_without_counterpart_are_refused(tmp_path, arguments, reason):
    path = tmp_path / "encoder.safetensors"
    save_encoder(build_encoder("dynunet", 3, **SMALL | arguments), path, FIELDS | PLACES)
    with pytest.raises(ValueError, match=f"no network for: .*{reason}"):
        export_nnunet(path, tmp_path / "nnunet")
    assert not (tmp_path / "nnunet").exists()


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(build_encoder("segresnet", 3), path, FIELDS | PLACES)
    with pytest.raises(ValueError, match="holds a segresnet, which nnU-Net has no network for"):
        export_nnunet(path, tmp_path / "nnunet")


@pytest.mark.parametrize("spatial_dims", [2, 3])
@torch.no_grad()
def test_nnunets_own_network_takes_them_all(tmp_path, spatial_dims):
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    encoder, path = file_of(tmp_path, spatial_dims, **SMALL)
    content = torch.load(export_nnunet(path, tmp_path / "nnunet"), weights_only=True)
    plans = content["nnssl_adaptation_plan"]["architecture_plans"]
    arguments = dict(plans["arch_kwargs"])
    for name in plans["arch_kwargs_requiring_import"]:
        if arguments[name] is not None:
            arguments[name] = getattr(nn, arguments[name].rpartition(".")[2])
    net = unet.PlainConvUNet(1, num_classes=1, **arguments).eval()
    for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj"):
        assert content["nnssl_adaptation_plan"][key] == (
            list(value) if isinstance(value := getattr(net, key), tuple) else value
        )
    missing, unexpected = net.load_state_dict(content["network_weights"], strict=False)
    assert not unexpected and all(".seg_layers." in key for key in missing)
    last = encoder.net.output_block.conv.conv
    net.decoder.seg_layers[-1].load_state_dict(last.state_dict())
    x = torch.rand(1, 1, *[16] * spatial_dims, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), encoder.net(x))
