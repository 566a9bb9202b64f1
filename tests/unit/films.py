"""Writes small real DICOM files for tests, in every transfer syntax that the package reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import polars as pl
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID, ComputedRadiographyImageStorage

from cohort_scorer import schemas
from cohort_scorer.imaging import index

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
BASELINE = "1.2.840.10008.1.2.4.50"
EXTENDED = "1.2.840.10008.1.2.4.51"
LOSSLESS = "1.2.840.10008.1.2.4.57"
LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
HTJ2K = "1.2.840.10008.1.2.4.201"

NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
ENCAPSULATED_LOSSLESS = (RLE, LOSSLESS, LOSSLESS_SV1, JPEG_LS, JPEG_2000_LOSSLESS)


def film(rows: int = 60, columns: int = 50, bits: int = 12, seed: int = 0) -> np.ndarray:
    """A smooth bright blob with noise: something every codec has to work for."""
    y, x = np.mgrid[0:rows, 0:columns]
    blob = np.exp(-(((y - rows / 2) / rows * 3) ** 2) - ((x - columns / 3) / columns * 3) ** 2)
    noise = np.random.default_rng(seed).random((rows, columns)) * 0.1
    return ((blob * 0.85 + noise) * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)


def _stream(pixels: np.ndarray, syntax: str, bits: int) -> bytes:
    if syntax in (BASELINE, EXTENDED):
        return imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=bits)
    if syntax in (LOSSLESS, LOSSLESS_SV1):
        predictor = 1 if syntax == LOSSLESS_SV1 else 4
        return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)
    if syntax in (JPEG_LS, JPEG_LS_NEAR):
        return imagecodecs.jpegls_encode(pixels, level=2 if syntax == JPEG_LS_NEAR else 0)
    if syntax == HTJ2K:
        return imagecodecs.htj2k_encode(pixels)
    lossless = syntax == JPEG_2000_LOSSLESS
    return imagecodecs.jpeg2k_encode(
        pixels, level=0 if lossless else 60, codecformat="j2k", reversible=lossless, bitspersample=bits
    )


def write_film(path: Path, pixels: np.ndarray, syntax: str = EXPLICIT, **attributes: Any) -> Path:
    """Write pixels (rows, columns) as a PA chest film; attributes override the header, None leaves one out."""
    bits = attributes.pop("stream_bits", attributes.get("BitsStored", 12 if pixels.itemsize == 2 else 8))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{abs(hash(path.name)) % 10**9}")
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = ComputedRadiographyImageStorage
    facts = {
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "PatientID": "00123",
        "StudyDate": "20200102",
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": pixels.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
    } | attributes
    for keyword, value in facts.items():
        if value is not None:
            setattr(header, keyword, value)
    if syntax in NATIVE:
        stored = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax == BIG_ENDIAN else pixels
        header.PixelData = stored.tobytes() + b"\0" * (pixels.nbytes % 2)
    elif syntax == RLE:
        frame = RLELosslessEncoder.encode(
            pixels.tobytes(),
            rows=pixels.shape[0],
            columns=pixels.shape[1],
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=pixels.itemsize * 8,
            bits_stored=pixels.itemsize * 8,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
        )
        header.PixelData = encapsulate([frame])
    else:
        header.PixelData = encapsulate([_stream(pixels, syntax, bits)])
    header["PixelData"].VR = "OW" if pixels.itemsize == 2 and syntax in NATIVE else "OB"
    header["PixelData"].is_undefined_length = syntax not in NATIVE
    dcmwrite(path, header, enforce_file_format=True)
    return path


def read_headers(
    files: pl.DataFrame,
    root: Path,
    root_name: str,
    listing: pl.DataFrame | None,
    rules: index.Rules,
    workers: int,
    advance: Callable[[int], None],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Index rows and refusals of the files that `find_files` found in one root, in two tables."""
    files = files.with_columns(root=pl.lit(root_name))
    problems = index.refuse_problems(files, listing is not None)
    advance(len(problems))
    sound = files.filter(pl.col("problem").is_null())
    parts = list(index.read_headers(sound, {root_name: root}, listing, rules, workers, advance))
    nothing = pl.DataFrame(schema=schemas.columns("index"))
    return pl.concat([nothing, *(rows for rows, _ in parts)]), pl.concat([problems, *(refused for _, refused in parts)])
