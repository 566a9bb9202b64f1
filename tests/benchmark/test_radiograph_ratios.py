"""Film to model input against the plain way. `make bench` prints the ratios; nothing here passes or fails by the clock.

The plain way: pydicom's pixel_array, percentiles of all pixels in float64, skimage.transform.resize with its defaults
for shrinking (order=1, anti_aliasing=True).
"""

from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pydicom
import pytest
from films import read_headers
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from ratios import in_turn, tell
from skimage.transform import resize

from cohort_scorer.imaging import index, radiograph

WINDOW = {"WindowCenter": "2000", "WindowWidth": "3000"}


def write_film(path: Path, **attributes: str) -> None:
    """A 2500 x 2048 film of 12 bits: a smooth body with the noise of a detector."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["bench"])
    dataset.PatientID, dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "1", "DX", "CHEST", "PA"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 2500, 2048, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = "MONOCHROME1"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    y, x = np.mgrid[-1:1:2500j, -1:1:2048j]
    body = 3500 * np.exp(-(y**2) - 3 * x**2) + np.random.default_rng(1).normal(0, 30, x.shape)
    dataset.PixelData = body.clip(0, 4095).astype(np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def row_of(folder: Path) -> dict[str, object]:
    rules = index.Rules(("DX",), ("CHEST",), ("PA",), "exclude")
    files: pl.DataFrame = index.find_files(folder, None)
    return read_headers(files, folder, "root", None, rules, 1, lambda _: None)[0].row(0, named=True)


def plainly(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset).astype(np.float64)
    low, high = np.percentile(values, (1, 99))
    return 1 - resize(np.clip((values - low) / (high - low), 0, 1), (512, 419))


@pytest.mark.parametrize("window", [{}, WINDOW], ids=["no window", "a window"])
def test_uncompressed_film_to_model_input(tmp_path: Path, window: dict[str, str]) -> None:
    cv2.setNumThreads(1)
    write_film(tmp_path / "film.dcm", **window)
    row = row_of(tmp_path)
    difference = np.abs(radiograph.read(row, tmp_path, 512).image[:, 46:465] / 65535 - plainly(tmp_path / "film.dcm"))
    assert np.median(difference) < 0.02, "both show one film"
    tell(
        f"film to model input, {'a' if window else 'no'} window, pydicom + float64 percentiles + skimage against ours",
        *in_turn(lambda: plainly(tmp_path / "film.dcm"), lambda: radiograph.read(row, tmp_path, 512), repeats=9),
    )
