"""One file -> the facts of its header. Knows neither what a study wants nor how pixels are decoded.

Every file is hostile until read: pydicom sees at most 256 MiB of inflated data, long values are not read at all, and
whatever it raises becomes a refusal.
"""

import hashlib
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from cohort_scorer.imaging import deflated
from cohort_scorer.imaging.refusal import Refused
from cohort_scorer.imaging.views import view_from

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG})

_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage, PS3.4 annex B
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PIXEL_DATA = 0x7FE00010
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONGEST_VALUE = 2**16
_KEYWORDS = (
    "SpecificCharacterSet OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity SOPClassUID SOPInstanceUID StudyDate "
    "AcquisitionDate AcquisitionTime ContentTime AccessionNumber Modality PresentationIntentType Manufacturer "
    "ManufacturerModelName SeriesDescription ProtocolName PatientID PatientBirthDate PatientSex PatientAge "
    "BodyPartExamined ViewPosition ViewCodeSequence ImagerPixelSpacing StudyInstanceUID PatientOrientation "
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing BitsAllocated BitsStored "
    "HighBit PixelRepresentation BurnedInAnnotation RescaleIntercept RescaleSlope LossyImageCompression "
    "ModalityLUTSequence VOILUTSequence PresentationLUTShape"
)
_TAGS: list[BaseTag | int] = [tag for tag in map(tag_for_keyword, _KEYWORDS.split()) if tag is not None]
_DAYS_PER_YEAR = 365.25
_OLDEST_YEARS = 130  # nobody has been
_YEARS_PER_UNIT = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / _DAYS_PER_YEAR, "D": 1 / _DAYS_PER_YEAR}


def read(path: Path) -> dict[str, Any]:
    """Read the header of a DICOM file.

    Args:
        path: A file; nothing is assumed of its name or contents.

    Returns:
        Columns of data_schemas/index.json that a header can fill, None where it is silent. `pixel_data_offset` (bytes)
        counts from the start of the file, in the deflated syntax from the start of the inflated data set;
        `pixel_data_length` (bytes) is that of the value, or for encapsulated frames what remains of the file.

    Raises:
        Refused: missing_file, unreadable_file, not_dicom, dicomdir, header_too_large or header_unreadable.
    """
    with opened(path) as file, _silenced():
        try:
            return _facts(file)
        except Refused:
            raise
        except RecursionError as error:
            raise Refused("header_unreadable", "sequences nested too deeply") from error
        except Exception as error:
            # pydicom raises whatever a malformed header trips over (struct, Unicode, key, index, OS errors ...).
            raise Refused("header_unreadable", f"pydicom raised {type(error).__name__}") from error


def inflated(file: BinaryIO) -> BufferedReader:
    """Return the data set of a file in the deflated syntax, inflated as it is read.

    Args:
        file: The file, at its start.

    Raises:
        Refused: not_dicom or header_unreadable. Reading raises what `deflated.reader` says.
    """
    with _silenced():
        try:
            _read_meta(file)
        except Refused:
            raise
        except Exception as error:
            # As in `read`: a malformed header raises anything.
            raise Refused("header_unreadable", f"pydicom raised {type(error).__name__}") from error
    return deflated.reader(file)


def opened(path: Path) -> BufferedReader:
    """Open a file to read.

    Raises:
        Refused: missing_file or unreadable_file.
    """
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused("missing_file", "no such file") from error
    except OSError as error:
        raise Refused("unreadable_file", type(error).__name__) from error


