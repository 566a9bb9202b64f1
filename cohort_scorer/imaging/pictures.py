"""Films that are PNG or JPEG files: their headers and their pixels. Does not know whose they are: a listing does."""

import io
import warnings
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cohort_scorer.imaging import header
from cohort_scorer.imaging.encapsulated import ignores_filler
from cohort_scorer.imaging.refusal import Refused

MAXIMUM_FILE_BYTES: Final = 256 * 2**20

_FORMATS = ("PNG", "JPEG")
_END_OF_JPEG = b"\xff\xd9"
_KEYWORDS_OF_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # chunks of PNG


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
    with header.opened(path) as file:
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


def pixels(content: NDArray[np.uint8], rows: int, columns: int, bits: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode a picture: grey values, or the luminance (ITU-R 601) of colours; transparency is dropped.

    Args:
        content: uint8, the file.
        rows: As its header says; a file that says otherwise is not decoded.
        columns: As its header says.
        bits: 8 or 16, as `read_header` says.

    Returns:
        uint8 or uint16 by `bits`, of shape (rows, columns), turned as the EXIF orientation says.

    Raises:
        Refused: truncated, decode_failed or shape_mismatch.
    """
    try:
        with Image.open(io.BytesIO(content.data), formats=_FORMATS) as picture:
            if picture.size != (columns, rows):
                raise Refused("shape_mismatch", f"{picture.height} x {picture.width}, header says {rows} x {columns}")
            grey = _png(content.tobytes(), picture) if picture.format == "PNG" else _jpeg(bytearray(content), picture)
    except Refused:
        raise
    except Image.DecompressionBombError as error:
        raise Refused("shape_mismatch", "more pixels than the header says") from error
    except Exception as error:
        # The file is untrusted, and codecs raise many kinds of exceptions on malformed ones.
        raise Refused("decode_failed", f"decoder raised {type(error).__name__}") from error
    if bits == 8 and grey.dtype == np.uint16:  # pillow's header has no 16 bits but of grey alone
        return (grey >> 8).astype(np.uint8)
    if grey.dtype.itemsize * 8 != bits:
        raise Refused("shape_mismatch", f"decoded {grey.dtype}, header says {bits} bits")
    return grey


def _png(content: bytes, picture: Image.Image) -> NDArray[Any]:
    """Decode with libpng: pillow takes what is missing for black."""
    samples = np.asarray(imagecodecs.png_decode(content))
    if samples.ndim == 3 and samples.shape[2] > 2:
        colours = samples[..., :3] if samples.dtype == np.uint8 else (samples[..., :3] >> 8).astype(np.uint8)
        samples = np.asarray(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))
    elif samples.ndim == 3:
        samples = np.ascontiguousarray(samples[..., 0])
    if not any(keyword in content for keyword in _KEYWORDS_OF_ORIENTATION):
        return samples
    grey = Image.fromarray(samples)
    grey.getexif()[ExifTags.Base.Orientation] = picture.getexif().get(ExifTags.Base.Orientation, 1)
    ImageOps.exif_transpose(grey, in_place=True)
    return np.asarray(grey)


def _jpeg(content: bytearray, picture: Image.Image) -> NDArray[Any]:
    """Decode with libjpeg, twice: it takes what is missing for grey, and pillow does not hear of it."""
    del content[content.rfind(_END_OF_JPEG) + 2 :]
    if not ignores_filler(_samples_of_jpeg, content, np.asarray(picture)):
        raise Refused("truncated", "the stream ends before its last pixel")
    ImageOps.exif_transpose(picture, in_place=True)
    return np.asarray(picture.convert("L"))


def _samples_of_jpeg(content: bytearray) -> NDArray[Any]:
    with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
        return np.asarray(picture)
