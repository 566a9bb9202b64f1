"""Films that are PNG or JPEG files: their headers and their pixels. Does not know whose they are: a listing does."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cohort_scorer.imaging import header
from cohort_scorer.imaging.refusal import Refused

_FORMATS = ("PNG", "JPEG")


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a PNG or JPEG file, without decoding it.

    Returns:
        As `header.read`, with image_id the file's SHA-256. Pictures have no transfer syntax and no DICOM facts;
        photometric_interpretation is MONOCHROME2 for grey and RGB for coloured files.

    Raises:
        Refused: missing_file, unreadable_file, too_large, header_unreadable, or not_dicom for any other kind of file.
    """
    with header.opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the index judges sizes
        try:
            with Image.open(file, formats=_FORMATS) as picture:
                columns, rows = picture.size
                kind, mode, bands = str(picture.format).lower(), picture.mode, len(picture.getbands())
        except Image.DecompressionBombError as error:
            raise Refused("too_large", "more pixels than pillow opens") from error
        except UnidentifiedImageError as error:
            raise Refused("not_dicom", "neither DICOM nor PNG nor JPEG") from error
        except Exception as error:
            # Pillow's header parsers raise more than they document on malformed chunks.
            raise Refused("header_unreadable", f"pillow raised {type(error).__name__}") from error
    with header.opened(path) as file:
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
            "pixel_data_length": file.seek(0, io.SEEK_END),
            "modality_lut": False,
            "voi_lut": False,
            "view": "UNKNOWN",
            "view_source": "none",
            "view_conflict": False,
            "lossy": kind == "jpeg",
        }


def pixels(content: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a picture, (rows, columns): grey values, or the luminance (ITU-R 601) of colours; transparency is dropped.

    Pictures are turned as their EXIF orientation says.

    Raises:
        Refused: decode_failed.
    """
    try:
        with Image.open(io.BytesIO(content.data), formats=_FORMATS) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):
                return np.asarray(upright).astype(np.uint16)
            return np.array(upright.convert("L"), dtype=np.uint8)
    except Exception as error:
        # The file is untrusted, and pillow's codecs raise many kinds of exceptions on malformed ones.
        raise Refused("decode_failed", f"decoder raised {type(error).__name__}") from error
