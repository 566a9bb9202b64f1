import hashlib
import json
import os
import tomllib
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import polars as pl
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.errors import InvalidDicomError
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from cohort_scorer import schemas
from cohort_scorer import study as study_file
from cohort_scorer.errors import MachineError
from cohort_scorer.simulation import films, phantom
from cohort_scorer.simulation.patients import (
    BLANKING_DAYS,
    FATES,
    FATES_OF_FILMS,
    MAXIMUM_DAYS_BETWEEN,
    ORDINARY,
    Patients,
    agatston,
    category_cuts,
    draw_outcomes,
    draw_patients,
    expected_prevalence,
)
from cohort_scorer.simulation.study import write_study

N_PATIENTS = 105  # enough for one of each fate and of each nuisance


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), n_patients=N_PATIENTS, seed=7).parent


@pytest.fixture(scope="module")
def patients() -> Patients:
    return draw_patients(20_000, np.random.default_rng(3), FATES | FATES_OF_FILMS)


def read_header(path: Path) -> Dataset | None:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except (InvalidDicomError, EOFError, AttributeError, OSError):
        return None


def is_film(header: Dataset) -> bool:
    return header.get("Modality") in ("CR", "DX") and header.BodyPartExamined == "CHEST"


def test_the_seed_alone_decides_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path / "many", n_patients=120, seed=4)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    write_study(tmp_path / "one", n_patients=120, seed=4)
    write_study(tmp_path / "other", n_patients=120, seed=5)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert contents(tmp_path / "many")["tables/cacs.csv"] != contents(tmp_path / "other")["tables/cacs.csv"]


