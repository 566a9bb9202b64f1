"""The logistic layers: maximum likelihood, and for fold k without fold k."""

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.prediction import scores
from cohort_scorer.prediction.bundle import NEW
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, Layer, features, fit, with_male

INTEGRATE = ["age_years", "sex", "bmi"]
FOLDS = 3


def people(seed: int = 1, n: int = 300) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    level = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    return pl.DataFrame(
        {
            "fold": np.arange(n) % FOLDS,
            "age_years": rng.normal(55 + 3 * level, 9),
            "sex": rng.choice(["F", "M"], n),
            "bmi": rng.normal(27, 4, n),
            **{name: level > position for position, name in enumerate(THRESHOLD_NAMES)},
            **{f"logit_{name}": rng.normal(0.8 * level - 1, 1) for name in THRESHOLD_NAMES},
        }
    )


def test_the_features_of_each_exposure():
    assert features("cxr", INTEGRATE) == ("logit",)
    assert features("integrated", INTEGRATE) == ("logit", "age_years", "male", "bmi")
    assert features("clinical", ["sex"]) == ("male",)


def test_a_layer_maximises_the_likelihood_without_penalty():
    rows = with_male(people()).with_columns(logit="logit_ge100")
    names = features("integrated", INTEGRATE)
    found = fit(rows, names, "ge100")
    design = np.column_stack([np.ones(len(rows)), rows.select(names).to_numpy()])
    design[:, 2] -= 55  # for the slow optimiser only
    outcome = rows["ge100"].to_numpy()
    slow = minimize(lambda b: np.logaddexp(0, np.where(outcome, -1, 1) * (design @ b)).sum(), np.zeros(5), tol=1e-10)
    np.testing.assert_allclose([found.coefficients[name] for name in names], slow.x[1:], atol=1e-4)
    assert found.intercept == pytest.approx(slow.x[0] - 55 * slow.x[2], abs=1e-2)
    p = rows.select(found.probability()).to_series().to_numpy()
    for column in (np.ones(len(rows)), *rows.select(names).to_numpy().T):
        assert column @ (outcome - p) == pytest.approx(0, abs=1e-5)


def test_rows_that_lack_a_feature_take_no_part_and_get_no_probability():
    rows = with_male(people()).with_columns(logit="logit_gt0")
    lacking = rows.with_columns(pl.when(pl.int_range(pl.len()) >= 50).then("bmi").alias("bmi"))
    names = features("integrated", INTEGRATE)
    found = fit(lacking, names, "gt0")
    assert found == fit(rows[50:], names, "gt0")
    given = lacking.select(found.probability()).to_series()
    assert given[:50].null_count() == 50
    assert given[50:].null_count() == 0


def test_a_layer_computes_what_it_says():
    rows = with_male(pl.DataFrame({"logit": [0.0, 2.0], "sex": ["F", "M"]}))
    p = rows.select(Layer(-1.0, {"logit": 0.5, "male": 1.0}).probability()).to_series()
    assert p.to_list() == pytest.approx([1 / (1 + np.e), 1 / (1 + np.exp(-1))])
    assert with_male(pl.DataFrame({"sex": ["F", "M", None]}))["male"].to_list() == [0, 1, None]


