"""Simulated films as DICOM files, in the variety that archives have. Knows no calcium score and no outcome."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cohort_scorer.simulation import phantom
from cohort_scorer.simulation.patients import DAYS_PER_YEAR, FATES_OF_FILMS, ORDINARY, Patients

Stored: TypeAlias = NDArray[np.uint16]

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
VENDORS = {"internal": ("Northlight", "NL-400", "DX"), "external": ("Kestrel Medical", "Vista 7", "CR")}
BITS_STORED = {"internal": (12, 14), "external": (10, 12, 16)}
SHARE_MONOCHROME1 = {"internal": 0.2, "external": 0.5}
SOP_CLASSES = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
}
SHARE_AP, SHARE_WITH_LATERAL, SHARE_VIEW_IN_DESCRIPTION = 0.12, 0.10, 0.05
# Files that an archive holds and a study cannot use, each once for so many patients and at least once.
PATIENTS_PER_NUISANCE = 150
NUISANCES = (
    "web_page",
    "truncated_header",
    "hand",
    "computed_tomography",
    "duplicate",
    "without_patient_id",
    "without_extension",
)
# Every other unreadable film has a sound header and its full size: only who decodes it finds out.
BROKEN_STREAM = "broken_stream"
_BROKEN_BYTES = 64  # the whole frame header of a JPEG-LS stream
_WEB_PAGE = b"<!DOCTYPE html><html><head><title>504 Gateway Time-out</title></head><body></body></html>\n"
_TRUNCATED_HEADER_BYTES = 200  # within the file meta information
_IMPLEMENTATION = "2.25.206941587245961034583276190358219203851"


@dataclass(frozen=True)
class Film:
    """One file of the archive, before it is drawn.

    Attributes:
        day: Study date in days since 1970-01-01.
        picture: What the pixels show.
        view: PA, AP or LATERAL.
        told_by: Where the header states the view.
        flaw: What is wrong with the file, a name of NUISANCES, a fate of films or BROKEN_STREAM; else empty.
    """

    day: int
    picture: Literal["frontal", "lateral", "hand", "axial"] = "frontal"
    view: str = "PA"
    told_by: Literal["view_position", "series_description", "nothing"] = "view_position"
    flaw: str = ""


def plan_films(patients: Patients, rng: np.random.Generator) -> list[list[Film]]:
    """Decides which files each patient has.

    Args:
        patients: The cohort.
        rng: Where all randomness comes from.

    Returns:
        One list per patient; the film that pairs with the CT first, where there is one.
    """
    draws = rng.random((len(patients), 4))
    plans = [_plan_patient(patients, i, draws[i]) for i in range(len(patients))]
    ordinary = rng.permutation(np.flatnonzero(patients.fate == ORDINARY))
    times = max(1, len(patients) // PATIENTS_PER_NUISANCE)
    for flaw, chosen in zip(np.repeat(NUISANCES, times), np.resize(ordinary, times * len(NUISANCES)), strict=True):
        films = plans[chosen]
        if flaw == "without_extension":
            films[0] = replace(films[0], flaw=flaw)
        elif flaw == "hand":
            films.append(Film(films[0].day, picture="hand", flaw=flaw))
        elif flaw == "computed_tomography":
            films.append(Film(int(patients.ct[chosen]), picture="axial", told_by="nothing", flaw=flaw))
        else:
            films.append(replace(films[0], flaw=str(flaw)))
    for i in np.flatnonzero(patients.fate == "unreadable_film")[1::2]:
        plans[i][0] = replace(plans[i][0], flaw=BROKEN_STREAM)
    return plans


def write_films(folder: Path, patients: Patients, i: int, films: list[Film], seed: np.random.SeedSequence) -> None:
    """Writes the files of one patient.

    Args:
        folder: The archive; files go to `<folder>/<site>/<patient>/<number>.dcm`.
        patients: The cohort.
        i: Position of the patient.
        films: What `plan_films` decided for this patient.
        seed: This patient's own, so that neither order nor workers change a byte.
    """
    rng = np.random.default_rng(seed)
    age = float(patients.age_at_t0_years[i])
    anatomy = phantom.draw_anatomy(
        age_years=age,
        male=bool(patients.male[i]),
        body=float(patients.body[i]),
        vascular=float(patients.vascular[i]),
        device=bool(patients.flags["cardiac_device"][i]),
        wires=bool(patients.flags["prior_cabg"][i]),
        rng=rng,
    )
    home = folder / str(patients.site[i]) / patients.patient_id[i]
    for number, film in enumerate(films, start=1):
        home.mkdir(parents=True, exist_ok=True)
        path = home / (f"{number}" if film.flaw == "without_extension" else f"{number}.dcm")
        if film.flaw == "web_page":
            path.write_bytes(_WEB_PAGE)
        elif film.flaw == "duplicate":
            path.write_bytes(next(home.glob("1*")).read_bytes())
        else:
            _write_film(path, patients, i, film, anatomy, rng)


def encode(stored: Stored, bits_stored: int, syntax: str) -> bytes:
    """Compresses one frame without loss.

    Args:
        stored: Shape (rows, columns), values below 2**bits_stored.
        bits_stored: 2 to 16.
        syntax: UID of an encapsulated syntax of SYNTAXES.

    Returns:
        The codestream, without DICOM's item headers.
    """
    if syntax == JPEG2000Lossless:
        return bytes(
            imagecodecs.jpeg2k_encode(stored, level=0, reversible=True, codecformat="j2k", bitspersample=bits_stored)
        )
    if syntax == JPEGLosslessSV1:
        return bytes(imagecodecs.jpeg8_encode(stored, lossless=True, predictor=1, bitspersample=bits_stored))
    if syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(stored))
    return _encode_rle(stored)


def _plan_patient(patients: Patients, i: int, draws: NDArray[np.float64]) -> list[Film]:
    """One patient's films, without the archive's nuisances; `draws` are four uniform numbers."""
    fate, day = str(patients.fate[i]), int(patients.film[i])
    if fate == "without_film":
        return []
    lateral = Film(day, picture="lateral", view="LATERAL")
    if fate == "lateral_only":
        return [replace(lateral, flaw=fate)]
    pair = Film(day, view="AP" if draws[0] < SHARE_AP else "PA")
    if fate == "unknown_view":
        pair = replace(pair, told_by="nothing", flaw=fate)
    elif fate in FATES_OF_FILMS:
        pair = replace(pair, flaw=fate)
    elif draws[1] < SHARE_VIEW_IN_DESCRIPTION:
        pair = replace(pair, told_by="series_description")
    films = [pair]
    if patients.extra_film[i] >= 0:
        films.append(Film(int(patients.extra_film[i]), view="AP" if draws[2] < SHARE_AP else "PA"))
    if draws[3] < SHARE_WITH_LATERAL:
        films.append(lateral)
    return films


def _write_film(
    path: Path, patients: Patients, i: int, film: Film, anatomy: phantom.Anatomy, rng: np.random.Generator
) -> None:
    """Draws, encodes and writes one DICOM file, and then breaks it where it should be broken."""
    site = str(patients.site[i])
    syntax = str(rng.choice(SYNTAXES))
    if film.flaw == "unreadable_film":
        syntax = str(ExplicitVRLittleEndian)  # some decoders return a picture for half a compressed stream
    elif film.flaw == BROKEN_STREAM:
        syntax = str(JPEGLSLossless)
    bits_stored = 12 if film.picture == "axial" else int(rng.choice(BITS_STORED[site]))
    inverted = film.picture != "axial" and bool(rng.random() < SHARE_MONOCHROME1[site])
    rows = int(rng.integers(224, 353))
    shape = (rows, int(rows * rng.uniform(0.80, 1.0)))
    grey = _draw(film, anatomy, shape, rng)
    # Detectors seldom use their whole range.
    low, high = rng.uniform(0.0, 0.08), rng.uniform(0.85, 1.0)
    grey = low + (high - low) * (1 - grey if inverted else grey)
    stored = np.round(grey * (2**bits_stored - 1)).astype(np.uint16)

    dataset = _describe(patients, i, film, path.stem, rng)
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = 0
    spacing = round(400 / rows, 4)
    if rng.random() < 0.5:
        dataset.PixelSpacing = [spacing, spacing]
    else:
        dataset.ImagerPixelSpacing = [spacing, spacing]
    if film.picture == "axial":
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
    elif rng.random() < 0.3:
        dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-50"
    encapsulated = syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    stream = encode(stored, bits_stored, syntax) if encapsulated else b""
    if film.flaw == BROKEN_STREAM:
        stream = bytes(_BROKEN_BYTES) + stream[_BROKEN_BYTES:]
    dataset.PixelData = encapsulate([stream]) if encapsulated else stored.tobytes()
    dataset["PixelData"].VR = "OB" if encapsulated else "OW"
    dataset["PixelData"].is_undefined_length = encapsulated

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.ImplementationClassUID = _IMPLEMENTATION
    dataset.file_meta.ImplementationVersionName = "SIMULATED"
    dataset.save_as(path, enforce_file_format=True)
    if film.flaw == "unreadable_film":
        path.write_bytes(path.read_bytes()[: -stored.nbytes // 2])
    elif film.flaw == "truncated_header":
        path.write_bytes(path.read_bytes()[:_TRUNCATED_HEADER_BYTES])


def _draw(film: Film, anatomy: phantom.Anatomy, shape: tuple[int, int], rng: np.random.Generator) -> phantom.Picture:
    """The film's picture, white bone on black air."""
    if film.picture == "hand":
        return phantom.hand(shape, rng)
    if film.picture == "axial":
        return phantom.axial(shape, rng)
    if film.picture == "lateral":
        return phantom.lateral(anatomy, shape, rng)
    return phantom.frontal(anatomy, shape, rng, supine=film.view == "AP")