def test_tables_without_images_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_study(tmp_path / name, n_patients=500, seed=9, images=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not (tmp_path / "a" / "archive").exists()


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(MachineError) as refusal:
        write_study(tmp_path, n_patients=5, seed=1)
    assert len(str(refusal.value).splitlines()) == 3
    assert contents(tmp_path).keys() == {"precious.txt"}


def test_progress_counts_every_patient(tmp_path: Path) -> None:
    steps: list[int] = []
    write_study(tmp_path / "with", n_patients=6, seed=1, advance=steps.append)
    write_study(tmp_path / "without", n_patients=6, seed=1, images=False, advance=steps.append)
    assert sum(steps) == 12


@pytest.mark.parametrize("images", [True, False])
def test_the_study_file_and_tables_are_accepted(tmp_path: Path, images: bool) -> None:
    study = study_file.load(write_study(tmp_path / "study", n_patients=150, seed=2, images=images))
    assert study.study.simulated
    assert (study.archive is None) == (not images)
    for name in ("cacs", "clinical", "follow_up", "events", *([] if images else ["scores"])):
        schemas.read(study.folder / getattr(study.tables, name), name, "stop", tmp_path)


def test_every_file_of_the_archive_is_accounted_for(archive: Path) -> None:
    planted = json.loads((archive / "truth.json").read_text())["planted"]["films"]
    paths = sorted(path for path in (archive / "archive").rglob("*") if path.is_file())
    headers = {path: read_header(path) for path in paths}
    known = [header for header in headers.values() if header is not None]
    sound = [header for header in known if is_film(header)]
    seen = {
        "files": len(paths),
        "web_page": sum(path.read_bytes().startswith(b"<!DOCTYPE") for path in paths),
        "truncated_header": sum(path.stat().st_size == 200 for path in paths),
        "hand": sum(header.get("BodyPartExamined") == "HAND" for header in known),
        "computed_tomography": sum(header.get("Modality") == "CT" for header in known),
        "duplicate": sum(n - 1 for n in Counter(path.read_bytes() for path in paths).values() if n > 1),
        "without_patient_id": sum(not header.PatientID for header in sound),
        "without_extension": sum(not path.suffix for path in paths),
        "lateral": sum(header.ViewPosition == "LL" for header in sound),
    }
    seen["duplicate"] -= max(0, seen["web_page"] - 1)  # pages are alike too
    assert seen == {name: planted[name] for name in seen}
    unspoken = [header for header in sound if not header.ViewPosition]
    described = sum("PA" in header.get("SeriesDescription", "") for header in unspoken)
    described += sum("AP" in header.get("SeriesDescription", "") for header in unspoken)
    assert described >= planted["view_in_series_description_only"]
    assert len(unspoken) - described == planted["unknown_view"]


def test_pixels_of_unreadable_films_are_missing_and_of_others_are_whole(archive: Path) -> None:
    planted = json.loads((archive / "truth.json").read_text())["planted"]["films"]
    short = 0
    for path in (archive / "archive").rglob("*"):
        dataset = pydicom.dcmread(path, force=True) if path.is_file() and read_header(path) else None
        if dataset is not None and "PixelData" in dataset and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            short += len(dataset.PixelData) < 2 * dataset.Rows * dataset.Columns
    assert short == planted["unreadable_film"]


def test_films_come_in_the_variety_of_real_archives(archive: Path) -> None:
    headers = []
    for path in (archive / "archive").rglob("*"):
        header = read_header(path) if path.is_file() else None
        if header is not None and is_film(header):
            headers.append(header)
    assert {header.file_meta.TransferSyntaxUID for header in headers} == set(films.SYNTAXES)
    assert {header.BitsStored for header in headers} == {10, 12, 14, 16}
    assert {header.PhotometricInterpretation for header in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert {header.Manufacturer for header in headers} == {vendor for vendor, _, _ in films.VENDORS.values()}


def test_patients_in_the_archive_keep_their_leading_zeros(archive: Path) -> None:
    clinical = pl.read_csv(archive / "tables" / "clinical.csv", schema_overrides={"patient_id": pl.String})
    folders = {path.name for site in ("internal", "external") for path in (archive / "archive" / site).iterdir()}
    assert folders <= set(clinical["patient_id"])
    assert all(name.startswith("00") for name in folders)


@pytest.mark.parametrize("bits_stored", [10, 12, 14, 16])
@pytest.mark.parametrize(
    ("syntax", "decode"),
    [
        (JPEG2000Lossless, imagecodecs.jpeg2k_decode),
        (JPEGLosslessSV1, imagecodecs.jpeg8_decode),
        (JPEGLSLossless, imagecodecs.jpegls_decode),
    ],
)
def test_compression_is_lossless(bits_stored, syntax, decode) -> None:
    stored = np.random.default_rng(0).integers(0, 2**bits_stored, (31, 45)).astype(np.uint16)
    assert np.array_equal(decode(films.encode(stored, bits_stored, syntax)), stored)


@pytest.mark.parametrize("shape", [(31, 45), (16, 16)])
def test_pydicom_reads_our_run_length_encoding(shape) -> None:
    stored = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    stored[:4] = 7  # runs, as well as noise
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = encapsulate([films.encode(stored, 16, RLELossless)])
    assert np.array_equal(dataset.pixel_array, stored)
    assert get_frame(dataset.PixelData, 0, number_of_frames=1)[:4] == b"\x02\0\0\0"


def test_a_phantom_is_grey_levels_and_a_lateral_is_another_picture() -> None:
    rng = np.random.default_rng(1)
    person = phantom.draw_anatomy(
        age_years=60.0, male=False, body=0.0, vascular=0.0, device=False, wires=False, rng=rng
    )
    frontal, lateral = phantom.frontal(person, (220, 200), rng), phantom.lateral(person, (220, 200), rng)
    assert frontal.shape == lateral.shape == (220, 200)
    assert frontal.dtype == lateral.dtype == np.float32
    assert frontal.min() >= 0 and frontal.max() <= 1
    assert np.corrcoef(frontal.ravel(), lateral.ravel())[0, 1] < 0.8
    lungs, spine = frontal[70:140, 45:75], frontal[70:140, 92:108]
    assert lungs.mean() < spine.mean() - 0.3


def test_vascular_ageing_widens_heart_and_knob() -> None:
    def mean_anatomy(vascular: float) -> tuple[float, float, float]:
        rng = np.random.default_rng(1)
        people = [
            phantom.draw_anatomy(
                age_years=60.0, male=True, body=0.0, vascular=vascular, device=False, wires=False, rng=rng
            )
            for _ in range(50)
        ]
        return tuple(np.mean([[p.heart_width, p.knob_radius, p.arc] for p in people], axis=0))  # type: ignore[return-value]

    assert all(old > young for old, young in zip(mean_anatomy(1.5), mean_anatomy(-1.5), strict=True))


def test_scores_are_zero_inflated_and_log_normal() -> None:
    z = np.random.default_rng(0).standard_normal(400_000)
    cacs = agatston(z)
    assert (cacs == 0).mean() == pytest.approx(0.45, abs=0.005)
    assert np.log(cacs[cacs > 0]).std() == pytest.approx(1.9, abs=0.03)
    cuts = category_cuts()
    for cut, threshold in zip(cuts[1:], (100, 400), strict=True):
        assert ((cacs >= threshold) == (z > cut)).mean() > 0.999  # scores are rounded to one decimal


def test_prevalences_are_those_of_a_chest_pain_cohort(patients: Patients) -> None:
    realised = np.bincount(patients.category, minlength=4) / len(patients)
    assert np.allclose(realised, [0.45, 0.30, 0.14, 0.11], atol=0.015)
    assert np.allclose(expected_prevalence(patients), realised, atol=0.012)


def test_calcium_rises_with_age_and_is_commoner_in_men(patients: Patients) -> None:
    older = patients.age_at_t0_years > 65
    assert patients.cacs[older].mean() > 1.5 * patients.cacs[~older].mean()
    assert (patients.cacs > 0)[patients.male].mean() > (patients.cacs > 0)[~patients.male].mean() + 0.1


def test_extra_scans_never_replace_the_pair(patients: Patients) -> None:
    apart = np.abs(patients.film - patients.ct)
    filmed, scanned = patients.extra_film >= 0, patients.extra_ct >= 0
    assert filmed.any() and scanned.any()
    assert (np.abs(patients.extra_film - patients.ct)[filmed] > apart[filmed]).all()
    first_film = np.where(filmed, np.minimum(patients.extra_film, patients.film), patients.film)
    assert ((first_film - patients.extra_ct)[scanned] > MAXIMUM_DAYS_BETWEEN).all()
    outside = patients.fate == "ct_outside_window"
    assert (apart[outside] > MAXIMUM_DAYS_BETWEEN).all() and (apart[~outside] <= MAXIMUM_DAYS_BETWEEN).all()


def test_fates_do_not_depend_on_calcium(patients: Patients) -> None:
    ordinary = patients.fate == ORDINARY
    assert abs(patients.propensity[ordinary].mean() - patients.propensity[~ordinary].mean()) < 0.1


def test_blanking_never_drops_a_major_event(patients: Patients) -> None:
    outcomes = draw_outcomes(patients, np.random.default_rng(5))
    events = pl.DataFrame({"patient": outcomes.patient, "type": outcomes.event_type, "date": outcomes.event_date})
    events = events.with_columns(
        pl.Series("t0", patients.t0[outcomes.patient]), pl.Series("ct", patients.ct[outcomes.patient])
    ).filter(pl.col("date") > pl.col("t0"))
    blanked = (pl.col("type") == "revascularization") & (pl.col("date") - pl.col("ct") <= BLANKING_DAYS)
    infarctions = events.filter(pl.col("type") == "myocardial_infarction").select("patient", infarction="date")
    early = events.filter(blanked).join(infarctions, on="patient", how="left")
    # The blanked are the planted ones, and stents put in within days of an infarction that counts by itself.
    alone = early.filter(~(pl.col("date") - pl.col("infarction")).is_between(0, 9).fill_null(False))
    assert alone["patient"].n_unique() <= outcomes.planted["revascularizations_within_blanking"]


def test_nothing_happens_on_the_day_of_t0_or_after_death(patients: Patients) -> None:
    outcomes = draw_outcomes(patients, np.random.default_rng(5))
    assert (outcomes.last_contact > patients.t0).all()
    deaths = np.char.endswith(outcomes.event_type, "_death")
    registered_late = outcomes.event_date > outcomes.last_contact[outcomes.patient]
    assert registered_late.sum() == outcomes.planted["events_after_last_contact"]
    on_time = deaths & ~registered_late
    assert (outcomes.event_date[on_time] == outcomes.last_contact[outcomes.patient[on_time]]).all()
    assert np.bincount(outcomes.patient[deaths]).max() == 1


def test_truth_is_labelled_simulated_and_counts_every_patient(archive: Path) -> None:
    truth = json.loads((archive / "truth.json").read_text())
    assert truth["simulated"] is True
    assert sum(truth["planted"]["patients"].values()) == truth["n_patients"] == N_PATIENTS
    assert sum(truth["prevalences"]["realised"].values()) == pytest.approx(1)
    assert set(truth["planted"]["patients"]) == {*FATES, *FATES_OF_FILMS, ORDINARY}
    study = tomllib.loads((archive / "study.toml").read_text())
    assert study["outcome"]["components"] == ["cardiac_death", "myocardial_infarction", "revascularization"]
