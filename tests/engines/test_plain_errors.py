# SPDX-License-Identifier: Apache-2.0
"""A user's mistake is answered by our message alone; a bug keeps its traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from monai_ssl.engines.plain_errors import own_error
from monai_ssl.evaluation import linear_probe


def wrapped(cause: BaseException) -> BaseException:
    try:
        try:
            raise cause
        except BaseException as error:
            raise RuntimeError("Failed to instantiate component") from error
    except RuntimeError as error:
        return error


def raised(call, *arguments) -> BaseException:
    with pytest.raises(Exception) as caught:
        call(*arguments)
    return caught.value


def test_our_message_is_found_inside_others():
    own = raised(linear_probe, [[1.0]], ["a"])
    assert own_error(wrapped(own)) is own


def test_bugs_and_other_libraries_are_not_ours():
    assert own_error(wrapped(raised(int, "x"))) is None
    assert own_error(wrapped(KeyError("x"))) is None
    type_error = raised(linear_probe)
    assert own_error(wrapped(type_error)) is None


CONFIG = """
imports: ["$import monai_ssl"]
bundle_root: .
initialize: ["$monai_ssl.engines.explain_errors()"]
run: ["$monai_ssl.evaluation.StartingPoint('finetune')"]
"""


def test_the_bundle_command_ends_with_the_message(tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "train.yaml"]
    (tmp_path / "train.yaml").write_text(CONFIG)
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert "error: mode 'finetune' needs encoder_weights" in ended.stderr
    assert "Traceback" not in ended.stderr
