"""Stored pixel values of one film, whatever its transfer syntax. Does not know what the values mean.

A decoder may return fewer pixels than were stored without saying so: `jpeg` and `jpeg_2000` walk the markers of a
stream, compare them with the header, and prove that nothing is missing.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cohort_scorer.imaging import data_set, jpeg, jpeg_2000, pictures
from cohort_scorer.imaging.encapsulated import Stream, joined_fragments
from cohort_scorer.imaging.refusal import Refused

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Row = Mapping[str, Any]

MAXIMUM_PIXELS: Final = 100_000_000

_RLE = "1.2.840.10008.1.2.5"
_DecodeStream = Callable[[bytearray, Callable[[Stream], None]], tuple[Stream, NDArray[Any]]]
# By transfer syntax: PS3.5 A.4 and PS3.6 annex A.
_DECODERS: Mapping[str, _DecodeStream] = {
    "1.2.840.10008.1.2.4.50": jpeg.decode,
    "1.2.840.10008.1.2.4.51": jpeg.decode,
    "1.2.840.10008.1.2.4.57": jpeg.decode,
    "1.2.840.10008.1.2.4.70": jpeg.decode,
    "1.2.840.10008.1.2.4.80": jpeg.decode_ls,
    "1.2.840.10008.1.2.4.81": jpeg.decode_ls,
    "1.2.840.10008.1.2.4.90": jpeg_2000.decode,
    "1.2.840.10008.1.2.4.91": jpeg_2000.decode,
    "1.2.840.10008.1.2.4.201": jpeg_2000.decode_high_throughput,
    "1.2.840.10008.1.2.4.202": jpeg_2000.decode_high_throughput,
    "1.2.840.10008.1.2.4.203": jpeg_2000.decode_high_throughput,
}
ENCAPSULATED: Final = frozenset(_DECODERS) | {_RLE}
SUPPORTED: Final = ENCAPSULATED | data_set.NATIVE
ISOLATED: Final = frozenset(
    syntax for syntax, decoder in _DECODERS.items() if decoder is jpeg_2000.decode_high_throughput
)
"""Syntaxes whose decoder hangs or dies on some broken streams: decode them in a process that may be lost."""

# What these decode to may overshoot bits_stored where their samples have more bits.
_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203))
_FILMS_PER_STREAM = 4  # a stream of so many times its pixels' bytes is no compression
_LEAST_BYTES_READ = 2**24
_BLOCK = 2**20


def read_value(row: Row, path: Path) -> NDArray[np.uint8]:
    """Read what a film's pixels are decoded from, in one positioned read where it is not deflated.

    Args:
        row: An eligible row of the index.
        path: The film's file.

    Returns:
        uint8, writable: the value of the pixel data element, of native pixels no more than Rows x Columns of them, of
        a stream no more than four times as much (or 16 MiB); the whole file of a PNG or JPEG.

    Raises:
        Refused: missing_file, unreadable_file, changed_file, truncated, header_too_large, decode_failed, not_dicom or
            header_unreadable; the last four of deflated films alone.
    """
    length = row["pixel_data_length"]
    if row["file_format"] == "dicom":
        film = row["rows"] * row["columns"] * bytes_per_pixel(row)
        is_native = row["transfer_syntax"] in data_set.NATIVE
        length = film if is_native else min(length, max(_FILMS_PER_STREAM * film, _LEAST_BYTES_READ))
    value = np.empty(length, np.uint8)
    with _opened_value(row, path) as file:
        _fill(file, value)
    return value


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
        pixels, allowed = pictures.pixels(value, *expected), [expected, expected[::-1]]
    elif row["transfer_syntax"] in data_set.NATIVE:
        pixels, allowed = _native(row, value), [expected]
    else:
        pixels, allowed = _encapsulated(row, value), [expected]
    if pixels.shape not in allowed:
        raise Refused("shape_mismatch", f"decoded {_shape(pixels.shape)}, header says {_shape(expected)}")
    return pixels


def value_sha256(row: Row, path: Path) -> str:
    """Return the SHA-256 (hex) of the pixel data element's value as it is stored, of nothing where there is none.

    Raises:
        Refused: as `read_value`.
    """
    digest = hashlib.sha256()
    if row["pixel_data_offset"] is not None:
        block, left = np.empty(_BLOCK, np.uint8), row["pixel_data_length"]
        with _opened_value(row, path) as file:
            while left:
                part = block[: min(left, _BLOCK)]
                _fill(file, part)
                digest.update(part.data)
                left -= part.size
    return digest.hexdigest()


def bytes_per_pixel(row: Row) -> int:
    """Return the bytes that one native pixel takes: 1 or 2."""
    return int(row["bits_allocated"]) // 8


def _native(row: Row, value: NDArray[np.uint8]) -> Pixels:
    width = bytes_per_pixel(row)
    if row["transfer_syntax"] == data_set.EXPLICIT_BIG and (width == 2 or row["pixel_data_vr"] == "OW"):
        value = value[: value.size // 2 * 2].view(">u2").astype("<u2").view(np.uint8)  # PS3.5 annex D
    return value.view("<u2" if width == 2 else np.uint8).reshape(row["rows"], row["columns"])


def _encapsulated(row: Row, value: NDArray[np.uint8]) -> Pixels:
    try:
        frame = joined_fragments(value)
        if row["transfer_syntax"] == _RLE:
            return _run_lengths(row, frame)
        must_fit = partial(
            Stream.must_fit, rows=row["rows"], columns=row["columns"], bits_allocated=row["bits_allocated"]
        )
        return _words(row, *_DECODERS[row["transfer_syntax"]](frame, must_fit))
    except (Refused, MemoryError):
        raise
    except Exception as error:
        # The stream is untrusted, and each third-party decoder has its own exceptions for what it trips over.
        raise Refused("decode_failed", f"decoder raised {type(error).__name__}") from error


def _run_lengths(row: Row, frame: bytearray) -> Pixels:
    """Decode RLE (PS3.5 annex G); the decoder compares segments with bytes per pixel, and offsets with the frame."""
    width = bytes_per_pixel(row)
    pixels = np.empty(row["rows"] * row["columns"] * width, np.uint8)
    found = imagecodecs.dicomrle_decode(frame, "<u2" if width == 2 else "u1", out=pixels.data)
    if len(found) != pixels.size:
        raise Refused("truncated", f"segments of {len(found)} bytes, of {pixels.size}")
    return pixels.view("<u2" if width == 2 else np.uint8).reshape(row["rows"], row["columns"])


def _words(row: Row, stream: Stream, pixels: NDArray[Any]) -> Pixels:
    """Make stored words of decoded samples: as wide as allocated, two's complement where the header says signed."""
    if pixels.dtype.kind not in "ui" or pixels.dtype.itemsize > 2:
        raise Refused("decode_failed", f"decoded to {pixels.dtype}")
    width = bytes_per_pixel(row)
    words = pixels.astype(f"{pixels.dtype.kind}{width}", copy=False)
    is_signed = row["pixel_representation"] == 1
    if stream.signed not in (None, is_signed):
        words = words.view(f"{'i' if is_signed else 'u'}{width}")
        if stream.bits < row["bits_stored"]:  # as in pydicom, the sign is the highest bit that the stream has
            words <<= 8 * width - stream.bits
            words >>= 8 * width - stream.bits
    if row["transfer_syntax"] in _LOSSY and stream.bits > row["bits_stored"] and bool(stream.signed) == is_signed:
        white = (1 << (row["bits_stored"] - is_signed)) - 1  # beyond it lies more white, not black
        np.clip(words, -white - 1 if is_signed else 0, white, out=words)
    return words.view(f"u{width}")


@contextmanager
def _opened_value(row: Row, path: Path) -> Iterator[FileIO | BufferedReader]:
    """Open a film's file where its pixel data begin; what reading raises becomes a refusal."""
    try:
        with path.open("rb", buffering=0) as file:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) != (row["file_size"], row["file_mtime_ns"]):
                raise Refused("changed_file", "size or time differ from the index")
            value = data_set.inflated(file) if row["transfer_syntax"] == data_set.DEFLATED else file
            value.seek(row["pixel_data_offset"])
            yield value
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused("missing_file", "no such file") from error
    except OSError as error:
        raise Refused("unreadable_file", type(error).__name__) from error
    except zlib.error as error:
        raise Refused("decode_failed", "the deflated data set is broken") from error


def _fill(file: FileIO | BufferedReader, value: NDArray[np.uint8]) -> None:
    view, count = value.data, 0
    while count < len(view) and (read := file.readinto(view[count:])):
        count += read
    if count < len(view):
        raise Refused("truncated", f"{len(view) - count} of {len(view)} bytes of pixel data are missing")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)
