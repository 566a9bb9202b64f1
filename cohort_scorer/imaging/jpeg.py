"""JPEG and JPEG-LS streams: what their markers say, their pixels, and whether nothing is missing.

libjpeg fills what a cut stream lacks with its last value, and says so only in a warning that does not reach Python. An
end marker is no proof of anything: somebody may have appended it.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cohort_scorer.imaging.encapsulated import Stream, ignores_filler
from cohort_scorer.imaging.refusal import Refused

# ISO/IEC 10918-1 table B.1 (0xC4, 0xC8 and 0xCC start no frame) and ISO/IEC 14495-1 (0xF7).
_START_OF_IMAGE = b"\xff\xd8"
_STUFFING, _END_OF_IMAGE = 0x00, 0xD9
_LOSSLESS, _HUFFMAN_TABLES, _START_OF_SCAN, _RESTART_INTERVAL = 0xC3, 0xC4, 0xDA, 0xDD
_STARTS_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}

_PREDICTOR_LEFT = 1  # ISO/IEC 10918-1 table H.1
_NO_CODE = 255  # bits: more than any difference takes
# Small enough that what is made of them stays in the processor's cache.
_ROWS_AT_ONCE = 64
_BYTES_AT_ONCE = 2**18


def decode(frame: bytearray, must_fit: Callable[[Stream], None]) -> tuple[Stream, NDArray[Any]]:
    """Decode a JPEG stream: baseline, extended or lossless.

    Args:
        frame: The joined fragments; what is not stream is cut off.
        must_fit: Raises where a stream is not what the header says; called before anything is decoded.

    Returns:
        The stream, and uint8 or uint16 of shape (rows, columns).

    Raises:
        Refused: truncated, decode_failed, shape_mismatch, or what `must_fit` raises.
    """
    stream, segments, codes = _walked(frame, signed=None)
    must_fit(stream)
    pixels = _decode(stream.content)
    if not _is_whole(stream, segments, codes, pixels):
        raise Refused("truncated", "the stream ends before its last pixel")
    return stream, pixels


def decode_ls(frame: bytearray, must_fit: Callable[[Stream], None]) -> tuple[Stream, NDArray[Any]]:
    """Decode a JPEG-LS stream, as `decode` does JPEG.

    CharLS itself reports data that end early, but where one byte is missing before the end marker: the pixels of that
    byte, the film's last, are then decoded from zeros.
    """
    stream, *_ = _walked(frame, signed=False)
    must_fit(stream)
    return stream, np.asarray(imagecodecs.jpegls_decode(stream.content))


def _decode(content: bytearray) -> NDArray[Any]:
    return np.asarray(imagecodecs.jpeg8_decode(content))


@dataclass(frozen=True)
class _Segment:
    marker: int
    content: bytes
    stop: int  # in the frame


def _segments(frame: bytearray) -> Iterator[_Segment]:
    """Yield the marker segments up to the first scan's header."""
    position, marker = 2, 0
    while marker != _START_OF_SCAN and position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        start, position = position + 4, position + 2 + struct.unpack_from(">H", frame, position + 2)[0]
        yield _Segment(marker, bytes(frame[start:position]), position)


def _walked(frame: bytearray, signed: bool | None) -> tuple[Stream, list[_Segment], NDArray[np.uint8]]:
    """Return the stream, its segments up to the first scan, and what follows each 0xFF from there to the end marker."""
    if frame[:2] != _START_OF_IMAGE:
        raise Refused("decode_failed", "the stream does not begin as JPEG does")
    segments = list(_segments(frame))
    header = next((segment.content for segment in segments if segment.marker in _STARTS_OF_FRAME), b"")
    if len(header) < 6 or segments[-1].marker != _START_OF_SCAN:
        raise Refused("decode_failed", "no frame header or no scan in the stream")
    bits, rows, columns, n_components = struct.unpack_from(">BHHB", header)
    if n_components != 1:
        raise Refused("shape_mismatch", f"the stream has {n_components} components")
    escapes, codes = _escapes(frame, segments[-1].stop)
    ends = np.flatnonzero(codes == _END_OF_IMAGE)
    if not ends.size:
        raise Refused("truncated", "the stream has no end marker")
    del frame[int(escapes[ends[0]]) + 2 :]
    return Stream(frame, rows, columns, bits, signed), segments, codes[: ends[0]]


