"""Decoding one 2500 x 2048 film of 12 bits against pydicom with the decoder it chooses, to the same integers."""

from functools import partial
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from films import read_headers
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import DigitalXRayImageStorageForPresentation, RLELossless, generate_uid
from ratios import in_turn, tell

from cohort_scorer.imaging import codecs, index

SIZE = (2500, 2048)


def film() -> np.ndarray:
    """A trunk, two lungs with ribs and vessels, and a detector's noise: as smooth and as noisy as a chest film."""
    generator = np.random.default_rng(3)
    y, x = np.mgrid[-1 : 1 : SIZE[0] * 1j, -1 : 1 : SIZE[1] * 1j]
    trunk = 1 / (1 + np.exp(30 * (np.abs(x) - 0.9)))
    lungs = sum(np.exp(-((((x - side) / 0.28) ** 2 + ((y + 0.1) / 0.6) ** 2) ** 2)) for side in (-0.42, 0.42))
    ribs = 0.06 * np.sin(40 * (y + 0.4 * x**2)) * lungs
    vessels = cv2.GaussianBlur(generator.standard_normal(SIZE), None, 6)
    values = 3200 * trunk * (0.8 - 0.5 * lungs + ribs) + 400 * lungs * vessels
    noise = generator.standard_normal(SIZE) * np.sqrt(np.maximum(values, 20)) * 0.25
    return np.clip(values + noise + 150, 0, 4095).astype(np.uint16)


def run_lengths(pixels: np.ndarray) -> bytes:
    return RLELosslessEncoder.encode(
        pixels.tobytes(),
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=16,
        bits_stored=12,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )


ENCODERS = {
    "JPEG lossless": ("1.2.840.10008.1.2.4.70", lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=12)),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", imagecodecs.htj2k_encode),
    "JPEG 2000": (
        "1.2.840.10008.1.2.4.90",
        lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k", reversible=True, bitspersample=12),
    ),
    "RLE": (RLELossless, run_lengths),
}


def write_film(path: Path, pixels: np.ndarray, syntax: str, frame: bytes) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["bench"])
    dataset.PatientID, dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "1", "DX", "CHEST", "PA"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = encapsulate([frame])
    dataset.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_compressed_film_to_its_stored_integers_against_pydicom(tmp_path: Path, name: str) -> None:
    syntax, encode = ENCODERS[name]
    pixels = film()
    frame = encode(pixels)
    write_film(tmp_path / "film.dcm", pixels, syntax, frame)
    rules = index.Rules(("DX",), ("CHEST",), ("PA",), "exclude")
    rows, _ = read_headers(index.find_files(tmp_path, None), tmp_path, "root", None, rules, 1, lambda _: None)
    row = rows.row(0, named=True)

    def ours() -> np.ndarray:
        return codecs.decode(row, codecs.read_value(row, tmp_path / "film.dcm"))

    def theirs(plugin: str = "") -> np.ndarray:
        return pixel_array(pydicom.dcmread(tmp_path / "film.dcm"), decoding_plugin=plugin)

    assert np.array_equal(ours(), pixels)
    assert np.array_equal(theirs(), pixels)
    decoder = get_decoder(pydicom.uid.UID(syntax))
    for number, plugin in enumerate(decoder._available):  # in the order in which pydicom tries them
        used = f"pydicom with {plugin}, its {'own choice' if number == 0 else 'alternative'}"
        what = f"{name} at {pixels.nbytes / len(frame):.1f} to 1, {used}, against ours"
        tell(what, *in_turn(partial(theirs, plugin), ours, repeats=9))
