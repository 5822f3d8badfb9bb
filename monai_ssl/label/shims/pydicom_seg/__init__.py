# SPDX-License-Identifier: Apache-2.0
"""Stands in for pydicom-seg, which MONAI Label imports at its start and which breaks with pydicom 3.

It is put on the path by the launcher only where the real one is missing. Only the conversion to DICOM SEG, which the
local datastore never asks for, would need more than the name.
"""
