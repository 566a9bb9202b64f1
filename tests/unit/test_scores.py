"""Which network, layer and cut a film gets, and what is said where something is missing."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from small_bundle import CATEGORIES, FOLDS, in_memory

from cohort_scorer.prediction import bundle, scores
from cohort_scorer.prediction.bundle import NEW, output_name
from cohort_scorer.prediction.integration import THRESHOLD_NAMES, Layer

FACTS = {"age_years": 60.0, "sex": "M", "bmi": 25.0}


def film(origin: str, fold: int | None, refit: float, folds: tuple[float, float], **facts: object) -> dict[str, object]:
    """A film whose networks say `refit` and `folds`, the same at every threshold."""
    logits = {
        f"logit_{output_name(name, number)}": value
        for name in THRESHOLD_NAMES
        for number, value in ((NEW, refit), *enumerate(folds))
    }
    return {"score_origin": origin, "fold": fold, **FACTS, **facts, **logits}


def assembled(*films: dict[str, object], members: str = "refit", rule: object = "prevalence") -> pl.DataFrame:
    types = {"fold": pl.Int64, "age_years": pl.Float64, "sex": pl.String, "bmi": pl.Float64}
    table = pl.DataFrame(list(films), schema_overrides=types).with_row_index("order")
    if "layer_fold" not in table.columns:
        table = table.with_columns(layer_fold=pl.col("fold").fill_null(NEW))
    return scores.assemble(table, in_memory({}), members, rule, CATEGORIES).sort("order")


def expit(value: float) -> float:
    return 1 / (1 + np.exp(-value))


# Layers of the small bundle: P = expit(logit + number of the fold); for new patients expit(logit).
NETWORKS = [
    ("a new patient, refit", "external", None, "refit", expit(0.3)),
    ("a new patient, mean of the folds", "external", None, "folds", expit((0.1 + 0.9) / 2)),
    ("a training patient of fold 0", "oof", 0, "refit", expit(0.1)),
    ("a training patient of fold 0, members folds", "oof", 0, "folds", expit(0.1)),
    ("a training patient of fold 1", "oof", 1, "refit", expit(0.9 + 1)),
    ("a training patient of fold 1, members folds", "oof", 1, "folds", expit(0.9 + 1)),
    ("nobody knows", "unknown", None, "refit", expit(0.3)),
]


@pytest.mark.parametrize(("who", "origin", "fold", "members", "wanted"), NETWORKS)
def test_a_training_patient_gets_the_network_and_layer_of_the_fold_that_left_it_out(who, origin, fold, members, wanted):
    row = assembled(film(origin, fold, 0.3, (0.1, 0.9)), members=members).row(0, named=True)
    assert FOLDS == 2
    for name in THRESHOLD_NAMES:
        assert row[f"cxr_{name}"] == pytest.approx(wanted, rel=1e-12)
    clinical = 0.6 + 0.1 + 0.25
    assert row["integrated_gt0"] == pytest.approx(expit(np.log(wanted / (1 - wanted)) + clinical), rel=1e-9)
    assert row["clinical_gt0"] == pytest.approx(expit((fold or 0) + clinical), rel=1e-12)


# Cuts of the small bundle: 0.5 for new patients, 0.6 for fold 0, 0.7 for fold 1; here P is 0.55, 0.65, 0.65.
CUTS = [("external", None, 0.55, "CAC 400+"), ("oof", 0, 0.55, "CAC 0"), ("oof", 0, 0.65, "CAC 400+")]
CUTS += [("oof", 1, 0.65, "CAC 0"), ("oof", 1, 0.75, "CAC 400+")]


@pytest.mark.parametrize(("origin", "fold", "p", "category"), CUTS)
def test_a_training_patient_is_held_against_the_cuts_of_its_fold(origin, fold, p, category):
    logit = float(np.log(p / (1 - p))) - (fold or 0)
    row = assembled(film(origin, fold, logit, (logit, logit))).row(0, named=True)
    assert row["cxr_gt0"] == pytest.approx(p)
    assert row["cxr_category"] == category


def test_a_recalibration_patient_gets_the_layers_and_cuts_of_the_own_part():
    """A new patient to the networks: the refit's logit, through the layer and the cut of the part."""
    model = in_memory({})
    parts = {
        (exposure, name, bundle.FIRST_PART): Layer(2.0, model.layers[exposure, name, NEW].coefficients)
        for exposure, name, fold in model.layers
        if fold == NEW
    }
    cut = model.grid.filter(fold=0).with_columns(fold=pl.lit(bundle.FIRST_PART, pl.Int64), cut=pl.lit(0.95))
    model = replace(model, layers={**model.layers, **parts}, grid=pl.concat([model.grid, cut]))
    films = [film("external", None, logit, (9.0, 9.0), layer_fold=bundle.FIRST_PART) for logit in (0.0, 2.0)]
    table = pl.DataFrame(films, schema_overrides={"fold": pl.Int64}).with_row_index("order")
    found = scores.assemble(table, model, "refit", "prevalence", CATEGORIES).sort("order")
    assert found["cxr_gt0"].to_list() == pytest.approx([expit(2.0), expit(4.0)])
    assert found["cxr_category"].to_list() == ["CAC 0", "CAC 400+"]
    assert found["score_origin"].to_list() == ["external", "external"]


