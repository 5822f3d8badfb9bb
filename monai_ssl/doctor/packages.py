# SPDX-License-Identifier: Apache-2.0
"""Which packages are installed, whether they are the ones this package wants, and which decoders they bring."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement

from monai_ssl.data import available_decoders
from monai_ssl.doctor.section import Section

__all__ = ["decoder_section", "package_section"]

DISTRIBUTION = "monai-ssl"
_EXTRAS = ("itk", "text", "tracking")

# What each decoder package is needed for.
_DECODES = {
    "python-gdcm": "JPEG of every kind, JPEG-LS, JPEG 2000",
    "pylibjpeg-openjpeg": "JPEG 2000 and High-Throughput JPEG 2000",
    "pylibjpeg-rle": "RLE, many times faster than pydicom's own",
    "pyjpegls": "JPEG-LS",
    "pillow": "PNG, JPEG and TIFF files, 8-bit JPEG in DICOM",
}
_ALSO_NEEDED = {"pylibjpeg-openjpeg": "pylibjpeg", "pylibjpeg-rle": "pylibjpeg"}


def package_section() -> Section:
    """Versions of all packages that this one requires, and of its extras."""
    section = Section("packages")
    if _version(DISTRIBUTION) is None:
        section.advise(f"{DISTRIBUTION} is found but not installed: run 'pip install -e .' in its folder")
        return section
    required = _required(DISTRIBUTION, [""])
    for requirement in list(required):
        required += _required(requirement.name, requirement.extras)
    section.add("required", ", ".join(_installed(requirement, section) for requirement in required))
    for extra in _EXTRAS:
        missing = [one.name for one in _required(DISTRIBUTION, [extra]) if _version(one.name) is None]
        how = f'; pip install "{DISTRIBUTION}[{extra}]"' if missing else ""
        section.add(f"extra '{extra}'", (", ".join(missing) + " not installed" if missing else "installed") + how)
    return section


def decoder_section() -> Section:
    """The DICOM pixel decoders, what each one reads here, and how to get those that are missing."""
    section = Section("decoders")
    for package, found in sorted(available_decoders().items()):
        count = len(found["transfer_syntaxes"])
        if found["version"] is None:
            brings = " ".join(["pip install", package, *filter(None, [_ALSO_NEEDED.get(package)])])
            section.add(package, f"missing; {brings}")
            section.advise(f"{package} is missing; it decodes {_DECODES.get(package, 'pixel data')}: {brings}")
        else:
            also = _ALSO_NEEDED.get(package)
            if also and _version(also) is None:
                section.advise(f"{package} does nothing without {also}: pip install {also}")
            section.add(package, f"{found['version']}, {count} transfer syntax{'es' * (count != 1)}")
    return section


def _installed(requirement: Requirement, section: Section) -> str:
    version = _version(requirement.name)
    if version is None:
        section.advise(f'{requirement.name} is missing: pip install "{requirement.name}{requirement.specifier}"')
        return f"{requirement.name} missing"
    if not requirement.specifier.contains(version, prereleases=True):
        wanted = f"{requirement.name}{requirement.specifier}"
        section.advise(
            f'{requirement.name} {version} is installed, this package is tested with another: pip install "{wanted}"'
        )
    return f"{requirement.name} {version}"


def _required(distribution: str, extras: Iterable[str]) -> list[Requirement]:
    """Requirements of a package: its own (the extra ``""``), or those of extras alone."""
    try:
        requirements = [Requirement(text) for text in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        return []
    found = []
    for extra in sorted(extras):
        for one in requirements:
            plain = one.marker is None or one.marker.evaluate({"extra": ""})
            if plain == (extra == "") and (plain or one.marker.evaluate({"extra": extra})):
                found.append(one)
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
