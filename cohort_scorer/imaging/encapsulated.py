"""Encapsulated pixel data -> one compressed frame, and what must hold of it. Knows no syntax and no decoder."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cohort_scorer.imaging.refusal import Refused

Decoder = Callable[[bytearray], NDArray[Any]]

_ITEM = b"\xfe\xff\x00\xe0"  # PS3.5 7.5: tags of an item and of the end of a sequence, little endian
_END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0"
_NOISE = np.random.default_rng(1).integers(0x80, 0xFF, 64, dtype=np.uint8).tobytes()
# JPEG decoders that miss an interval look for its restart marker before they go on.
_FILLER: Final = _NOISE + b"".join(bytes((0xFF, 0xD0 + number)) + _NOISE for number in range(8))


@dataclass(frozen=True)
class Stream:
    """A compressed frame whose markers were walked.

    Attributes:
        content: From the start marker to the end marker, both included.
        rows: As the stream says.
        columns: As the stream says.
        bits: Bits per sample.
        signed: Whether the decoder takes samples for signed; None where that is left to the header.
    """

    content: bytearray
    rows: int
    columns: int
    bits: int
    signed: bool | None

    def must_fit(self, rows: int, columns: int, bits_allocated: int) -> None:
        """Compare the stream with the header.

        Raises:
            Refused: shape_mismatch, or decode_failed for samples of more bits than are allocated.
        """
        if (self.rows, self.columns) != (rows, columns):
            raise Refused("shape_mismatch", f"stream says {self.rows} x {self.columns}, header says {rows} x {columns}")
        if not 1 <= self.bits <= bits_allocated:
            raise Refused("decode_failed", f"{self.bits} bits per sample, {bits_allocated} are allocated")


def joined_fragments(value: NDArray[np.uint8]) -> bytearray:
    """Join the fragments of a single frame (PS3.5 A.4).

    Offset tables tell frames apart, and one frame needs none. The sequence delimiter must be there, as pydicom
    requires; its length field need not.

    Args:
        value: uint8, the value of the pixel data element, and whatever follows it.

    Raises:
        Refused: truncated, or decode_failed where there are no fragments.
    """
    view = value.data
    frame = bytearray()
    position, n_items = 0, 0
    while (tag := bytes(view[position : position + 4])) != _END_OF_SEQUENCE:
        if position + 8 > len(view):
            raise Refused("truncated", "the pixel data have no end")
        if tag != _ITEM:
            raise Refused("decode_failed", "no item where a fragment must begin")
        start = position + 8
        position = start + struct.unpack_from("<I", view, position + 4)[0]
        if position > len(view):
            raise Refused("truncated", f"{position - len(view)} bytes of a fragment are missing")
        if n_items:  # the first is the basic offset table
            frame += view[start:position]
        n_items += 1
    if not frame:
        raise Refused("decode_failed", "no fragment in the pixel data")
    return frame


def ignores_filler(decode: Decoder, content: bytearray, pixels: NDArray[Any]) -> bool:
    """Tell whether a stream is whole: a decoder that has had all it needs does not look at what stands behind.

    Args:
        decode: The decoder.
        content: The stream, with its end marker of two bytes.
        pixels: What `decode` made of it.
    """
    return np.array_equal(decode(with_filler(content)), pixels)


def with_filler(content: bytearray) -> bytearray:
    """Return a stream with bytes before its end marker that no whole stream of JPEG or JPEG 2000 needs."""
    return content[:-2].rstrip(b"\xff") + _FILLER + content[-2:]
