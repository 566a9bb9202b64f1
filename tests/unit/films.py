"""Writes small real DICOM files for tests, in every transfer syntax that the package reads."""

from collections.abc import Callable, Mapping
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
HTJ2K_RPCL = "1.2.840.10008.1.2.4.202"
HTJ2K_LOSSY = "1.2.840.10008.1.2.4.203"
JPEG_XL = "1.2.840.10008.1.2.4.112"

NATIVE = (IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN)
ENCAPSULATED_LOSSLESS = (RLE, LOSSLESS, LOSSLESS_SV1, JPEG_LS, JPEG_2000_LOSSLESS)
HIGH_THROUGHPUT = (HTJ2K, HTJ2K_RPCL, HTJ2K_LOSSY)


def film(rows: int = 60, columns: int = 50, bits: int = 12, seed: int = 0) -> np.ndarray:
    """A smooth bright blob with noise: something every codec has to work for."""
    y, x = np.mgrid[0:rows, 0:columns]
    blob = np.exp(-(((y - rows / 2) / rows * 3) ** 2) - ((x - columns / 3) / columns * 3) ** 2)
    noise = np.random.default_rng(seed).random((rows, columns)) * 0.1
    return ((blob * 0.85 + noise) * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)


def signed_film(rows: int = 60, columns: int = 50, bits: int = 12) -> np.ndarray:
    return (film(rows, columns, bits).astype(np.int32) - 2 ** (bits - 1)).astype(np.int16 if bits > 8 else np.int8)


def integers(row: Mapping[str, Any], words: np.ndarray) -> np.ndarray:
    """What stored words stand for: their lowest bits_stored bits, with the header's sign."""
    values, bits = words.astype(np.int64), row["bits_stored"]
    values &= (1 << bits) - 1
    return values - ((values >> (bits - 1)) << bits) if row["pixel_representation"] == 1 else values


def stream(pixels: np.ndarray, syntax: str, bits: int) -> bytes:
    """Encode pixels (rows, columns); JPEG and JPEG-LS have no sign, and store the low bits."""
    if syntax in HIGH_THROUGHPUT:
        return imagecodecs.htj2k_encode(pixels, reversible=syntax != HTJ2K_LOSSY)
    if syntax == RLE:
        return _run_lengths(pixels)
    if syntax not in (JPEG_2000, JPEG_2000_LOSSLESS):
        pixels = pixels.view(f"u{pixels.itemsize}") & (2**bits - 1)
    if syntax in (BASELINE, EXTENDED):
        return imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=bits)
    if syntax in (LOSSLESS, LOSSLESS_SV1):
        predictor = 1 if syntax == LOSSLESS_SV1 else 4
        return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)
    if syntax in (JPEG_LS, JPEG_LS_NEAR):
        return imagecodecs.jpegls_encode(pixels, level=2 if syntax == JPEG_LS_NEAR else 0)
    lossless = syntax == JPEG_2000_LOSSLESS
    return imagecodecs.jpeg2k_encode(
        pixels, level=0 if lossless else 60, codecformat="j2k", reversible=lossless, bitspersample=bits
    )


def _run_lengths(pixels: np.ndarray) -> bytes:
    return RLELosslessEncoder.encode(
        pixels.tobytes(),
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=pixels.itemsize * 8,
        bits_stored=pixels.itemsize * 8,
        pixel_representation=int(pixels.dtype.kind == "i"),
        photometric_interpretation="MONOCHROME2",
    )


def write_film(path: Path, pixels: np.ndarray, syntax: str = EXPLICIT, **attributes: Any) -> Path:
    """Write pixels (rows, columns) as a PA chest film; attributes override the header, None leaves one out.

    Of the attributes, `frame` is a stream to write in place of the encoded pixels, `fragments` the number of pieces
    it is cut into, `has_table` whether a basic offset table tells where it begins.
    """
    frame, fragments = attributes.pop("frame", None), attributes.pop("fragments", 1)
    has_table = attributes.pop("has_table", True)
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
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
    } | attributes
    for keyword, value in facts.items():
        if value is not None:
            setattr(header, keyword, value)
    if syntax in NATIVE:
        stored = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax == BIG_ENDIAN else pixels
        header.PixelData = stored.tobytes() + b"\0" * (pixels.nbytes % 2)
    else:
        frame = stream(pixels, syntax, bits) if frame is None else frame
        header.PixelData = encapsulate([frame], fragments_per_frame=fragments, has_bot=has_table)
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