@pytest.mark.parametrize(
    "rows",
    [
        {"logit": [1.0, 2.0, 3.0], "passed": [True, True, True]},
        {"logit": [1.0, 2.0, 3.0], "passed": [False, False, False]},
        {"logit": [2.0, 2.0, 2.0], "passed": [True, False, True]},
        {"logit": [1.0, 2.0, 3.0, 4.0], "passed": [False, False, True, True]},
    ],
    ids=["nobody below", "nobody above", "a constant feature", "complete separation"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_layer_without_a_maximum_is_refused(rows):
    with pytest.raises(ConvergenceError) as refused:
        fit(pl.DataFrame(rows), ["logit"], "passed")
    assert refused.value.exit_code == 15


def test_layers_and_cuts_of_a_fold_know_nothing_of_that_fold():
    """Turn the truth of fold 1 upside down: its own layers stay, all others move."""
    before = people()
    turned = before.with_columns(
        pl.when(pl.col("fold") == 1).then(~pl.col(name)).otherwise(pl.col(name)).alias(name) for name in THRESHOLD_NAMES
    )
    layers, grid = scores.develop(before, INTEGRATE, FOLDS)
    moved, moved_grid = scores.develop(turned, INTEGRATE, FOLDS)
    assert set(layers) == {(e, t, f) for e in EXPOSURES for t in THRESHOLD_NAMES for f in (NEW, 0, 1, 2)}
    for (exposure, threshold, fold), layer in layers.items():
        other = moved[exposure, threshold, fold]
        if fold == 1:
            assert other == layer
        else:
            assert other.intercept != pytest.approx(layer.intercept, rel=1e-3)
    for fold, n in ((NEW, 300), (0, 200), (1, 200), (2, 200)):
        mine = grid.filter(pl.col("fold") == fold)
        assert mine["n"].unique().to_list() == [n]
        assert len(mine) == 9 * n
    # Also through the layers of the others, which saw fold 1: its cuts move no digit.
    assert moved_grid.filter(fold=1).equals(grid.filter(fold=1))
    assert not moved_grid.filter(fold=0).equals(grid.filter(fold=0))


def test_nested_stacking_fits_the_layers_of_a_fold_on_logits_of_networks_that_did_not_see_it():
    """The plain logits give the truth away; those without fold k are noise for k = 0, better for the others."""
    rng = np.random.default_rng(3)
    noise = {
        f"logit_{name}_without_{fold}": rng.normal(size=300) + fold * people()[name].to_numpy()
        for name in THRESHOLD_NAMES
        for fold in range(FOLDS)
    }
    nested = (
        people()
        .with_columns(**noise)
        .with_columns(
            pl.when(pl.col("fold") != fold)
            .then(pl.col(f"logit_{name}_without_{fold}"))
            .alias(f"logit_{name}_without_{fold}")
            for name in THRESHOLD_NAMES
            for fold in range(FOLDS)
        )
    )
    layers, grid = scores.develop(nested, INTEGRATE, FOLDS)
    for threshold in THRESHOLD_NAMES:
        for fold in range(FOLDS):
            rows = nested.filter(pl.col("fold") != fold).with_columns(logit=pl.col(f"logit_{threshold}_without_{fold}"))
            assert layers["cxr", threshold, fold] == fit(rows, ("logit",), threshold)
        assert layers["cxr", threshold, NEW] == fit(
            nested.with_columns(logit=pl.col(f"logit_{threshold}")), ("logit",), threshold
        )
    sharper = (
        grid.filter(exposure="cxr", threshold="gt0")
        .group_by("fold")
        .agg((pl.col("sensitivity") + pl.col("specificity") - 1).max().alias("youden"))
    )
    youden = dict(sharper.iter_rows())
    assert youden[0] < youden[1] < youden[2]


def test_a_planted_leak_shows_in_every_fold_but_its_own():
    """In fold 0 the logit gives the truth away. Only a layer that saw fold 0 can believe it that much."""
    rng = np.random.default_rng(2)
    clean = people().with_columns(pl.Series(f"logit_{name}", rng.normal(size=300)) for name in THRESHOLD_NAMES)
    leaking = clean.with_columns(
        pl.when(pl.col("fold") == 0)
        .then(pl.col(name).cast(pl.Float64) * 4 - 2 + 0.5 * pl.col(f"logit_{name}"))
        .otherwise(pl.col(f"logit_{name}"))
        .alias(f"logit_{name}")
        for name in THRESHOLD_NAMES
    )
    layers, _ = scores.develop(leaking, INTEGRATE, FOLDS)
    for exposure in ("cxr", "integrated"):
        for threshold in THRESHOLD_NAMES:
            slope = {fold: layers[exposure, threshold, fold].coefficients["logit"] for fold in (NEW, 0, 1, 2)}
            assert abs(slope[0]) < 0.35
            assert min(slope[NEW], slope[1], slope[2]) > 0.5


def test_the_cuts_for_new_patients_give_the_training_set_its_true_margins():
    found, grid = scores.develop(people(), INTEGRATE, FOLDS)
    assert found
    for exposure in EXPOSURES:
        cuts = scores.cut_points(grid, exposure, NEW, "prevalence")
        for name, cut in zip(THRESHOLD_NAMES, cuts, strict=True):
            row = grid.filter(exposure=exposure, threshold=name, fold=NEW, cut=cut).row(0, named=True)
            assert row["predicted_margin"] == pytest.approx(row["n_positive"] / row["n"], abs=1e-12)
            assert row["n_positive"] == people()[name].sum()
