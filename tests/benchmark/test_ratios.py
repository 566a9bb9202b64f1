"""Ratios measured within one run; `make bench` prints them. Nothing here passes or fails by the clock."""

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import polars as pl
import pydicom
from lifelines import CoxPHFitter
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from cohort_scorer import study as study_file
from cohort_scorer.imaging import index, radiograph
from cohort_scorer.simulation.study import write_study
from cohort_scorer.stages import Machine, Silent
from cohort_scorer.stages.index import index as index_step
from cohort_scorer.statistics import cox


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of several runs after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def tell(what: str, slow: float, fast: float) -> None:
    print(f"\n{what}: {slow / fast:.1f} x ({slow * 1e3:.1f} ms against {fast * 1e3:.1f} ms)")
    assert fast > 0


def write_film(path: Path) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["bench"])
    dataset.PatientID, dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "1", "DX", "CHEST", "PA"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 2500, 2048, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    pixels = np.random.default_rng(1).integers(0, 4096, (2500, 2048), dtype=np.uint16)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_uncompressed_film_to_model_input_against_pydicom_and_float64(tmp_path: Path) -> None:
    write_film(tmp_path / "film.dcm")
    rules = index.Rules(("DX",), ("CHEST",), ("PA",), "exclude")
    files = index.find_files(tmp_path, None).with_columns(root=pl.lit("root"))
    ((rows, _),) = index.read_headers(files, {"root": tmp_path}, None, rules, 1, lambda _: None)
    row = rows.row(0, named=True)

    def naive() -> object:
        values = pydicom.dcmread(tmp_path / "film.dcm").pixel_array.astype(np.float64)
        low, high = np.percentile(values, (1, 99))
        return cv2.resize(np.clip((values - low) / (high - low), 0, 1), (512, 512), interpolation=cv2.INTER_AREA)

    tell(
        "film to model input, pydicom + float64 percentiles + resize against ours",
        seconds(naive, 5),
        seconds(lambda: radiograph.read(row, tmp_path, 512), 5),
    )


def test_second_index_against_the_first(tmp_path: Path) -> None:
    study = study_file.load(write_study(tmp_path / "study", n_patients=400, seed=1))
    started = time.perf_counter()
    index_step(study, Machine(), Silent())
    first = time.perf_counter() - started
    tell("index of an archive, first against second", first, seconds(lambda: index_step(study, Machine(), Silent()), 3))


def test_cox_of_100_000_patients_against_lifelines() -> None:
    generator = np.random.default_rng(2)
    covariates = generator.standard_normal((100_000, 5))
    time_days = np.ceil(generator.exponential(2_000 * np.exp(-covariates @ np.array([0.3, -0.2, 0.1, 0.0, 0.4]))))
    event = generator.random(100_000) < 0.3
    frame = pd.DataFrame(covariates, columns=list("abcde")).assign(time=time_days, event=event)
    slow = seconds(lambda: CoxPHFitter().fit(frame, "time", "event"), 1)
    tell(
        "Cox, 5 covariates, 100,000 patients, lifelines against ours",
        slow,
        seconds(lambda: cox.fit(time_days, event, covariates), 3),
    )


def test_link_of_100_000_patients(tmp_path: Path) -> None:
    """Scale, as the ratio of 100,000 to 10,000 patients: 10 is linear."""
    from cohort_scorer.cohort import pairing

    def linked(n: int) -> float:
        tables = write_study(tmp_path / str(n), n_patients=n, seed=1, images=False).parent / "tables"
        scores = pl.read_csv(tables / "scores.csv", infer_schema=False, try_parse_dates=True)
        scores = scores.with_columns(pl.col("study_date").cast(pl.String).str.to_date())
        films = scores.select(
            "patient_id",
            pl.format("{} {}", "patient_id", "study_date").alias("image_id"),
            pl.lit("").alias("uri"),
            "study_date",
            pl.lit(None, pl.String).alias("acquisition_time"),
            pl.lit(None, pl.String).alias("site"),
            pl.lit(60.0).alias("age_years"),
            pl.lit("F").alias("sex"),
            pl.lit(True).alias("is_radiograph"),
            pl.lit(True).alias("is_eligible"),
        )
        cacs = pl.read_csv(
            tables / "cacs.csv", schema={"patient_id": pl.String, "ct_date": pl.Date, "cacs": pl.Float64}
        )
        rules = pairing.Rules(180, "nearest", 18, (), ())
        names = ("CAC 0", "CAC 1-99", "CAC 100-399", "CAC 400+")
        return seconds(lambda: pairing.link(films, cacs, None, None, rules, names), 3)

    tell("link of 100,000 against 10,000 patients", linked(100_000), linked(10_000))
