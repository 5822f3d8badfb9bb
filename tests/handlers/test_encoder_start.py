# SPDX-License-Identifier: Apache-2.0
"""Bundles in the model zoo's form start from an encoder by one more configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.bundle import ConfigWorkflow, run
from monai.engines import SupervisedTrainer
from monai.networks import nets
from zoo_bundles import SWIN, UNET, make_volumes, write_bundle

from monai_ssl.handlers import EncoderStart
from monai_ssl.networks import build_encoder
from monai_ssl.weights import WeightsFileError, WeightsMismatchError, save_encoder

FRAGMENT = Path(__file__).parents[2] / "bundles" / "start_from_encoder.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_volumes(tmp_path_factory.mktemp("task"))


def encoder_file(path: Path, network: dict, with_decoder: bool = True) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file for the bundle's network, as pretraining leaves it: the decoder gives one channel."""
    arguments = {k: v for k, v in network.items() if k not in ("_target_", "spatial_dims", "in_channels")}
    encoder = build_encoder(network["_target_"].lower(), 3, **arguments | {"out_channels": 1})
    with torch.no_grad():
        for value in encoder.net.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.01, 0.1)
    save_encoder(encoder, path, {"method": "MaskedAutoencoderCNN"}, with_decoder)
    return path, {key: value.clone() for key, value in encoder.encoder_state_dict(with_decoder).items()}


def start_of(workflow: ConfigWorkflow) -> dict[str, torch.Tensor]:
    """Run the training; return the network's state at its first iteration."""
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    state: dict[str, torch.Tensor] = {}

    def look(engine):
        state.update({key: value.clone() for key, value in engine.network.state_dict().items()})

    trainer.add_event_handler(Events.ITERATION_STARTED(once=1), look)
    workflow.run()
    assert trainer.state.iteration == 2
    return state


@pytest.mark.parametrize(
    "network, old_form, with_decoder", [(UNET, False, True), (UNET, True, False), (SWIN, True, True)]
)
def test_a_bundle_starts_from_the_files_weights(tmp_path, data, capsys, network, old_form, with_decoder):
    path, weights = encoder_file(tmp_path / "encoder.safetensors", network, with_decoder)
    bundle = write_bundle(tmp_path / "bundle", data, network, old_form)
    overrides = {"encoder_weights": str(path), "run_id": "training" if old_form else "run"}
    without = start_of(ConfigWorkflow(str(bundle), run_id=overrides["run_id"]))
    state = start_of(ConfigWorkflow([str(bundle), str(FRAGMENT)], **overrides))
    assert weights and all(torch.equal(state[key], value) for key, value in weights.items())
    assert not any(torch.equal(without[key], value) for key, value in weights.items() if value.is_floating_point())
    # Nothing else has changed: the rest is initialised as without the file.
    rest = state.keys() - weights.keys()
    assert rest and all(torch.equal(state[key], without[key]) for key in rest)
    assert "100.0% of the net's encoder, 100.0% of the file" in capsys.readouterr().out
    assert (tmp_path / "bundle" / "models" / "model.pt").is_file()


def test_the_multi_gpu_files_of_the_zoo_do_not_cut_it_off(tmp_path, data):
    """They take the last handlers from all processes but the first."""
    path, weights = encoder_file(tmp_path / "encoder.safetensors", UNET)
    bundle = write_bundle(tmp_path / "bundle", data, UNET)
    multi = tmp_path / "bundle" / "configs" / "multi_gpu_train.json"
    multi.write_text(json.dumps({"train#trainer#train_handlers": "$@train#handlers[:-2]"}))
    workflow = ConfigWorkflow([str(bundle), str(multi), str(FRAGMENT)], encoder_weights=str(path))
    state = start_of(workflow)
    assert all(torch.equal(state[key], value) for key, value in weights.items())


def test_another_network_stops_the_run_before_it_trains(tmp_path, data):
    path, _ = encoder_file(tmp_path / "encoder.safetensors", UNET | {"channels": [4, 8, 32]})
    bundle = write_bundle(tmp_path / "bundle", data, UNET)
    workflow = ConfigWorkflow([str(bundle), str(FRAGMENT)], encoder_weights=str(path))
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train::trainer")
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    error = caught.value.__cause__  # MONAI's own error stands around it; explain_errors shows what is inside
    assert isinstance(error, WeightsMismatchError) and "at least 90.0% must" in str(error)
    assert trainer.state.iteration == 0


def test_options_are_overrides_and_forgotten_weights_an_error(tmp_path, data):
    path, weights = encoder_file(tmp_path / "encoder.safetensors", UNET)
    bundle = write_bundle(tmp_path / "bundle", data, UNET | {"in_channels": 1})
    files = [str(bundle), str(FRAGMENT)]
    with pytest.raises(RuntimeError) as caught:
        run(config_file=files, encoder_wieghts=str(path))
    assert "no encoder to start from: give its file (--encoder_weights encoder.safetensors)" in str(
        caught.value.__cause__
    )
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(RuntimeError) as caught:
        run(config_file=files, encoder_weights=str(tmp_path / "cut.safetensors"))
    assert isinstance(caught.value.__cause__, WeightsFileError)
    run(
        config_file=files,
        encoder_weights=str(path),
        optimizer={"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.0},
        **{"encoder_start#with_decoder": False},
    )
    model = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    down = {key for key in weights if key.endswith("conv.weight") and ".2.0" not in key}
    assert all(torch.equal(model[key], weights[key]) for key in down if key.startswith("model.0"))
    assert not torch.equal(model["model.1.submodule.2.0.conv.weight"], weights["model.1.submodule.2.0.conv.weight"])


class _Data(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": torch.rand(1, 16, 16), "label": torch.rand(2, 16, 16)}


def trainer_of(network: torch.nn.Module, handlers: list) -> SupervisedTrainer:
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    loader = torch.utils.data.DataLoader(_Data(), batch_size=1)
    return SupervisedTrainer(
        torch.device("cpu"), 1, loader, network, optimizer, torch.nn.MSELoss(), train_handlers=handlers
    )


def test_a_network_inside_ddp(tmp_path):
    encoder = build_encoder("unet", channels=[4, 8, 16])
    save_encoder(encoder, tmp_path / "encoder.safetensors", {"method": "C2L"})
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        net = nets.UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=2)
        handler = EncoderStart(tmp_path / "encoder.safetensors")
        trainer_of(torch.nn.parallel.DistributedDataParallel(net), [handler]).run()
    finally:
        dist.destroy_process_group()
    assert handler.report.network == "UNet" and handler.report.coverage == 1
    for key, value in encoder.encoder_state_dict().items():
        assert torch.equal(net.state_dict()[key], value)


def test_a_resumed_training_is_left_alone(tmp_path, caplog):
    save_encoder(build_encoder("unet", channels=[4, 8, 16]), tmp_path / "encoder.safetensors", {"method": "C2L"})
    net = nets.UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=2)
    handler = EncoderStart(tmp_path / "encoder.safetensors")
    trainer = trainer_of(net, [handler])
    trainer.load_state_dict({"epoch_length": 1, "max_epochs": 2, "iteration": 1})
    before = net.state_dict()["model.0.conv.unit0.conv.weight"].clone()
    trainer.run()
    assert handler.report is None and "goes on from iteration 1" in caplog.text
    assert torch.equal(net.state_dict()["model.0.conv.unit0.conv.weight"], before)
