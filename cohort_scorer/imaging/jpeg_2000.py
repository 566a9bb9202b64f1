"""JPEG 2000 and high-throughput streams: what their markers say, their pixels, and whether nothing is missing.

OpenJPH hangs or dies on broken streams, and its errors do not always become exceptions. OpenJPEG reads both kinds, as
the coding style asks: that is looked at before it decodes.
"""

import struct
import sys
import threading
from collections.abc import Callable
from math import ceil
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cohort_scorer.imaging.encapsulated import Stream, ignores_filler
from cohort_scorer.imaging.refusal import Refused

# ISO/IEC 15444-1 table A.2
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"  # and SIZ, which follows it
_TILE_PART, _START_OF_DATA = 0xFF90, 0xFF93
_END_OF_CODESTREAM = b"\xff\xd9"
_CODING_STYLES = {0xFF52: 12, 0xFF53: 9}  # COD, COC -> where from its marker the style of code-blocks stands
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # ISO/IEC 15444-1 I.5.1

_HIGH_THROUGHPUT = 0x4000  # Rsiz bit 14: extended capabilities, ISO/IEC 15444-15 A.2
_STYLES_OF_PART_15 = 0xC0  # of code-blocks: bit 6 high throughput, bit 7 a mixture, ISO/IEC 15444-15 A.4
_WRONG_KIND = (
    "a high-throughput stream under a JPEG 2000 syntax",
    "an ordinary JPEG 2000 stream under a high-throughput syntax",
)

_one_at_a_time: Final = threading.Lock()


def decode(frame: bytearray, must_fit: Callable[[Stream], None]) -> tuple[Stream, NDArray[Any]]:
    """Decode an ordinary JPEG 2000 stream, bare or in JP2 boxes, which are not looked at.

    Args:
        frame: The joined fragments; what is not codestream is cut off.
        must_fit: Raises where a stream is not what the header says; called before anything is decoded.

    Returns:
        The stream, and 8 or 16 bit integers of shape (rows, columns), signed as the stream says.

    Raises:
        Refused: truncated, decode_failed, shape_mismatch, or what `must_fit` raises.
    """
    stream, is_open_ended = _walked(frame, high_throughput=False)
    must_fit(stream)
    pixels = _ordinary(stream.content)
    if is_open_ended and not ignores_filler(_ordinary, stream.content, pixels):
        raise Refused("truncated", "the stream ends before its last packet")
    return stream, pixels


def decode_high_throughput(frame: bytearray, must_fit: Callable[[Stream], None]) -> tuple[Stream, NDArray[Any]]:
    """Decode a high-throughput stream, as `decode` does ordinary ones. It may never return, or end the process.

    OpenJPH makes an image of any cut stream whose last tile-part does not tell its length: these are not decoded.
    """
    stream, is_open_ended = _walked(frame, high_throughput=True)
    must_fit(stream)
    if is_open_ended:
        raise Refused("truncated", "nothing tells where the last tile-part ends")
    return stream, _high_throughput(stream.content)


def _ordinary(content: bytearray) -> NDArray[Any]:
    return np.asarray(imagecodecs.jpeg2k_decode(content, numthreads=1))


def _high_throughput(content: bytearray) -> NDArray[Any]:
    """Decode with OpenJPH, whose errors imagecodecs drops while it copies lines, leaving zeros: the hook sees them."""
    dropped: list[str] = []
    thread = threading.get_ident()
    with _one_at_a_time:
        others = sys.unraisablehook

        def note(unraisable: "sys.UnraisableHookArgs") -> None:
            if threading.get_ident() == thread:
                dropped.append(unraisable.exc_type.__name__)
            else:
                others(unraisable)

        sys.unraisablehook = note
        try:
            pixels = np.asarray(imagecodecs.htj2k_decode(content))
        finally:
            sys.unraisablehook = others
    if dropped:
        raise Refused("decode_failed", f"decoder dropped {dropped[0]}")
    return pixels


