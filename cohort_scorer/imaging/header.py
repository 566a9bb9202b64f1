"""One file -> the facts of its header. Knows neither what a study wants nor how pixels are decoded.

Every file is hostile until read: pydicom sees at most 256 MiB of inflated data, may read only so often and so much of
it, long values are not read at all, and whatever it raises becomes a refusal.
"""

import hashlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from cohort_scorer.imaging import deflated
from cohort_scorer.imaging.refusal import Refused
from cohort_scorer.imaging.values import (
    age_years,
    date_of,
    integer_of,
    is_there,
    number_of,
    spacing_mm_of,
    text_of,
    time_of,
    value_of,
)
from cohort_scorer.imaging.views import view_from

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG})
_ALWAYS_LOSSY: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})  # JPEG baseline and extended

_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage, PS3.4 annex B
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PIXEL_DATA = 0x7FE00010
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONGEST_VALUE = 2**16
_MOST_READS = 300_000  # an element takes one to three
_MOST_BYTES = 64 * 2**20
_SILENCE = threading.Lock()
_KEYWORDS = (
    "SpecificCharacterSet OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity SOPClassUID SOPInstanceUID StudyDate "
    "AcquisitionDate AcquisitionTime ContentTime AccessionNumber Modality PresentationIntentType Manufacturer "
    "ManufacturerModelName SeriesDescription ProtocolName PatientID PatientBirthDate PatientSex PatientAge "
    "BodyPartExamined ViewPosition ViewCodeSequence ImagerPixelSpacing StudyInstanceUID PatientOrientation "
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing BitsAllocated BitsStored "
    "HighBit PixelRepresentation BurnedInAnnotation WindowCenter WindowWidth RescaleIntercept RescaleSlope "
    "VOILUTFunction LossyImageCompression ModalityLUTSequence VOILUTSequence PresentationLUTShape"
)


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
    with opened(path) as file, silenced():
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
    with silenced():
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
def silenced() -> Iterator[None]:
    """Keep pydicom's warnings, which quote values of the header, out of every stream and log.

    Filters and levels are the process's: one thread at a time.
    """
    logger = logging.getLogger("pydicom")
    with _SILENCE, warnings.catch_warnings():
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            warnings.simplefilter("ignore")
            yield
        finally:
            logger.setLevel(level)


