"""A bundle of two folds on disk, with every part but real networks: its weights are a few bytes."""

import json
from pathlib import Path

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.prediction import bundle
from cohort_scorer.prediction.bundle import NEW, Bundle, Layer, keyed_hash, output_name
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES

CATEGORIES = schemas.vocabulary("cohort", "true_category")
KEY = b"k" * 32
FOLDS = 2
SLOPES = {"gt0": 1.0, "ge100": 0.5, "ge400": 0.25}


def layers() -> dict[tuple[str, str, int], Layer]:
    """CXR: the logit as it is; integrated: with age and sex too; each fold's intercept is its number."""
    coefficients = {
        "cxr": {"logit": 1.0},
        "integrated": {"logit": 1.0, "age_years": 0.01, "male": 0.1, "bmi": 0.01},
        "clinical": {"age_years": 0.01, "male": 0.1, "bmi": 0.01},
    }
    return {
        (exposure, threshold, fold): Layer(float(max(fold, 0)), coefficients[exposure])
        for exposure in EXPOSURES
        for threshold in THRESHOLD_NAMES
        for fold in (NEW, *range(FOLDS))
    }


def grid() -> pl.DataFrame:
    """One cut each: 0.5 for new patients, 0.6 for fold 0, 0.7 for fold 1."""
    rows = [
        (exposure, threshold, fold, cut, 10, 5, 0.5, 0.8, 0.8)
        for exposure in EXPOSURES
        for threshold in THRESHOLD_NAMES
        for fold, cut in ((NEW, 0.5), (0, 0.6), (1, 0.7))
    ]
    columns = ["exposure", "threshold", "fold", "cut", "n", "n_positive"]
    return pl.DataFrame(rows, schema=[*columns, "predicted_margin", "sensitivity", "specificity"], orient="row")


def training_patients(people: dict[tuple[str, str], tuple[str, int]]) -> pl.DataFrame:
    """(site, patient_id) -> (pixels, fold), hashed with KEY."""
    rows = [
        (keyed_hash(KEY, site, patient), keyed_hash(KEY, pixels), fold)
        for (site, patient), (pixels, fold) in people.items()
    ]
    return pl.DataFrame(rows, schema=schemas.columns("training_patients"), orient="row")


def content(title: str = "A bundle") -> dict[str, object]:
    return {
        "title": title,
        "versions": {"cohort-scorer": "0"},
        "categories": bundle.category_grid(CATEGORIES),
        "simulated": True,
        "key_check": bundle.keyed_hash(KEY, bundle.KEY_CHECK),
        "cut_points": {"rule": "prevalence", "origin": "o", "cuts": []},
        "accuracy": [],
        "preprocessing_id": "p",
        "image_size": 32,
        "design": "three_models",
        "trainable": "all",
        "backbone": "resnet-small",
        "familiar_to": "gt0-fold0",
        "integrate": ["age_years", "sex", "bmi"],
        "networks": [
            {"name": output_name(threshold, fold), "outputs": [{"threshold": threshold, "fold": fold}]}
            for threshold in THRESHOLD_NAMES
            for fold in (NEW, *range(FOLDS))
        ],
        "training": {"sites": ["A"], "folds": FOLDS},
    }


def write(folder: Path, title: str = "A bundle") -> Path:
    for threshold in THRESHOLD_NAMES:
        for fold in (NEW, *range(FOLDS)):
            network = folder / output_name(threshold, fold)
            network.mkdir(parents=True)
            (network / "config.json").write_text("{}")
            (network / "model.safetensors").write_bytes(network.name.encode())
    training_patients({("A", "1"): ("pixels", 0)}).write_parquet(folder / "training_patients.parquet")
    (folder / bundle.FAMILIARITY).write_bytes(b"a few bytes")
    grid().write_parquet(folder / "cut_grid.parquet")
    pl.DataFrame({"network": ["gt0-fold0"]}).write_parquet(folder / bundle.CURVES)
    (folder / "MODEL_CARD.md").write_text(f"# {title}\n")
    bundle.seal(folder, content(title), layers())
    return folder


def in_memory(people: dict[tuple[str, str], tuple[str, int]]) -> Bundle:
    return Bundle(Path(), content(), layers(), grid(), training_patients(people))


def edit(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Change bundle.json by a function of its content."""
    path = folder / "bundle.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
