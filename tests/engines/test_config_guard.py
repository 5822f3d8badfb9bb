# SPDX-License-Identifier: Apache-2.0
"""A misspelt override of a bundle is refused with the nearest name; everything that MONAI offers still works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow, run

from monai_ssl.engines import refuse_unknown_keys

TRAIN = {
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/out'",
    "learning_rate": 0.1,
    "encoder_args": {"depth": 18, "stem": {"stride": 2}},
    "free": {},
    "computed": "${'growth': 32}",
    "train": {"trainer": {"_target_": "builtins.dict", "max_epochs": 3}, "handlers": []},
    "initialize": [{"_target_": "monai_ssl.engines.refuse_unknown_keys", "bundle_root": "@bundle_root"}],
    "run": ["$print('learning rate', @learning_rate)"],
}


@pytest.fixture
def bundle(tmp_path) -> Path:
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "train.json").write_text(json.dumps(TRAIN))
    (configs / "metadata.json").write_text(json.dumps({"version": "1", "not_a_config_key": 1}))
    (configs / "densenet.yaml").write_text(
        "batch_size: 3\nencoder_args::growth: 32\n'+encoder_args': {block: 4}\ncomputed: {rate: 1}\n"
    )
    return tmp_path


def start(bundle: Path, files=("train.json",), **overrides) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        [str(bundle / "configs" / name) for name in files], bundle_root=str(bundle), logging_file=False, **overrides
    )
    workflow.initialize()
    return workflow


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"learning_rate": 0.2, "output_dir": "elsewhere"},
        {"train#trainer#max_epochs": 1, "train::handlers": [1]},
        {"train#trainer#accumulate": 2},  # a component refuses what it does not take
        {"encoder_args": {"depth": 34}},
        {"encoder_args#depth": 50, "encoder_args#growth": 2, "encoder_args#stem#stride": 1},
        {"free#anything": 1},
        {"computed": {"anything": 1}},
        {"batch_size": 8},  # known from another file of the bundle
    ],
)
def test_known_keys_pass(bundle, overrides):
    start(bundle, **overrides)


def test_fragments_pass(bundle, tmp_path):
    start(bundle, ("train.json", "densenet.yaml"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"learning_rte": 0.2}, "no key 'learning_rte': did you mean 'learning_rate'"),
        ({"outputdir": "x"}, "did you mean 'output_dir'"),
        ({"config_fil": "x"}, "did you mean 'config_file'"),
        ({"zzz": 1}, "no key 'zzz'; there are .*learning_rate"),
        ({"encoder_args#depht": 34}, "no key 'encoder_args::depht': did you mean 'encoder_args::depth'"),
        ({"encoder_args#stem#strid": 1}, "did you mean 'encoder_args::stem::stride'"),
        ({"not_a_config_key": 1}, "no key 'not_a_config_key'"),
        ({"train#handlrs": []}, "did you mean 'train::handlers'"),
    ],
)
def test_unknown_keys_are_refused(bundle, overrides, message):
    with pytest.raises(RuntimeError) as caught:  # MONAI wraps what an expression raises
        start(bundle, **overrides)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ValueError, match=message):
        raise caught.value.__cause__


def test_as_an_expression(bundle):
    config = TRAIN | {
        "imports": ["$import monai_ssl.engines as guard"],
        "initialize": ["$guard.refuse_unknown_keys(@bundle_root)"],
    }
    (bundle / "configs" / "train.json").write_text(json.dumps(config))
    start(bundle)
    with pytest.raises(RuntimeError) as caught:
        start(bundle, learning_rte=1)
    assert "did you mean 'learning_rate'" in str(caught.value.__cause__)


def test_a_configuration_file_of_the_users_own_counts(bundle, tmp_path):
    extra = tmp_path / "mine.yaml"
    extra.write_text("my_note: 1\n")
    files = [str(bundle / "configs" / "train.json"), str(extra)]
    run(config_file=files, bundle_root=str(bundle))
    with pytest.raises(RuntimeError) as caught:
        run(config_file=files, bundle_root=str(bundle), my_noet=2)
    assert "did you mean 'my_note'" in str(caught.value.__cause__)


def test_tracking_settings_pass(bundle):
    from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

    settings = {
        key: 1 for key in DEFAULT_MLFLOW_SETTINGS["configs"] if key not in ("trainer", "validator", "evaluator")
    }
    start(bundle, **settings)


def test_outside_a_bundle():
    with pytest.raises(RuntimeError, match="initialize"):
        refuse_unknown_keys(".")


def test_the_command_line_shows_one_line_and_no_traceback(bundle):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(bundle / "configs" / "train.json")]
    done = subprocess.run(
        [*command, "--bundle_root", str(bundle), "--learning_rte", "0.2"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "this bundle has no key 'learning_rte': did you mean 'learning_rate'?"
    )
    assert "Traceback" not in done.stderr
