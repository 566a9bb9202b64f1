"""Films that are PNG or JPEG files: their headers and their pixels. Does not know whose they are: a listing does."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from cohort_scorer.imaging import data_set, header
from cohort_scorer.imaging.encapsulated import with_filler
from cohort_scorer.imaging.refusal import Refused

MAXIMUM_FILE_BYTES: Final = 256 * 2**20

_FORMATS = ("PNG", "JPEG")
_END_OF_JPEG = b"\xff\xd9"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type of PNG
_ALL_AT_ONCE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BYTES_INFLATED = 2**14  # at once; they become a thousand times as many at most


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a PNG or JPEG file, without decoding it.

    Returns:
        As `header.read`, with image_id the file's SHA-256. Pictures have no transfer syntax and no DICOM facts;
        photometric_interpretation is MONOCHROME2 for grey and RGB for coloured files.

    Raises:
        Refused: missing_file, unreadable_file, too_large, header_unreadable, or not_dicom for any other kind of file.
    """
    with data_set.opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the index judges sizes
        try:
            with Image.open(file, formats=_FORMATS) as picture:
                columns, rows = picture.size
                kind = (
                    "png" if picture.format == "PNG" else "jpeg"
                )  # MPO: JPEG images in a row, of which the first counts
                mode, bands = picture.mode, len(picture.getbands())
        except Image.DecompressionBombError as error:
            raise Refused("too_large", "more pixels than pillow opens") from error
        except UnidentifiedImageError as error:
            raise Refused("not_dicom", "neither DICOM nor PNG nor JPEG") from error
        except Exception as error:
            # Pillow's header parsers raise more than they document on malformed chunks.
            raise Refused("header_unreadable", f"pillow raised {type(error).__name__}") from error
    with data_set.opened(path) as file:
        if (length := file.seek(0, io.SEEK_END)) > MAXIMUM_FILE_BYTES:
            raise Refused("too_large", f"a picture of more than {MAXIMUM_FILE_BYTES // 2**20} MiB")
        bits = 16 if mode.startswith("I") else 8
        return {
            "file_format": kind,
            "image_id": header.file_sha256(file),
            "rows": rows,
            "columns": columns,
            "bits_allocated": bits,
            "bits_stored": bits,
            "high_bit": bits - 1,
            "pixel_representation": 0,
            "samples_per_pixel": bands,
            "number_of_frames": 1,
            "photometric_interpretation": "MONOCHROME2" if mode[0] in "1LI" else "RGB",
            "pixel_data_offset": 0,
            "pixel_data_length": length,
            "modality_lut": False,
            "voi_lut": False,
            "view": "UNKNOWN",
            "view_source": "none",
            "view_conflict": False,
            "lossy": kind == "jpeg",
        }


def pixels(content: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a picture: grey values, or the luminance (ITU-R 601) of colours; transparency is dropped.

    Args:
        content: uint8, the file.
        rows: As its header says; a file that says otherwise is not decoded.
        columns: As its header says.

    Returns:
        uint8, of grey PNG of 16 bits uint16, of shape (rows, columns), turned as the EXIF orientation says.

    Raises:
        Refused: truncated, decode_failed or shape_mismatch.
    """
    try:
        with Image.open(io.BytesIO(content.data), formats=_FORMATS) as picture:
            if picture.size != (columns, rows):
                raise Refused("shape_mismatch", f"{picture.height} x {picture.width}, header says {rows} x {columns}")
            is_whole = _png_is_whole(content.data) if picture.format == "PNG" else _jpeg_is_whole(content, picture)
            if not is_whole:
                raise Refused("truncated", "the picture ends before its last pixel")
            ImageOps.exif_transpose(picture, in_place=True)
            picture.info.pop("transparency", None)
            if picture.mode.startswith("I"):
                return np.asarray(picture).astype(np.uint16)
            return np.array(picture.convert("L"), dtype=np.uint8)
    except (Refused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Refused("shape_mismatch", "more pixels than the header says") from error
    except Exception as error:
        # The file is untrusted, and pillow's codecs raise many kinds of exceptions on malformed ones.
        raise Refused("decode_failed", f"decoder raised {type(error).__name__}") from error


def _jpeg_is_whole(content: NDArray[np.uint8], picture: Image.Image) -> bool:
    """Tell whether nothing is missing: libjpeg takes that for grey, and pillow does not hear of it."""
    stream = bytearray(content)
    del stream[stream.rfind(_END_OF_JPEG) + 2 :]
    with Image.open(io.BytesIO(with_filler(stream)), formats=_FORMATS) as filled:
        return ImageChops.difference(picture, filled).getbbox(alpha_only=False) is None


def _png_is_whole(content: memoryview) -> bool:
    """Tell whether nothing is missing (ISO/IEC 15948): pillow takes that for black, and reads past a chunk's end.

    imagecodecs would tell, but loses a reference to None with every broken file: after some thousands Python 3.11 ends.
    """
    columns, rows, depth, colour_type, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    missing = 0
    for left, top, across, down in _ADAM7 if interlaced else _ALL_AT_ONCE:
        n_columns, n_rows = -((left - columns) // across), -((top - rows) // down)
        missing += n_rows * (1 + (n_columns * depth * _SAMPLES[colour_type] + 7) // 8) if n_columns > 0 else 0
    inflater = zlib.decompressobj()
    position, name = 8, b""
    while name != b"IEND" and missing > 0:
        length, name = struct.unpack_from(">I4s", content, position)
        end = position + 8 + length
        if name == b"IDAT":
            if zlib.crc32(content[position + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
                raise Refused("decode_failed", "a checksum of the pixel data is wrong")
            for start in range(position + 8, end, _BYTES_INFLATED):
                missing -= len(inflater.decompress(content[start : min(start + _BYTES_INFLATED, end)]))
        position = end + 4
    return missing <= 0