def _walked(frame: bytearray, high_throughput: bool) -> tuple[Stream, bool]:
    """Walk the markers from the start of the codestream to its end.

    Returns:
        The stream, and whether its last tile-part does not tell its length, so that markers cannot prove it whole.
    """
    start = _start(frame)
    stream, n_tiles = _size(frame, start, high_throughput)
    position = _end_of_header(frame, start + 2, _TILE_PART, high_throughput)
    n_parts: dict[int, int] = {}
    n_declared: dict[int, int] = {}
    length = 1
    while length and struct.unpack_from(">H", frame, position)[0] == _TILE_PART:
        tile, length, _, declared = struct.unpack_from(">HIBB", frame, position + 4)  # ISO/IEC 15444-1 A.4.2
        data = _end_of_header(frame, position, _START_OF_DATA, high_throughput) + 2
        n_parts[tile] = n_parts.get(tile, 0) + 1
        n_declared[tile] = declared or n_declared.get(tile, 0)
        position = position + length if length else frame.find(_END_OF_CODESTREAM, data)
        if not data <= position <= len(frame) - 2:
            raise Refused("truncated", "a tile-part without its end")
    if frame[position : position + 2] != _END_OF_CODESTREAM:
        raise Refused("truncated", "the tile-parts do not reach to an end marker")
    if len(n_parts) != n_tiles or any(n_declared[tile] not in (0, found) for tile, found in n_parts.items()):
        raise Refused("truncated", f"tile-parts of {len(n_parts)} of {n_tiles} tiles, or not all of a tile")
    del frame[position + 2 :], frame[:start]
    return stream, length == 0


def _start(frame: bytearray) -> int:
    """Return where the codestream begins: at once, or in the JP2 box that holds it (ISO/IEC 15444-1 I.4)."""
    position = 0
    if frame.startswith(_JP2_SIGNATURE):
        while frame[position + 4 : position + 8] != b"jp2c":
            length = struct.unpack_from(">I", frame, position)[0]
            if length == 1:
                length = struct.unpack_from(">Q", frame, position + 8)[0]
            if length < 8:
                raise Refused("decode_failed", "no codestream in the JP2 boxes")
            position += length
        position += 16 if frame[position : position + 4] == b"\0\0\0\1" else 8
    if frame[position : position + 4] != _START_OF_CODESTREAM:
        raise Refused("decode_failed", "no JPEG 2000 codestream")
    return position


def _size(frame: bytearray, start: int, high_throughput: bool) -> tuple[Stream, int]:
    """Read the segment SIZ (ISO/IEC 15444-1 A.5.1): the stream and its number of tiles."""
    capabilities, right, bottom, left, top, *tile = struct.unpack_from(">H8I", frame, start + 6)
    n_components, sample, column_step, row_step = struct.unpack_from(">H3B", frame, start + 40)
    if bool(capabilities & _HIGH_THROUGHPUT) != high_throughput:
        raise Refused("decode_failed", _WRONG_KIND[high_throughput])
    if (n_components, column_step, row_step) != (1, 1, 1):
        raise Refused("shape_mismatch", f"{n_components} components, one sample per {row_step} x {column_step} pixels")
    columns, rows, tile_left, tile_top = tile
    if not (columns and rows and tile_left <= left < right and tile_top <= top < bottom):
        raise Refused("decode_failed", "tiles that do not cover the image")
    n_tiles = ceil((right - tile_left) / columns) * ceil((bottom - tile_top) / rows)
    stream = Stream(frame, bottom - top, right - left, (sample & 0x7F) + 1, sample > 0x7F)
    return stream, n_tiles


def _end_of_header(frame: bytearray, position: int, until: int, high_throughput: bool) -> int:
    """Return where the marker `until` stands, the headers before it asking for the one kind of code-blocks."""
    while (marker := struct.unpack_from(">H", frame, position)[0]) != until:
        if marker in _CODING_STYLES:
            style = frame[position + _CODING_STYLES[marker]]
            if bool(style & _STYLES_OF_PART_15) != high_throughput:
                raise Refused("decode_failed", _WRONG_KIND[high_throughput])
        position += 2 + struct.unpack_from(">H", frame, position + 2)[0]
    return position