class _Bounded:
    """A stream that gives pydicom neither millions of elements nor gigabytes: objects take ten times their bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self._reads_left, self._bytes_left = _MOST_READS, _MOST_BYTES

    def read(self, size: int) -> bytes:
        content = self._read(min(size, self._bytes_left + 1))
        self._reads_left -= 1
        self._bytes_left -= len(content)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise Refused("header_too_large", "more elements or bytes than are read of a header")
        return content


@dataclass(frozen=True)
class Opened:
    """A file whose group 2 has been read.

    Attributes:
        meta: Group 2 (PS3.10 7.1).
        has_magic: `DICM` stands at byte 128.
        syntax: The transfer syntax, guessed from the first element where group 2 is silent.
        stream: The data set from its first element, inflated where it was deflated.
    """

    meta: Dataset
    has_magic: bool
    syntax: str
    stream: BinaryIO

    @classmethod
    def of(cls, file: BinaryIO) -> "Opened":
        """Read group 2 of a file at its start.

        Raises:
            Refused: not_dicom or header_too_large. Besides, whatever pydicom raises.
        """
        meta, has_magic = _read_meta(file)
        syntax = text_of(meta, "TransferSyntaxUID") or _guessed_syntax(file)
        return cls(meta, has_magic, syntax, deflated.reader(file) if syntax == DEFLATED else file)

    def elements(
        self, keywords: str, stop_when: Callable[[BaseTag, str | None, int], bool], longest: int | None
    ) -> Dataset:
        """Read some elements of the data set.

        Args:
            keywords: Theirs, between spaces.
            stop_when: Given a tag, its VR and the length of its value, tells whether to stop before it.
            longest: Values of more bytes, where their length is stated, are left out; None reads all.

        Raises:
            Refused: header_too_large. Besides, whatever pydicom raises.
        """
        return _elements(
            self.stream,
            self.syntax == IMPLICIT_LITTLE,
            self.syntax != EXPLICIT_BIG,
            stop_when=stop_when,
            defer_size=longest,
            specific_tags=[tag for tag in map(tag_for_keyword, keywords.split()) if tag is not None],
        )


def _elements(stream: BinaryIO, is_implicit: bool, is_little_endian: bool, **how: Any) -> Dataset:
    try:
        return read_dataset(cast(BinaryIO, _Bounded(stream)), is_implicit, is_little_endian, **how)
    except OSError as error:
        if isinstance(error.__context__, Refused):  # between items, pydicom makes one of whatever reading raises
            raise error.__context__ from None
        raise


def _facts(file: BufferedReader) -> dict[str, Any]:
    data_set = Opened.of(file)
    pixels: dict[str, Any] = {}

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag == _PIXEL_DATA:
            pixels.update(offset=data_set.stream.tell(), length=length, vr=vr)
        return tag in PIXEL_TAGS

    header = data_set.elements(_KEYWORDS, at_pixels, _LONGEST_VALUE)
    sop_class = text_of(data_set.meta, "MediaStorageSOPClassUID") or text_of(header, "SOPClassUID") or ""
    if not data_set.has_magic and not sop_class.startswith("1."):
        raise Refused("not_dicom", "no preamble and no SOP class")
    if sop_class == _DIRECTORY or "OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity" in header:
        raise Refused("dicomdir", "a directory of files, not an image")
    facts = _identity(header) | _acquisition(header) | _pixel_module(header)
    if facts["image_id"] is None:
        facts["image_id"] = file_sha256(file)
    if data_set.syntax in _ALWAYS_LOSSY:
        facts["lossy"] = True
    return facts | _pixel_value(file, data_set.syntax, pixels)


def _read_meta(file: BinaryIO) -> tuple[Dataset, bool]:
    """Read group 2 (PS3.10 7.1), leaving the file at the first element after it; tell whether `DICM` stood there."""
    start = file.read(132)
    has_magic = start[128:] == b"DICM"
    if not has_magic:
        # Without a preamble a data set begins with group 2 or 8, in either byte order; HTML and CSV do not.
        if start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
            raise Refused("not_dicom", "no preamble, and no DICOM element at its start")
        file.seek(0)
    meta = _elements(
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
    study_date = date_of(header, "StudyDate") or date_of(header, "AcquisitionDate")
    sex = (text_of(header, "PatientSex") or "").upper()
    return {
        "patient_id": text_of(header, "PatientID"),
        "study_id": text_of(header, "StudyInstanceUID"),
        "image_id": text_of(header, "SOPInstanceUID"),
        "accession_number": text_of(header, "AccessionNumber"),
        "study_date": study_date,
        "acquisition_time": time_of(header, "AcquisitionTime") or time_of(header, "ContentTime"),
        "sex": sex if sex in ("F", "M") else None,
        "age_years": age_years(text_of(header, "PatientAge"), date_of(header, "PatientBirthDate"), study_date),
    }


def _acquisition(header: Dataset) -> dict[str, Any]:
    codes = value_of(header, "ViewCodeSequence")
    evidence = {
        "view_code_sequence": text_of(codes[0], "CodeValue") if codes else None,
        "view_position": text_of(header, "ViewPosition"),
        "series_description": text_of(header, "SeriesDescription"),
        "protocol_name": text_of(header, "ProtocolName"),
        "patient_orientation": text_of(header, "PatientOrientation"),
    }
    view, view_source, view_conflict = view_from(evidence)
    burned_in = (text_of(header, "BurnedInAnnotation") or "").upper()
    lossy = text_of(header, "LossyImageCompression")
    return {
        "modality": text_of(header, "Modality"),
        "body_part_examined": text_of(header, "BodyPartExamined"),
        "view": view,
        "view_source": view_source,
        "view_conflict": view_conflict,
        "manufacturer": text_of(header, "Manufacturer"),
        "model_name": text_of(header, "ManufacturerModelName"),
        "presentation_intent_type": text_of(header, "PresentationIntentType"),
        "burned_in_annotation": {"YES": True, "NO": False}.get(burned_in),
        "lossy": None if lossy is None else lossy == "01",
    }


def _pixel_module(header: Dataset) -> dict[str, Any]:
    return {
        "rows": integer_of(header, "Rows"),
        "columns": integer_of(header, "Columns"),
        "bits_allocated": integer_of(header, "BitsAllocated"),
        "bits_stored": integer_of(header, "BitsStored"),
        "high_bit": integer_of(header, "HighBit"),
        "pixel_representation": integer_of(header, "PixelRepresentation"),
        "samples_per_pixel": integer_of(header, "SamplesPerPixel"),
        "number_of_frames": integer_of(header, "NumberOfFrames"),
        "photometric_interpretation": text_of(header, "PhotometricInterpretation"),
        "presentation_lut_shape": text_of(header, "PresentationLUTShape"),
        "rescale_slope": number_of(header, "RescaleSlope"),
        "rescale_intercept": number_of(header, "RescaleIntercept"),
        "modality_lut": is_there(header, "ModalityLUTSequence"),
        "voi_lut": is_there(header, "VOILUTSequence"),
        "window_center": number_of(header, "WindowCenter"),
        "window_width": number_of(header, "WindowWidth"),
        "voi_lut_function": text_of(header, "VOILUTFunction"),
        "pixel_spacing_mm": spacing_mm_of(header),
    }
