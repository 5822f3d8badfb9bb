# SPDX-License-Identifier: Apache-2.0
"""Which DICOM pixel decoders this installation has, and what they decode."""

from __future__ import annotations

from importlib import metadata

from pydicom.pixels import decoders as pydicom_decoders
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import UID

from monai_ssl.data.gdcm_frames import JPEG_PROGRESSIVE, gdcm_available

# pydicom's plug-in name and transfer syntax family -> the package that does the work. All are permissively licensed;
# pylibjpeg-libjpeg is not among them on purpose, it is GPL.
_PACKAGES = {
    "gdcm": "python-gdcm",
    "pillow": "pillow",
    "pyjpegls": "pyjpegls",
    "pydicom": "pydicom",
}


def _pylibjpeg_package(syntax_name: str) -> str:
    return "pylibjpeg-rle" if syntax_name.startswith("RLE") else "pylibjpeg-openjpeg"


def available_decoders() -> dict[str, dict]:
    """List the DICOM pixel decoders with their versions and the transfer syntaxes each one reads here.

    Returns:
        ``{package: {"version": str or None, "transfer_syntaxes": [names]}}``; ``version`` is None and the list is
        empty for a decoder that is not installed. Uncompressed and deflated pixel data need only pydicom.
    """
    packages = ["pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pyjpegls", "pillow"]
    found: dict[str, dict] = {}
    for package in packages:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = None
        found[package] = {"version": version, "transfer_syntaxes": []}
    for decoder in vars(pydicom_decoders).values():
        if not isinstance(decoder, Decoder):
            continue
        name = decoder.UID.name
        plugins = decoder.available_plugins if decoder.UID.is_encapsulated else ("pydicom",)
        for plugin in plugins:
            package = _pylibjpeg_package(name) if plugin == "pylibjpeg" else _PACKAGES.get(plugin, plugin)
            entry = found.setdefault(package, {"version": None, "transfer_syntaxes": []})
            entry["transfer_syntaxes"].append(name)
    if gdcm_available():
        found["python-gdcm"]["transfer_syntaxes"].append(UID(JPEG_PROGRESSIVE).name)
    for entry in found.values():
        entry["transfer_syntaxes"].sort()
    return found


def decoder_signature() -> str:
    """Name the installed decoders in one line: a file refused under one signature may be read under another."""
    return ",".join(f"{name}={entry['version']}" for name, entry in sorted(available_decoders().items()))