def test_three_numbers_are_cuts_for_everybody_and_argmax_needs_none():
    films = [film("external", None, 0.0, (0.0, 0.0)), film("oof", 0, 9.0, (0.0, 9.0))]
    assert assembled(*films, rule=(0.4, 0.6, 0.6))["cxr_category"].to_list() == ["CAC 1-99", "CAC 1-99"]
    assert assembled(*films, rule=(0.6, 0.6, 0.6))["cxr_category"].to_list() == ["CAC 0", "CAC 0"]
    assert assembled(*films, rule="argmax")["cxr_category"].to_list() == ["CAC 0", "CAC 0"]


# What is missing of age, sex, BMI -> score_status.
MISSING = [
    ({}, "ok"),
    ({"bmi": None}, "missing_bmi"),
    ({"sex": None}, "missing_sex"),
    ({"age_years": None}, "missing_age_years"),
    ({"age_years": None, "bmi": None}, "missing_age_years+bmi"),
    ({"age_years": None, "sex": None, "bmi": None}, "missing_age_years+sex+bmi"),
]


@pytest.mark.parametrize(("missing", "status"), MISSING)
def test_a_missing_clinical_fact_empties_the_integrated_columns_and_leaves_those_of_the_film(missing, status):
    row = assembled(film("external", None, 0.3, (0.1, 0.9), **missing)).row(0, named=True)
    assert row["score_status"] == status
    for exposure in ("integrated", "clinical"):
        given = [
            value for name, value in row.items() if name.startswith(f"{exposure}_") and not name.endswith("_crossed")
        ]
        assert len(given) == 8
        assert all((value is None) == (status != "ok") for value in given)
    assert all(value is not None for name, value in row.items() if name.startswith("cxr_"))


def test_probabilities_stay_as_they_are_and_class_probabilities_are_repaired():
    row = film("external", None, 0.0, (0.0, 0.0))
    for name, p in zip(THRESHOLD_NAMES, (0.4, 0.6, 0.1), strict=True):
        row[f"logit_{name}-refit"] = float(np.log(p / (1 - p)))
    found = assembled(row).row(0, named=True)
    assert [found[f"cxr_{name}"] for name in THRESHOLD_NAMES] == pytest.approx([0.4, 0.6, 0.1])
    shares = [found[f"cxr_{name}"] for name in ("p_0", "p_1_99", "p_100_399", "p_400")]
    assert shares == pytest.approx([0.5, 0, 0.4, 0.1])
    # Repaired 0.5, 0.5, 0.1 against the cut 0.5: unrepaired, P(CACS > 0) = 0.4 would not reach it.
    assert found["cxr_category"] == "CAC 100-399"
    assert not [name for name in found if name.startswith("logit_")]


def test_categories_that_a_scores_table_lacks_are_derived_by_the_rule() -> None:
    names = ("CAC 0", "CAC 1-99", "CAC 100-399", "CAC 400+")
    given = pl.DataFrame(
        {
            "image_id": ["a", "b", "c", "d"],
            "cxr_gt0": [0.9, 0.8, 0.2, 0.1],
            "cxr_ge100": [0.8, 0.3, 0.2, 0.1],
            "cxr_ge400": [0.7, 0.1, 0.1, 0.1],
            "cxr_category": [None, None, "CAC 400+", None],
        },
        schema_overrides={"cxr_category": pl.String},
    )
    for exposure in ("integrated", "clinical"):
        empty = {f"{exposure}_{name}": pl.lit(None, pl.Float64) for name in ("gt0", "ge100", "ge400")}
        given = given.with_columns(**empty, **{f"{exposure}_category": pl.lit(None, pl.String)})
    nobody = pl.DataFrame(schema={"image_id": pl.String, "gt0": pl.Boolean, "ge100": pl.Boolean, "ge400": pl.Boolean})

    by_cuts = scores.categorise_given(given, nobody, (0.5, 0.5, 0.5), names)
    assert by_cuts["cxr_category"].to_list() == ["CAC 400+", "CAC 1-99", "CAC 400+", "CAC 0"]  # c was given
    assert by_cuts["integrated_category"].null_count() == 4

    untold = scores.categorise_given(given, nobody, "prevalence", names)
    assert untold["cxr_category"].to_list() == [None, None, "CAC 400+", None]  # no truth, no cuts

    truth = pl.DataFrame(
        {
            "image_id": ["a", "b", "d"],
            "gt0": [True, True, False],
            "ge100": [True, False, False],
            "ge400": [True, False, False],
        }
    )
    by_margins = scores.categorise_given(given, truth, "prevalence", names)
    assert by_margins["cxr_category"].to_list() == ["CAC 400+", "CAC 1-99", "CAC 400+", "CAC 0"]