def file_sha256(file: BufferedReader) -> str:
    """Return the image_id of a file that has no identifier of its own."""
    file.seek(0)
    return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep pydicom's warnings, which quote values of the header, out of every stream and log."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _facts(file: BufferedReader) -> dict[str, Any]:
    meta, has_magic = _read_meta(file)
    syntax = _text(meta, "TransferSyntaxUID")
    stream: BinaryIO = file
    if syntax == DEFLATED:
        stream = deflated.reader(file)
    elif syntax is None:
        syntax = _guessed_syntax(file)
    pixels: dict[str, Any] = {}

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag not in _PIXEL_TAGS:
            return False
        if tag == _PIXEL_DATA:
            pixels.update(offset=stream.tell(), length=length, vr=vr)
        return True

    header = read_dataset(
        stream,
        syntax == IMPLICIT_LITTLE,
        syntax != EXPLICIT_BIG,
        stop_when=at_pixels,
        defer_size=_LONGEST_VALUE,
        specific_tags=_TAGS,
    )
    sop_class = _text(meta, "MediaStorageSOPClassUID") or _text(header, "SOPClassUID") or ""
    if not has_magic and not sop_class.startswith("1."):
        raise Refused("not_dicom", "no preamble and no SOP class")
    if sop_class == _DIRECTORY or "OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity" in header:
        raise Refused("dicomdir", "a directory of files, not an image")
    facts = _identity(header) | _acquisition(header) | _pixel_module(header)
    if facts["image_id"] is None:
        facts["image_id"] = file_sha256(file)
    return facts | _pixel_value(file, syntax, pixels)


def _read_meta(file: BinaryIO) -> tuple[Dataset, bool]:
    """Read group 2 (PS3.10 7.1), leaving the file at the first element after it; tell whether `DICM` stood there."""
    start = file.read(132)
    has_magic = start[128:] == b"DICM"
    if not has_magic:
        # Without a preamble a data set begins with group 2 or 8, in either byte order; HTML and CSV do not.
        if start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
            raise Refused("not_dicom", "no preamble, and no DICOM element at its start")
        file.seek(0)
    meta = read_dataset(
        file,
        False,
        True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,
        defer_size=_LONGEST_VALUE,
    )
    return meta, has_magic


def _guessed_syntax(file: BinaryIO) -> str:
    """Guess the syntax of a data set without meta information from its first element: tag, then perhaps a VR."""
    start = file.read(6)
    file.seek(-len(start), io.SEEK_CUR)
    if not re.fullmatch(rb"[A-Z]{2}", start[4:6]):
        return IMPLICIT_LITTLE
    return EXPLICIT_BIG if start[:1] == b"\x00" else EXPLICIT_LITTLE


def _pixel_value(file: BinaryIO, syntax: str, pixels: dict[str, Any]) -> dict[str, Any]:
    offset, length = pixels.get("offset"), pixels.get("length")
    encapsulated = length == _UNDEFINED_LENGTH
    if encapsulated and offset is not None:
        length = file.seek(0, io.SEEK_END) - offset
    return {
        "file_format": "dicom",
        "transfer_syntax": syntax,
        "encapsulated": encapsulated,
        "pixel_data_offset": offset,
        "pixel_data_length": length,
        "pixel_data_vr": pixels.get("vr"),
    }


def _identity(header: Dataset) -> dict[str, Any]:
    study_date = _date(header, "StudyDate") or _date(header, "AcquisitionDate")
    sex = (_text(header, "PatientSex") or "").upper()
    return {
        "patient_id": _text(header, "PatientID"),
        "study_id": _text(header, "StudyInstanceUID"),
        "image_id": _text(header, "SOPInstanceUID"),
        "accession_number": _text(header, "AccessionNumber"),
        "study_date": study_date,
        "acquisition_time": _time(header, "AcquisitionTime") or _time(header, "ContentTime"),
        "sex": sex if sex in ("F", "M") else None,
        "age_years": _age_years(_text(header, "PatientAge"), _date(header, "PatientBirthDate"), study_date),
    }


