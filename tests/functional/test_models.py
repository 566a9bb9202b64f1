"""Designs, folds trained apart, recalibration, and bundles that meet their own training patients again."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pydicom
import pytest
from studies import COMMAND, cli, copy, patient_ids, substitute, told

PROBABILITIES = [f"{exposure}_{name}" for exposure in ("cxr", "integrated") for name in ("gt0", "ge100", "ge400")]


def scores(study: Path) -> pl.DataFrame:
    return pl.read_parquet(study / "outputs/patient_level/scores.parquet")


def out_of_fold(study: Path) -> pl.DataFrame:
    return pl.read_parquet(study / "outputs/patient_level/out_of_fold.parquet")


def without_bundle(study: Path) -> Path:
    """What stands before `train`; the key stays, so that the same training gives the same bytes."""
    shutil.rmtree(study / "outputs/model")
    return study


def same_numbers(found: pl.DataFrame, wanted: pl.DataFrame) -> None:
    both = wanted.join(found, on="image_id", suffix="_found")
    assert len(both) == len(wanted)
    for name in PROBABILITIES:
        assert both[name].is_null().equals(both[f"{name}_found"].is_null())
        assert both[f"{name}_found"].drop_nulls().to_numpy() == pytest.approx(both[name].drop_nulls(), abs=1e-5)
    for name in ("cxr_category", "integrated_category"):
        assert (both[name] == both[f"{name}_found"]).fill_null(True).mean() > 0.99  # a probability may lie on a cut


# Training in parts


def test_folds_trained_side_by_side_make_the_bundle_of_one_run(image_study_done: Path, image_study_run: Path) -> None:
    study = without_bundle(image_study_done)
    jobs = [
        subprocess.Popen([*COMMAND, "train", str(study), "--quiet", "--folds", fold, "--workers", "1"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for fold in ("0", "1")
    ]  # fmt: skip
    for job in jobs:
        assert job.wait() == 0, job.communicate()
    assert not (study / "outputs/model").exists()
    left = cli("train", study)
    assert left.code == 0
    assert "Training networks (epochs): 18 of 18" in left.stderr
    for name in ("bundle.json", "out_of_fold.parquet"):
        place = "model" if name == "bundle.json" else "patient_level"
        assert (study / f"outputs/{place}/{name}").read_bytes() == (
            image_study_run / f"outputs/{place}/{name}"
        ).read_bytes()


@pytest.mark.parametrize(("folds", "code"), [("2", 10), ("0,7", 10), ("all", 2), ("-1", 2), ("0,", 2)])
def test_folds_that_are_none_are_told(image_study_done: Path, folds: str, code: int) -> None:
    answer = cli("train", without_bundle(image_study_done), "--folds", folds)
    assert answer.code == code
    assert not (image_study_done / "outputs/model").exists()


def test_out_of_fold_scores_are_those_of_scoring(image_study_run: Path) -> None:
    own = scores(image_study_run).filter(score_origin="oof")
    same_numbers(own, out_of_fold(image_study_run))


# Designs


DESIGNS = {
    "shared": {"design": "shared"},
    "head": {"trainable": "head", "backbone": "../backbone", "epochs": 20},
    "nested": {"stacking": "nested", "folds": 3, "epochs": 1},
    "ensemble": {"members": "folds"},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_trains_and_scores_everybody(image_study_done: Path, image_study_run: Path, design: str) -> None:
    study = without_bundle(image_study_done)
    shutil.rmtree(study / "outputs/patient_level/network_outputs")
    shutil.copytree(image_study_run / "outputs/model/gt0-refit", study.parent / "backbone")
    for key, value in DESIGNS[design].items():
        substitute(study / "study.toml", f"^{key} = .*\n", "") if key in ("folds", "epochs") else None
        section = "model" if key == "members" else "train"
        substitute(study / "study.toml", rf"^\[{section}\]", f"[{section}]\n{key} = {json.dumps(value)}")
    for verb in ("train", "score"):
        answer = cli(verb, study, "--workers", "1")
        assert answer.code == 0, answer.stderr
        counted = re.findall(r": ([\d,]+) of ([\d,]+) in ", answer.stderr)
        assert counted
        assert all(done == total for done, total in counted)
    found, before = scores(study), scores(image_study_run)
    same_numbers(found.filter(score_origin="oof"), out_of_fold(study))
    for name in ("image_id", "score_origin", "score_status"):
        assert found[name].equals(before[name])
    scored = found.filter(pl.col("cxr_gt0").is_not_null())
    shares = scored.select(pl.sum_horizontal(f"cxr_p_{name}" for name in ("0", "1_99", "100_399", "400"))).to_series()
    assert shares.to_numpy() == pytest.approx(1)


def test_bfloat16_moves_probabilities_in_the_third_digit(image_study_done: Path) -> None:
    before = scores(image_study_done)
    substitute(image_study_done / "study.toml", r"^\[model\]", '[model]\nprecision = "bfloat16"')
    told(cli("score", image_study_done), 12, "precision")
    shutil.rmtree(image_study_done / "outputs/patient_level/network_outputs")
    assert cli("score", image_study_done).code == 0
    moved = (scores(image_study_done)["cxr_gt0"] - before["cxr_gt0"]).drop_nulls().abs()
    assert 0 < moved.max() < 0.01


# A bundle and the patients it was trained on


def as_external(source: Path, target: Path, key: bool) -> Path:
    """A study of the same archive that has the bundle of another, and the key of its training patients or not."""
    study = copy(source, target)
    substitute(study / "study.toml", "^bundle = .*", f'bundle = "{source}/outputs/model"')
    substitute(study / "study.toml", r"\[train\][\s\S]*(?=\[outcome\])", "")
    if key:
        (study / "outputs/patient_level").mkdir(parents=True)
        shutil.copy(source / "outputs/patient_level/training.key", study / "outputs/patient_level")
    return study


def scored_anew(study: Path) -> pl.DataFrame:
    for verb in ("index", "link", "score"):
        answer = cli(verb, study)
        assert answer.code == 0, answer.stderr
    return scores(study)


def test_a_copy_of_the_training_archive_has_the_numbers_of_training(image_study_run: Path, tmp_path: Path) -> None:
    trained = out_of_fold(image_study_run)
    known = scored_anew(as_external(image_study_run, tmp_path / "with", key=True))
    assert set(known.filter(score_origin="oof")["image_id"]) >= set(trained["image_id"])
    assert known["score_origin"].to_list() == scores(image_study_run)["score_origin"].to_list()
    same_numbers(known, trained)
    unknown = scored_anew(as_external(image_study_run, tmp_path / "without", key=False))
    assert unknown["score_origin"].unique().to_list() == ["unknown"]
    assert unknown["cxr_gt0"].null_count() == 0


def test_training_patients_under_other_names_are_known_by_their_pixels(image_study_run: Path, tmp_path: Path) -> None:
    study = as_external(image_study_run, tmp_path / "study", key=True)
    names = {name: f"{999_999_999 - int(name):09d}" for name in patient_ids(study)}
    for path in (study / "tables").iterdir():
        table = pl.read_csv(path, infer_schema=False)
        table.with_columns(pl.col("patient_id").replace(names)).write_csv(path)
    for path in filter(Path.is_file, (study / "archive").rglob("*")):
        try:
            name = pydicom.dcmread(path, stop_before_pixels=True).PatientID
        except (pydicom.errors.InvalidDicomError, AttributeError):
            continue
        if name in names:
            path.write_bytes(path.read_bytes().replace(name.encode(), names[name].encode()))
    found, trained = scored_anew(study), out_of_fold(image_study_run)
    both = trained.join(found, on="image_id", suffix="_found")
    assert both["patient_id_found"].to_list() == both["patient_id"].replace(names).to_list()
    assert both["score_origin"].unique().to_list() == ["oof"]
    assert both["fold_found"].to_list() == both["fold"].to_list()
    same_numbers(found, trained)


def test_a_patient_in_two_folds_is_refused(image_study_done: Path) -> None:
    study = without_bundle(image_study_done)
    path = study / "outputs/patient_level/cohort.parquet"
    cohort = pl.read_parquet(path)
    trained = out_of_fold(image_study_done)
    one, other = (trained.filter(fold=fold)["patient_id"][0] for fold in (0, 1))
    cohort.with_columns(pl.col("patient_id").replace({other: one})).write_parquet(path)
    told(cli("train", study), 11, "1 of ", "repeat a patient", private={one, other})
    assert not (study / "outputs/model").exists()


def test_one_film_under_two_patients_of_different_folds_is_refused(image_study_done: Path) -> None:
    study, trained = without_bundle(image_study_done), out_of_fold(image_study_done)
    rows = pl.read_parquet(study / "outputs/patient_level/cohort.parquet").join(
        trained.select("image_id", "fold"), on="image_id"
    )
    rows = rows.with_columns(pl.col("image_id").str.len_bytes().alias("length")).sort("length", "image_id")
    one = rows.filter(fold=0).row(0, named=True)
    other = rows.filter((pl.col("fold") == 1) & (pl.col("length") == one["length"])).row(0, named=True)
    film = pydicom.dcmread(study / "archive" / one["uri"])
    film.PatientID, film.SOPInstanceUID = other["patient_id"], other["image_id"]
    film.file_meta.MediaStorageSOPInstanceUID = other["image_id"]
    film.StudyDate = other["study_date"].strftime("%Y%m%d")
    film.save_as(study / "archive" / other["uri"])
    for verb in ("index", "link"):
        assert cli(verb, study).code == 0
    told(cli("train", study), 11, "film", private={one["patient_id"], other["patient_id"]})
    assert not (study / "outputs/model").exists()


# Recalibration


def with_many_new_patients(study: Path) -> Path:
    """Trained at the smaller site; and twenty times the calcium, so that many are on each side of every threshold."""
    shutil.rmtree(without_bundle(study) / "outputs/patient_level/network_outputs")
    substitute(study / "study.toml", "^sites = .*", 'sites = ["external"]')
    path = study / "tables/cacs.csv"
    pl.read_csv(path, infer_schema=False).with_columns(
        (pl.col("cacs").cast(pl.Float64) * 20).clip(0, 50_000)
    ).write_csv(path)
    for verb in ("link", "train", "score"):
        answer = cli(verb, study)
        assert answer.code == 0, answer.stderr
    return study


def test_a_bundle_recalibrated_for_new_patients_scores_them_by_cross_fitting(
    image_study_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cohort_scorer.imaging import scoring

    def called(*_: object) -> None:
        raise AssertionError("a film was read again")

    study = with_many_new_patients(image_study_done)
    before = scores(study)
    new = study / "outputs/recalibrated"
    answer = cli("recalibrate", study, "--output", new)
    assert answer.code == 0
    assert answer.stdout == f"{new}\n"
    assert "recalibrate: integrated CACS 400: " in answer.stderr
    old = json.loads((study / "outputs/model/bundle.json").read_text())
    made = json.loads((new / "bundle.json").read_text())
    weights = {name: digest for name, digest in old["files"].items() if name.endswith(".safetensors")}
    assert weights.items() <= made["files"].items()
    assert "Recalibrat" in (new / "MODEL_CARD.md").read_text()
    told(cli("recalibrate", study, "--output", new), 17, "not empty")
    substitute(study / "study.toml", "^bundle = .*", 'bundle = "outputs/recalibrated"')
    told(cli("recalibrate", study, "--output", study / "outputs/again"), 12, "has been recalibrated already")
    monkeypatch.setattr(scoring, "score", called)
    for verb in ("score", "validate"):
        assert cli(verb, study).code == 0
    after = scores(study)
    assert after["score_origin"].to_list() == before["score_origin"].to_list()
    trained = pl.col("score_origin") == "oof"
    assert after.filter(trained).select(PROBABILITIES).equals(before.filter(trained).select(PROBABILITIES))
    assert after.filter(~trained)["model_id"].n_unique() == 1
    (study / "outputs/patient_level/recalibration.key").unlink()
    answer = cli("score", study)
    assert answer.code == 0
    assert scores(study).filter(site="internal")["score_origin"].unique().to_list() == ["unknown"]


def test_too_few_new_patients_are_not_recalibrated_to(image_study_done: Path) -> None:
    path = image_study_done / "outputs/patient_level/cohort.parquet"
    cohort = pl.read_parquet(path)
    inside = cohort.filter(pl.col("site") == "internal")
    pl.concat([inside, cohort.filter(pl.col("site") != "internal").head(15)]).write_parquet(path)
    told(cli("recalibrate", image_study_done, "--output", image_study_done / "new"), 14, "Too few")
    assert not (image_study_done / "new").exists()


def test_scores_of_another_bundle_are_not_recalibrated(image_study_done: Path) -> None:
    path = image_study_done / "outputs/patient_level/scores.parquet"
    pl.read_parquet(path).with_columns(pl.lit("0" * 16).alias("model_id")).write_parquet(path)
    told(cli("recalibrate", image_study_done, "--output", image_study_done / "new"), 12, "another bundle")
