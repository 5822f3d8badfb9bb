# SPDX-License-Identifier: Apache-2.0
"""Size of a compressed frame as its own code stream states it, read without decoding."""

from __future__ import annotations

import struct


def codestream_size(stream: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 code stream; None if it is none of these or has no size.

    JPEG: ISO/IEC 10918-1 section B.2.2 (frame header), JPEG-LS the same with marker SOF55. JPEG 2000: ISO/IEC 15444-1
    section A.5.1 (marker SIZ).
    """
    if stream[:4] == b"\xff\x4f\xff\x51" and len(stream) >= 24:
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left
    if stream[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(stream):
        if stream[position] != 0xFF:
            return None
        marker = stream[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # fill byte, or a marker without a segment
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">2H", stream[position + 5 : position + 9])
            return (rows, columns) if rows and columns else None
        position += 2 + struct.unpack(">H", stream[position + 2 : position + 4])[0]
    return None
