"""The maps of docs/tables.md, as they stand there, on tables in the layouts that they are for."""

import gzip
import re
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer.study import Study
from cohort_scorer.table_map import TableMap

PAGE = Path(__file__).parents[2] / "docs" / "tables.md"
REAL = Path(__file__).parents[3] / "shared" / "realdata" / "png"
HEADERS = REAL / "mlmed+torchxrayvision" / "torchxrayvision" / "data"
on_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the real files lie outside the project")


def documented(heading: str) -> dict[str, Any]:
    """The study file below a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f" {heading}\n", 1)[1]
    found = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    assert found
    return tomllib.loads(found[1])


def read(path: Path, heading: str, name: str, out: Path, faulty_rows: str = "stop") -> pl.DataFrame:
    mapping = TableMap.model_validate(documented(heading)["tables"]["map"][name])
    return schemas.read(path, name, faulty_rows, out, mapping)


def test_every_study_file_on_the_page_is_valid() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 8
    for block in blocks:
        Study.model_validate({"study": {"title": "x"}, **tomllib.loads(block), "\0file": Path("study.toml")})


MIMIC = """\
dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime
02aa804e-bde0afdd,10000032,50414267,CHEST (PA AND LAT),PA,3056,2544,21800506,213014.531
174413ec-4ec4c1f7,10000032,50414267,CHEST (PA AND LAT),LATERAL,3056,2544,21800506,213014.531
2a2277a9-b0ded155,10000032,53189527,CHEST (PORTABLE AP),,3056,2544,21800626,165500.312
e084de3b-be89b11e,10000980,53911762,CHEST (PORTABLE AP),LL,2705,2539,21800723,80556.875
"""
CHEXPERT = """\
Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding
CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0
CheXpert-v1.0-small/train/patient00002/study2/view2_lateral.jpg,Female,87,Lateral,,
CheXpert-v1.0-small/train/patient00003/study1/view1_frontal.jpg,Male,90,Frontal,LL,
"""
NIH = """\
Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height]
00000001_000.png,Cardiomegaly,0,1,58,M,PA,2682,2749
00000002_000.png,No Finding,0,2,81,M,AP,2500,2048
"""


def test_mimic_cxr(tmp_path: Path) -> None:
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(MIMIC.encode()))
    found = read(tmp_path / "m.csv.gz", "MIMIC-CXR-JPG", "listing", tmp_path)
    assert found["uri"][0] == "files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg"
    assert found["view"].to_list() == ["PA", "LATERAL", None, "LATERAL"]
    assert found.select("patient_id", "study_id", "study_date").row(3) == ("10000980", "53911762", date(2180, 7, 23))


def test_chexpert(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(CHEXPERT)
    found = read(tmp_path / "train.csv", "CheXpert", "listing", tmp_path)
    assert found["patient_id"].to_list() == ["patient00001", "patient00002", "patient00003"]
    assert found["study_id"][1] == "patient00002/study2"
    assert found["view"].to_list() == ["AP", "LATERAL", "LATERAL"]
    assert found["study_date"].null_count() == 3


def test_nih(tmp_path: Path) -> None:
    (tmp_path / "nih.csv").write_text(NIH)
    found = read(tmp_path / "nih.csv", "NIH ChestX-ray14", "listing", tmp_path)
    assert found.select("uri", "patient_id", "view").rows() == [
        ("00000001_000.png", "1", "PA"),
        ("00000002_000.png", "2", "AP"),
    ]


@on_real_files
def test_rsna_headers(tmp_path: Path) -> None:
    path = HEADERS / "kaggle_stage_2_train_images_dicom_headers.csv.gz"
    found = read(path, "RSNA Pneumonia Detection (headers as a table)", "listing", tmp_path)
    assert len(found) == found["patient_id"].n_unique() == 26_684
    assert set(found["view"]) == {"AP", "PA"}


@on_real_files
def test_open_i_headers(tmp_path: Path) -> None:
    path = HEADERS / "nlmcxr_dicom_metadata.csv.gz"
    found = read(path, "Open-i (headers as a table)", "listing", tmp_path)
    assert len(found) == 7_469
    assert not found["uri"].str.starts_with("./").any()
    assert found["study_date"].null_count() == 0
    assert found["view"].drop_nulls().unique().sort().to_list() == ["AP", "LATERAL", "PA"]


@on_real_files
def test_ml_workgroup(tmp_path: Path) -> None:
    path, heading = (
        REAL / "ml-workgroup+covid-19-image-repository" / "data.csv",
        "ml-workgroup COVID-19 image repository",
    )
    films = read(path, heading, "listing", tmp_path)
    people = read(path, heading, "clinical", tmp_path)
    seen = read(path, heading, "follow_up", tmp_path)
    events = read(path, heading, "events", tmp_path)
    assert (len(films), len(people), len(seen), len(events)) == (30, 7, 7, 4)
    assert (set(events["event_type"]), set(people["sex"])) == ({"icu_admission"}, {"F", "M"})


@on_real_files
def test_covid_chestxray(tmp_path: Path) -> None:
    path = REAL / "hida6+covid-chestxray-dataset" / "metadata.csv"
    films = read(path, "covid-chestxray-dataset", "listing", tmp_path)
    people = read(path, "covid-chestxray-dataset", "clinical", tmp_path)
    assert (len(films), len(people)) == (17, 6)
    assert films["view"].value_counts().sort("view").rows() == [("AP", 11), ("PA", 6)]
    assert films["study_date"].min() == date(2099, 12, 5)
