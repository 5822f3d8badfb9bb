# SPDX-License-Identifier: Apache-2.0
"""The verb 'label' before its server starts: clear words for what is missing, and what an installation would do."""

from __future__ import annotations

import pytest

from monai_ssl.__main__ import main
from monai_ssl.label import launcher


def test_what_is_missing_is_said_with_the_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launcher, "_MODULES", ("a_package_that_is_not_there",))
    assert main(["label", "--studies", str(tmp_path)]) == 2
    assert "run 'python -m monai_ssl label --install'" in capsys.readouterr().err
    assert main(["label"]) == 2
    assert "needs --studies" in capsys.readouterr().err


def test_folder_encoder_and_port_are_checked(tmp_path, monkeypatch, toy_encoder):
    monkeypatch.setattr(launcher, "_MODULES", ())
    with pytest.raises(FileNotFoundError, match="no folder"):
        launcher.server_command(tmp_path / "nothing")
    with pytest.raises(ValueError, match="give --encoder"):
        launcher.server_command(tmp_path)
    with pytest.raises(ValueError, match="use 1 to 65535"):
        launcher.server_command(tmp_path, encoder=str(toy_encoder), port=70000)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="truncated, damaged"):
        launcher.server_command(tmp_path, encoder=str(tmp_path / "bad.safetensors"))
    command, environment = launcher.server_command(tmp_path, encoder=str(toy_encoder), port=_free_port())
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert environment["MONAI_LABEL_SESSIONS"] == "false"


def test_the_installation_brings_nothing_heavy(monkeypatch, capsys):
    ran = []

    class Done:
        returncode = 0

    monkeypatch.setattr(launcher.subprocess, "run", lambda command: ran.append(command) or Done())
    assert main(["label", "--install"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("This installs into") and "monailabel==0.8.5" in printed
    assert "--no-deps" in ran[0] and len(ran) == 2
    assert not {"torch", "torchvision", "monai", "numpy", "monailabel", "mlflow"} & set(ran[1])
    Done.returncode = 1
    assert main(["label", "--install"]) == 2


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