def _is_whole(stream: Stream, segments: list[_Segment], codes: NDArray[np.uint8], pixels: NDArray[Any]) -> bool:
    """Tell whether all pixels came from bits of the stream.

    The usual lossless stream is not decoded twice: how many bits its pixels took follows from the pixels.
    """
    bits_of = _bits_by_difference(segments)
    if bits_of is None or np.any(codes != _STUFFING):  # other markers in the scan
        return ignores_filler(_decode, stream.content, pixels)
    n_bytes = len(stream.content) - 2 - segments[-1].stop - codes.size
    return _bits_taken(pixels, stream.bits, bits_of) <= 8 * n_bytes


def _escapes(frame: bytearray, start: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return where 0xFF stands from `start` on, and what follows it there: zero in data, else a marker's code."""
    data = np.frombuffer(frame, np.uint8)[start:]
    blocks = [data[:-1][block : block + _BYTES_AT_ONCE] for block in range(0, data.size - 1, _BYTES_AT_ONCE)]
    found = [np.flatnonzero(block == 0xFF) + number * _BYTES_AT_ONCE for number, block in enumerate(blocks)]
    escapes = np.concatenate(found) if found else np.empty(0, np.int64)
    return escapes + start, data[escapes + 1]


def _bits_by_difference(segments: list[_Segment]) -> NDArray[np.uint8] | None:
    """Return the bits that each difference modulo 2^16 takes (ISO/IEC 10918-1 H.1.2.2), shape (65536,).

    None but for lossless streams of one scan that predict from the left neighbour, without restarts or point transform.
    """
    scan = segments[-1].content
    plain = (
        any(segment.marker == _LOSSLESS for segment in segments)
        and not any(segment.marker == _RESTART_INTERVAL for segment in segments)
        and len(scan) == 6
        and (scan[0], scan[3], scan[5]) == (1, _PREDICTOR_LEFT, 0)
    )
    if not plain:
        return None
    lengths = np.full(17, _NO_CODE, np.uint8)
    for segment in segments:
        if segment.marker == _HUFFMAN_TABLES:
            for category, length in _code_lengths(segment.content, scan[2] >> 4):
                lengths[category] = length
    magnitudes = np.abs(np.arange(2**16).astype(np.uint16).view(np.int16).astype(np.int32))
    categories = np.searchsorted(2 ** np.arange(17), magnitudes, side="right")
    extra = np.where(categories == 16, 0, categories)
    return np.where(lengths[categories] == _NO_CODE, _NO_CODE, lengths[categories] + extra).astype(np.uint8)


def _code_lengths(content: bytes, destination: int) -> Iterator[tuple[int, int]]:
    """Yield (category, bits of its code) of the Huffman table for a destination (ISO/IEC 10918-1 B.2.4.2)."""
    position = 0
    while position + 17 <= len(content):
        counts = content[position + 1 : position + 17]
        values = content[position + 17 : position + 17 + sum(counts)]
        if content[position] == destination:
            lengths = np.repeat(np.arange(1, 17), list(counts)).tolist()
            yield from ((value, length) for value, length in zip(values, lengths, strict=False) if value <= 16)
        position += 17 + sum(counts)


def _bits_taken(pixels: NDArray[Any], bits: int, bits_of: NDArray[np.uint8]) -> int:
    """Return how many bits lossless pixels take that are predicted from the left; in the first column from above."""
    above, total = 1 << (bits - 1), 0
    for start in range(0, pixels.shape[0], _ROWS_AT_ONCE):
        rows = np.asarray(pixels[start : start + _ROWS_AT_ONCE], np.uint16)
        differences = np.empty_like(rows)
        np.subtract(rows[:, 1:], rows[:, :-1], out=differences[:, 1:])
        np.subtract(rows[1:, 0], rows[:-1, 0], out=differences[1:, 0])
        differences[0, 0] = (int(rows[0, 0]) - above) % 2**16
        above = int(rows[-1, 0])
        total += int(cv2.sumElems(cv2.LUT(differences, bits_of))[0])
    return total