def _acquisition(header: Dataset) -> dict[str, Any]:
    codes = _value(header, "ViewCodeSequence")
    evidence = {
        "view_code_sequence": _text(codes[0], "CodeValue") if codes else None,
        "view_position": _text(header, "ViewPosition"),
        "series_description": _text(header, "SeriesDescription"),
        "protocol_name": _text(header, "ProtocolName"),
        "patient_orientation": _text(header, "PatientOrientation"),
    }
    view, view_source, view_conflict = view_from(evidence)
    burned_in = (_text(header, "BurnedInAnnotation") or "").upper()
    lossy = _text(header, "LossyImageCompression")
    return {
        "modality": _text(header, "Modality"),
        "body_part_examined": _text(header, "BodyPartExamined"),
        "view": view,
        "view_source": view_source,
        "view_conflict": view_conflict,
        "manufacturer": _text(header, "Manufacturer"),
        "model_name": _text(header, "ManufacturerModelName"),
        "presentation_intent_type": _text(header, "PresentationIntentType"),
        "burned_in_annotation": {"YES": True, "NO": False}.get(burned_in),
        "lossy": None if lossy is None else lossy == "01",
    }


def _pixel_module(header: Dataset) -> dict[str, Any]:
    return {
        "rows": _integer(header, "Rows"),
        "columns": _integer(header, "Columns"),
        "bits_allocated": _integer(header, "BitsAllocated"),
        "bits_stored": _integer(header, "BitsStored"),
        "high_bit": _integer(header, "HighBit"),
        "pixel_representation": _integer(header, "PixelRepresentation"),
        "samples_per_pixel": _integer(header, "SamplesPerPixel"),
        "number_of_frames": _integer(header, "NumberOfFrames"),
        "photometric_interpretation": _text(header, "PhotometricInterpretation"),
        "presentation_lut_shape": _text(header, "PresentationLUTShape"),
        "rescale_slope": _number(header, "RescaleSlope"),
        "rescale_intercept": _number(header, "RescaleIntercept"),
        "modality_lut": bool(_value(header, "ModalityLUTSequence")),
        "voi_lut": bool(_value(header, "VOILUTSequence")),
        "pixel_spacing_mm": _spacing_mm(header),
    }


def _value(header: Dataset, keyword: str) -> Any:
    try:
        return header.get(keyword)
    except Exception:
        # pydicom converts on access and raises what the malformed value trips over: an unreadable value is no value.
        return None


def _text(header: Dataset, keyword: str) -> str | None:
    value = _value(header, keyword)
    if isinstance(value, MultiValue | list):
        value = "\\".join(str(part) for part in value)
    if value is None:
        return None
    text = str(value).replace("\0", "").strip()
    return text.encode("utf-8", "replace").decode("utf-8") or None


def _number(header: Dataset, keyword: str) -> float | None:
    value = _value(header, keyword)
    if isinstance(value, MultiValue | list):
        value = value[0] if value else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _integer(header: Dataset, keyword: str) -> int | None:
    number = _number(header, keyword)
    return int(number) if number is not None and abs(number) < 2**53 else None


def _spacing_mm(header: Dataset) -> float | None:
    """Row spacing at the patient where known, else at the detector; zero spacing says nothing."""
    spacings = (_number(header, keyword) for keyword in ("PixelSpacing", "ImagerPixelSpacing"))
    return next((spacing for spacing in spacings if spacing is not None and spacing > 0), None)


def _date(header: Dataset, keyword: str) -> date | None:
    digits = (_text(header, keyword) or "").replace(".", "")  # YYYY.MM.DD: ACR-NEMA, PS3.5 6.2
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) if len(digits) == 8 else None
    except ValueError:
        return None


def _time(header: Dataset, keyword: str) -> str | None:
    match = re.match(r"([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d)", _text(header, keyword) or "")
    return ":".join(match.groups()) if match else None


def _age_years(stated: str | None, birth_date: date | None, study_date: date | None) -> float | None:
    """Return PatientAge (PS3.5 AS, or bare years), else the time from birth to study."""
    match = re.fullmatch(r"(\d{1,3})\s*([DWMY]?)", (stated or "").upper())
    if match:
        age = int(match.group(1)) * _YEARS_PER_UNIT[match.group(2)]
    elif birth_date is not None and study_date is not None:
        age = (study_date - birth_date).days / _DAYS_PER_YEAR
    else:
        return None
    return age if 0 <= age <= _OLDEST_YEARS else None
