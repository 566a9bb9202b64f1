"""One file -> the facts of its header. Knows neither what a study wants nor how pixels are decoded.

Long values are not read at all, and whatever pydicom raises becomes a refusal.
"""

import hashlib
import io
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from cohort_scorer.imaging import data_set
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

_ALWAYS_LOSSY: Final = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})  # JPEG baseline and extended

_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage, PS3.4 annex B
_PIXEL_DATA = 0x7FE00010
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONGEST_VALUE = 2**16
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
    with data_set.opened(path) as file, data_set.silenced():
        try:
            return _facts(file)
        except Refused:
            raise
        except RecursionError as error:
            raise Refused("header_unreadable", "sequences nested too deeply") from error
        except Exception as error:
            # pydicom raises whatever a malformed header trips over (struct, Unicode, key, index, OS errors ...).
            raise Refused("header_unreadable", f"pydicom raised {type(error).__name__}") from error


def file_sha256(file: BufferedReader) -> str:
    """Return the image_id of a file that has no identifier of its own."""
    file.seek(0)
    return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _facts(file: BufferedReader) -> dict[str, Any]:
    source = data_set.Opened.of(file)
    pixels: dict[str, Any] = {}

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag == _PIXEL_DATA:
            pixels.update(offset=source.stream.tell(), length=length, vr=vr)
        return tag in data_set.PIXEL_TAGS

    header = source.elements(_KEYWORDS, at_pixels, _LONGEST_VALUE)
    sop_class = text_of(source.meta, "MediaStorageSOPClassUID") or text_of(header, "SOPClassUID") or ""
    if not source.has_magic and not sop_class.startswith("1."):
        raise Refused("not_dicom", "no preamble and no SOP class")
    if sop_class == _DIRECTORY or "OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity" in header:
        raise Refused("dicomdir", "a directory of files, not an image")
    facts = _identity(header) | _acquisition(header) | _pixel_module(header)
    if facts["image_id"] is None:
        facts["image_id"] = file_sha256(file)
    if source.syntax in _ALWAYS_LOSSY:
        facts["lossy"] = True
    return facts | _pixel_value(file, source.syntax, pixels)


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
