"""Stored pixel values of one film, whatever its transfer syntax. Does not know what the values mean.

A decoder may return fewer pixels than were stored without saying so: streams that lack their end marker, or whose own
dimensions are not those of the header, are refused before a decoder sees them.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import get_frame

from cohort_scorer.imaging import header, pictures
from cohort_scorer.imaging.refusal import Refused

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Row = Mapping[str, Any]

MAXIMUM_PIXELS: Final = 100_000_000

_END_OF_IMAGE = b"\xff\xd9"
_TRAILING_BYTES = 64
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"  # SOC, SIZ: ISO/IEC 15444-1 A.4.1, A.5.1
_HIGH_THROUGHPUT = 0x4000  # Rsiz bit 14: extended capabilities, ISO/IEC 15444-15; its decoders hang on broken streams
# Start of frame, ISO/IEC 10918-1 table B.1 (0xC4, 0xC8 and 0xCC are none) and ISO/IEC 14495-1 (0xF7).
_STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def _decode_jpeg_2000(stream: bytes) -> NDArray[Any]:
    return np.asarray(imagecodecs.jpeg2k_decode(stream, numthreads=1))


def _jpeg_size(stream: bytes) -> tuple[int, int]:
    """Return (rows, columns) of the first frame header of a JPEG or JPEG-LS stream."""
    position = 2
    while position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker in _STARTS_OF_FRAME:
            rows, columns = struct.unpack_from(">HH", stream, position + 5)
            return rows, columns
        if marker == 0xFF:  # fill byte
            position += 1
        else:
            position += 2 + struct.unpack_from(">H", stream, position + 2)[0]
    raise Refused("decode_failed", "no frame header in the JPEG stream")


def _jpeg_2000_size(stream: bytes) -> tuple[int, int]:
    """Return (rows, columns) of a JPEG 2000 codestream, bare or in JP2 boxes."""
    start = stream.find(_START_OF_CODESTREAM)
    if start < 0 or len(stream) < start + 24:
        raise Refused("decode_failed", "no JPEG 2000 codestream")
    capabilities, right, bottom, left, top = struct.unpack_from(">H4I", stream, start + 6)
    if capabilities & _HIGH_THROUGHPUT:
        raise Refused("decode_failed", "a high-throughput stream under a JPEG 2000 syntax")
    return bottom - top, right - left


# Transfer syntax -> (decoder, size of the stream): PS3.5 A.4 and PS3.6 annex A.
_CODECS: Mapping[str, tuple[Callable[[bytes], NDArray[Any]], Callable[[bytes], tuple[int, int]]]] = {
    "1.2.840.10008.1.2.4.50": (imagecodecs.jpeg8_decode, _jpeg_size),
    "1.2.840.10008.1.2.4.51": (imagecodecs.jpeg8_decode, _jpeg_size),
    "1.2.840.10008.1.2.4.57": (imagecodecs.jpeg8_decode, _jpeg_size),
    "1.2.840.10008.1.2.4.70": (imagecodecs.jpeg8_decode, _jpeg_size),
    "1.2.840.10008.1.2.4.80": (imagecodecs.jpegls_decode, _jpeg_size),
    "1.2.840.10008.1.2.4.81": (imagecodecs.jpegls_decode, _jpeg_size),
    "1.2.840.10008.1.2.4.90": (_decode_jpeg_2000, _jpeg_2000_size),
    "1.2.840.10008.1.2.4.91": (_decode_jpeg_2000, _jpeg_2000_size),
}
_RLE: Final = "1.2.840.10008.1.2.5"
ENCAPSULATED: Final = frozenset(_CODECS) | {_RLE}
ISOLATED: Final[frozenset[str]] = frozenset()
SUPPORTED: Final = ENCAPSULATED | header.NATIVE


def read_value(row: Row, path: Path) -> NDArray[np.uint8]:
    """Read what a film's pixels are decoded from, in one positioned read where it is not deflated.

    Args:
        row: An eligible row of the index.
        path: The film's file.

    Returns:
        uint8, writable: the value of the pixel data element, of native pixels no more than Rows x Columns of them; the
        whole file of a PNG or JPEG.

    Raises:
        Refused: missing_file, unreadable_file, changed_file, truncated or header_too_large.
    """
    if row["file_format"] == "dicom" and row["transfer_syntax"] in header.NATIVE:
        return _value(row, path, row["rows"] * row["columns"] * bytes_per_pixel(row))
    return _value(row, path, row["pixel_data_length"])


def decode(row: Row, value: NDArray[np.uint8]) -> Pixels:
    """Decode what `read_value` read to the stored values.

    Args:
        row: The row it was read for.
        value: uint8; native pixels are returned as a view of it.

    Returns:
        uint8 or uint16 of shape (rows, columns): stored words, with whatever bits lie above bits_stored, two's
        complement where pixel_representation is 1. Coloured pictures are reduced to luminance (ITU-R 601), and turned
        as their EXIF orientation says.

    Raises:
        Refused: truncated, decode_failed or shape_mismatch.
    """
    expected = (row["rows"], row["columns"])
    if row["file_format"] != "dicom":
        pixels, allowed = pictures.pixels(value), [expected, expected[::-1]]
    elif row["transfer_syntax"] in header.NATIVE:
        pixels, allowed = _native(row, value), [expected]
    else:
        pixels, allowed = _encapsulated(row, value), [expected]
    if pixels.shape not in allowed:
        raise Refused("shape_mismatch", f"decoded {_shape(pixels.shape)}, header says {_shape(expected)}")
    return pixels


def value_sha256(row: Row, path: Path) -> str:
    """Return the SHA-256 (hex) of the pixel data element's value as it is stored, of nothing where there is none.

    Raises:
        Refused: missing_file, unreadable_file, changed_file, truncated or header_too_large.
    """
    offset, length = row["pixel_data_offset"], row["pixel_data_length"]
    if offset is None:
        return hashlib.sha256().hexdigest()
    return hashlib.sha256(_value(row, path, length).data).hexdigest()


def bytes_per_pixel(row: Row) -> int:
    """Return the bytes that one native pixel takes: 1 or 2."""
    return int(row["bits_allocated"]) // 8


def _native(row: Row, value: NDArray[np.uint8]) -> Pixels:
    width = bytes_per_pixel(row)
    if row["transfer_syntax"] == header.EXPLICIT_BIG and (width == 2 or row["pixel_data_vr"] == "OW"):
        value = value[: value.size // 2 * 2].view(">u2").astype("<u2").view(np.uint8)  # PS3.5 annex D
    return value.view("<u2" if width == 2 else np.uint8).reshape(row["rows"], row["columns"])


def _encapsulated(row: Row, value: NDArray[np.uint8]) -> Pixels:
    try:
        frame = get_frame(value.tobytes(), 0, number_of_frames=1)
        if row["transfer_syntax"] == _RLE:
            words = imagecodecs.dicomrle_decode(frame, "<u2" if bytes_per_pixel(row) == 2 else "u1")
            return np.frombuffer(words, "<u2" if bytes_per_pixel(row) == 2 else np.uint8).reshape(
                row["rows"], row["columns"]
            )
        decode, size = _CODECS[row["transfer_syntax"]]
        declared, expected = size(frame), (row["rows"], row["columns"])
        if declared != expected:
            raise Refused("shape_mismatch", f"stream says {_shape(declared)}, header says {_shape(expected)}")
        if _END_OF_IMAGE not in frame[-_TRAILING_BYTES:]:
            raise Refused("truncated", "the stream has no end marker")
        return _as_unsigned(decode(frame))
    except Refused:
        raise
    except Exception as error:
        # The stream is untrusted, and each third-party decoder has its own exceptions for what it trips over.
        raise Refused("decode_failed", f"decoder raised {type(error).__name__}") from error


def _as_unsigned(pixels: NDArray[Any]) -> Pixels:
    if pixels.dtype.kind not in "ui" or pixels.dtype.itemsize > 2:
        raise Refused("decode_failed", f"decoded to {pixels.dtype}")
    return pixels.view(np.uint8) if pixels.dtype.itemsize == 1 else pixels.view(np.uint16)


def _value(row: Row, path: Path, length: int) -> NDArray[np.uint8]:
    """Read `length` bytes of the pixel data value, writable, in one positioned read."""
    offset = row["pixel_data_offset"]
    if row["transfer_syntax"] == header.DEFLATED:
        content = header.inflated(path)[offset : offset + length]
        value, count = np.frombuffer(bytearray(content), np.uint8), len(content)
    else:
        value = np.empty(length, np.uint8)
        count = _read_at(row, path, offset, value)
    if count < length:
        raise Refused("truncated", f"{length - count} of {length} bytes of pixel data are missing")
    return value


def _read_at(row: Row, path: Path, offset: int, into: NDArray[np.uint8]) -> int:
    try:
        with path.open("rb", buffering=0) as file:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) != (row["file_size"], row["file_mtime_ns"]):
                raise Refused("changed_file", "size or time differ from the index")
            file.seek(offset)
            view, count = into.data, 0
            while count < len(view) and (read := file.readinto(view[count:])):
                count += read
            return count
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused("missing_file", "no such file") from error
    except OSError as error:
        raise Refused("unreadable_file", type(error).__name__) from error


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