def _describe(patients: Patients, i: int, film: Film, name: str, rng: np.random.Generator) -> Dataset:
    """The header without pixels; `name` tells the patient's files apart."""
    manufacturer, model, modality = VENDORS[str(patients.site[i])]
    if film.picture == "axial":
        modality = "CT"
    identity = f"{patients.patient_id[i]}|{film.day}|{rng.integers(2**62)}"
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["DERIVED", "PRIMARY", ""]
    dataset.SOPClassUID = SOP_CLASSES[modality]
    dataset.SOPInstanceUID = _uid(f"{identity}|{name}")
    dataset.StudyInstanceUID = _uid(identity)
    dataset.SeriesInstanceUID = _uid(f"{identity}|series")
    dataset.StudyDate = _date(film.day)
    seconds = int(rng.integers(7 * 3600, 19 * 3600))
    dataset.AcquisitionTime = f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"
    dataset.AccessionNumber = f"{int(rng.integers(10**9)):09d}"
    dataset.Modality = modality
    if modality == "DX":
        dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer, dataset.ManufacturerModelName = manufacturer, model
    dataset.PatientID = "" if film.flaw == "without_patient_id" else patients.patient_id[i]
    dataset.PatientSex = "M" if patients.male[i] else "F"
    dataset.PatientAge = f"{int((film.day - patients.birth[i]) / DAYS_PER_YEAR):03d}Y"
    dataset.BodyPartExamined = "HAND" if film.picture == "hand" else "CHEST"
    if modality != "CT":
        dataset.ViewPosition = {"LATERAL": "LL"}.get(film.view, film.view) if film.told_by == "view_position" else ""
    if film.told_by == "series_description":
        dataset.SeriesDescription = f"Chest {film.view}"
    elif rng.random() < 0.5:
        dataset.SeriesDescription = "Radiograph"
    dataset.StudyID = ""
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    return dataset


def _encode_rle(stored: Stored) -> bytes:
    """DICOM's run-length encoding (PS3.5 annex G): one PackBits segment per byte plane, the high bytes first."""
    planes = [(stored >> 8).astype(np.uint8), (stored & 255).astype(np.uint8)]
    segments = [bytes(imagecodecs.packbits_encode(plane, axis=-1)) for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    header = np.zeros(16, dtype="<u4")
    header[:3] = [2, 64, 64 + len(segments[0])]
    return header.tobytes() + b"".join(segments)


def _uid(text: str) -> str:
    """A UID in the 2.25 arc (PS3.5 B.2) that depends on the text alone."""
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"


def _date(day: int) -> str:
    """A day since 1970-01-01 as DICOM writes it."""
    return str(np.datetime64(day, "D")).replace("-", "")
