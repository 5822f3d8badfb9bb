# SPDX-License-Identifier: Apache-2.0
"""Start the labelling server, and install what it needs."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from monai_ssl.label.annotation.bundles import sorted_bundles
from monai_ssl.label.annotation.folder import STATE
from monai_ssl.weights import read_manifest

__all__ = ["install_server", "server_command"]

SHIMS = Path(__file__).parent / "shims"
MONAILABEL = "monailabel==0.8.5"
# What MONAI Label needs to serve a local folder. Its own list would also bring torchvision, SAM 2, MLflow and an old
# NumPy, which do not go with this package.
NEEDS = (
    *("uvicorn", "pydantic", "pydantic-settings", "python-dotenv", "fastapi", "python-multipart", "httpx", "schedule"),
    *("dicomweb-client", "timeloop", "expiringdict", "expiring_dict", "cachetools", "watchdog", "pynetdicom", "pynrrd"),
    *("girder-client", "requests", "requests-toolbelt", "passlib", "pyjwt", "bcrypt", "shapely", "google-auth"),
    *("psutil", "SimpleITK", "filelock"),
)
_MODULES = ("monailabel", "fastapi", "uvicorn", "pydantic_settings", "timeloop", "schedule", "nrrd", "SimpleITK")
_MAIN = "from monai_ssl.label.server.app import AnnotationApp  # noqa: F401\n"


def install_commands() -> list[list[str]]:
    """Return the pip commands: MONAI Label itself without its dependencies, then the light ones it needs."""
    pip = [sys.executable, "-m", "pip", "install"]
    return [[*pip, "--no-deps", MONAILABEL], [*pip, *NEEDS]]


def install_server() -> None:
    """Say what will be installed where, and install it.

    Raises:
        RuntimeError: pip failed.
    """
    commands = install_commands()
    print(f"This installs into {sys.prefix}:")
    for command in commands:
        print("  pip " + " ".join(command[3:]))
    print("MONAI Label comes without its own dependencies; torch, MONAI and NumPy stay as they are.", flush=True)
    for command in commands:
        if subprocess.run(command).returncode:
            raise RuntimeError(f"pip failed: {' '.join(command[1:])}")


def server_command(
    studies: str | os.PathLike,
    *,
    bundles: Sequence[str] = (),
    encoder: str | None = None,
    port: int = 8000,
    host: str = "127.0.0.1",
    num_classes: int = 2,
    modality: str | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Check everything that the server needs, and return its command and its environment.

    Args:
        studies: folder of images.
        bundles: folders of bundles, at most one of each kind.
        encoder: file of weights; may be left out with a pretraining bundle, or if one was pretrained here before.
        port: to listen at.
        host: address to listen at; other than this machine's own is for networks where everybody may see the images.
        num_classes: classes that are expected.
        modality: of volumes whose files do not say theirs, such as NIfTI: CT or MR.

    Raises:
        FileNotFoundError: a folder or file is not there.
        ValueError: the file is no encoder, or two bundles are of one kind.
        RuntimeError: something is not installed, or the port is taken.
    """
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(
            f"the labelling server needs MONAI Label ({', '.join(missing)} not installed): run "
            "'python -m monai_ssl label --install'"
        )
    studies = Path(studies)
    if not studies.is_dir():
        raise FileNotFoundError(f"there is no folder {studies}")
    kinds = sorted_bundles(list(bundles))
    if encoder is not None:
        read_manifest(encoder)
    elif "pretraining" not in kinds and not (studies / STATE / "encoder.safetensors").is_file():
        raise ValueError("give --encoder, a pretrained encoder.safetensors, or --bundle with a pretraining bundle")
    _check_port(host, port)
    app = studies / STATE / "app"
    app.mkdir(parents=True, exist_ok=True)
    (app / "main.py").write_text(_MAIN, encoding="utf-8")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", host, "--port", str(port), "--uvicorn_app", "monai_ssl.label.server.web:app"]
    conf = {
        "bundles": ",".join(str(path) for path in kinds.values()),
        "encoder": "" if encoder is None else str(Path(encoder).resolve()),
        "modality": modality or "",
        "num_classes": str(num_classes),
    }
    for key, value in conf.items():
        command += ["--conf", key, value]
    return command, _environment(port, conf, studies, app)


def _environment(port: int, conf: dict[str, str], studies: Path, app: Path) -> dict[str, str]:
    environment = dict(os.environ)
    paths = [] if importlib.util.find_spec("pydicom_seg") else [str(SHIMS)]
    package = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([*paths, package, *filter(None, [environment.get("PYTHONPATH")])])
    # Trainings and scorings are processes of their own, which read these.
    environment["MONAI_LABEL_APP_DIR"] = str(app.resolve())
    environment["MONAI_LABEL_STUDIES"] = str(studies.resolve())
    environment["MONAI_LABEL_APP_CONF"] = json.dumps(conf)
    environment["MONAI_LABEL_SERVER_PORT"] = str(port)
    environment["MONAI_LABEL_SESSIONS"] = "false"  # they would let a client send files around the checks
    return environment


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ValueError(f"port is {port}; use 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RuntimeError(
                f"port {port} of {host} can't be used ({error.strerror}): another program has it; choose one by --port"
            ) from error
