"""Archives of many small DICOM files, made quickly: one file whose identifiers are replaced byte by byte."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

_PER_FOLDER = 500
_UID = "1.2.826.0.1.3680043.8.498.1000000000"
_PATIENT = "P1000000000"
_FACTS = {
    "ImageType": ["ORIGINAL", "PRIMARY", ""],
    "InstanceCreationDate": "20200102",
    "InstanceCreationTime": "101112",
    "StudyDate": "20200102",
    "SeriesDate": "20200102",
    "AcquisitionDate": "20200102",
    "ContentDate": "20200102",
    "StudyTime": "101112.000",
    "SeriesTime": "101112.000",
    "AcquisitionTime": "101112.123",
    "ContentTime": "101112.123",
    "AccessionNumber": "A1234567",
    "Modality": "DX",
    "PresentationIntentType": "FOR PRESENTATION",
    "Manufacturer": "Maker of Detectors",
    "InstitutionName": "Hospital",
    "ReferringPhysicianName": "Someone",
    "StationName": "ROOM1",
    "StudyDescription": "Chest two views",
    "SeriesDescription": "Chest PA",
    "ManufacturerModelName": "Detector 3000",
    "PatientName": "Nobody^Nowhere",
    "PatientID": _PATIENT,
    "PatientBirthDate": "19600102",
    "PatientSex": "F",
    "PatientAge": "060Y",
    "BodyPartExamined": "CHEST",
    "KVP": "125",
    "DeviceSerialNumber": "12345",
    "SoftwareVersions": ["1.0", "2.0"],
    "ProtocolName": "Chest PA",
    "DistanceSourceToDetector": "1800",
    "ExposureTime": "5",
    "XRayTubeCurrent": "320",
    "Exposure": "2",
    "ImagerPixelSpacing": ["0.143", "0.143"],
    "Grid": "FOCUSED",
    "FocalSpots": "1.2",
    "DetectorType": "SCINTILLATOR",
    "DetectorID": "D1",
    "ViewPosition": "PA",
    "RelativeXRayExposure": 400,
    "StudyInstanceUID": f"{_UID}.1",
    "SeriesInstanceUID": f"{_UID}.2",
    "StudyID": "1",
    "SeriesNumber": "1",
    "InstanceNumber": "1",
    "PatientOrientation": ["L", "F"],
    "ImageLaterality": "U",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "Rows": 32,
    "Columns": 32,
    "PixelSpacing": ["0.143", "0.143"],
    "BitsAllocated": 16,
    "BitsStored": 12,
    "HighBit": 11,
    "PixelRepresentation": 0,
    "PixelIntensityRelationship": "LOG",
    "PixelIntensityRelationshipSign": -1,
    "BurnedInAnnotation": "NO",
    "WindowCenter": "2048",
    "WindowWidth": "4096",
    "RescaleIntercept": "0",
    "RescaleSlope": "1",
    "RescaleType": "US",
    "LossyImageCompression": "00",
    "PresentationLUTShape": "IDENTITY",
}


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _template(path: Path) -> bytes:
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = _UID
    for keyword, value in _FACTS.items():
        setattr(film, keyword, value)
    film.AnatomicRegionSequence = [_code("51185008", "SCT", "Chest")]
    film.ViewCodeSequence = [_code("272479007", "SCT", "postero-anterior")]
    film.PixelData = np.random.default_rng(1).integers(0, 4096, (32, 32), dtype=np.uint16).tobytes()
    film.save_as(path, enforce_file_format=True)
    return path.read_bytes()


def write_films(archive: Path, n_films: int) -> Path:
    """Write films with the 75 header elements of a real one, 32 x 32 pixels, every one of another patient.

    Args:
        archive: A folder that does not exist yet; its parent neither need exist.
        n_films: How many; 500 to a folder.

    Returns:
        The archive.
    """
    archive.mkdir(parents=True)
    template = _template(archive / "template")
    (archive / "template").unlink()
    for number in range(n_films):
        digits = f"{1_000_000_000 + number}".encode()
        if number % _PER_FOLDER == 0:
            folder = archive / f"{number // _PER_FOLDER:04}"
            folder.mkdir()
        (folder / f"{number:06}.dcm").write_bytes(template.replace(b"1000000000", digits))
    return archive
