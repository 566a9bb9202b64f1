"""What holds for any three probabilities, and for rows in any order."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.isotonic import IsotonicRegression

from cohort_scorer import schemas
from cohort_scorer.prediction import bundle, categories, scores
from cohort_scorer.prediction.bundle import NEW, output_name
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES
from cohort_scorer.statistics import prognosis, validation

CATEGORIES = schemas.vocabulary("cohort", "true_category")
FOLDS = 3
SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]))
TRIPLES = hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.just(3)), elements=SHARES)
SEEDS = st.integers(0, 2**31)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(TRIPLES)
def test_repair_is_isotonic_regression_and_class_probabilities_sum_to_1(triples):
    repaired = categories.repair(triples)
    wanted = [IsotonicRegression(increasing=False).fit_transform([0, 1, 2], row) for row in triples]
    np.testing.assert_allclose(repaired, wanted, rtol=1e-12, atol=1e-15)
    assert (np.diff(repaired, axis=1) <= 0).all()
    assert ((repaired >= 0) & (repaired <= 1)).all()
    ordered = (np.diff(triples, axis=1) <= 0).all(axis=1)
    assert (repaired[ordered] == triples[ordered]).all()
    shares = categories.class_probabilities(repaired)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-14)
    assert (shares >= 0).all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SEEDS, st.integers(4, 60), st.sampled_from([3, 10, 1000]), st.floats(0.05, 0.95))
def test_each_rule_does_what_it_says_on_the_patients_it_was_found_in(seed, n, n_values, wanted):
    rng = np.random.default_rng(seed)
    probability = rng.integers(0, n_values, n) / n_values
    passed = rng.random(n) < 0.2 + 0.6 * probability
    passed[:2] = True, False
    grid = categories.cut_grid(probability, passed)

    def called(cut):
        return probability >= cut

    margins = {cut: abs(called(cut).sum() - passed.sum()) for cut in np.unique(probability)}
    assert margins[categories.choose_cut(grid, "prevalence")] == min(margins.values())
    if n_values == 1000 and len(np.unique(probability)) == n:
        assert min(margins.values()) == 0
    youden = {cut: called(cut)[passed].mean() - called(cut)[~passed].mean() for cut in margins}
    assert youden[categories.choose_cut(grid, "youden")] == pytest.approx(max(youden.values()), abs=1e-12)
    sensitive = [cut for cut in margins if called(cut)[passed].mean() >= wanted - 1e-12]
    assert categories.choose_cut(grid, f"sensitivity:{wanted:.17f}") == max(sensitive)
    specific = [cut for cut in margins if (~called(cut))[~passed].mean() >= wanted - 1e-12]
    assert categories.choose_cut(grid, f"specificity:{wanted:.17f}") == min(specific, default=max(margins))


def training(seed: int, n: int = 240) -> pl.DataFrame:
    """Training patients with out-of-fold logits that know something of the truth."""
    rng = np.random.default_rng(seed)
    level = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    level[:12] = np.repeat([0, 1, 2, 3], 3)
    truth = {name: level > position for position, name in enumerate(THRESHOLD_NAMES)}
    return pl.DataFrame(
        {
            "patient_id": [f"{number:04}" for number in range(n)],
            "fold": rng.permutation(np.arange(n) % FOLDS),
            "age_years": rng.normal(55 + 3 * level, 9),
            "sex": rng.choice(["F", "M"], n),
            "bmi": pl.Series(rng.normal(27, 4, n)).set(pl.Series(rng.random(n) < 0.05), None),
            **truth,
            **{f"logit_{name}": rng.normal(0.8 * level - 1, 1) for name in THRESHOLD_NAMES},
        }
    )


def shuffled(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    return frame.sample(fraction=1, shuffle=True, seed=seed)


def close(first: pl.DataFrame, second: pl.DataFrame) -> None:
    assert first.schema == second.schema
    assert len(first) == len(second)
    for name in first.columns:
        if first[name].dtype.is_float():
            assert first[name].is_null().equals(second[name].is_null())
            np.testing.assert_allclose(first[name].to_numpy(), second[name].to_numpy(), rtol=1e-5, atol=1e-7)
        else:
            assert first[name].equals(second[name]), name


@settings(max_examples=5, deadline=None, derandomize=True)
@given(SEEDS)
def test_the_order_of_training_patients_changes_no_layer_and_no_cut(seed):
    people = training(seed)
    layers, grid = scores.develop(people, ["age_years", "sex", "bmi"], FOLDS)
    other_layers, other_grid = scores.develop(shuffled(people, seed), ["age_years", "sex", "bmi"], FOLDS)
    assert layers.keys() == other_layers.keys()
    for key, layer in layers.items():
        assert other_layers[key].intercept == pytest.approx(layer.intercept, rel=1e-5, abs=1e-6)
        assert other_layers[key].coefficients == pytest.approx(layer.coefficients, rel=1e-5, abs=1e-6)
    close(grid, other_grid)


def scored(seed: int, rule: object, order: int | None) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    people = training(seed)
    layers, grid = scores.develop(people, ["age_years", "sex", "bmi"], FOLDS)
    content = {"training": {"folds": FOLDS}, "integrate": ["age_years", "sex", "bmi"]}
    model = bundle.Bundle(None, content, layers, grid, pl.DataFrame())
    new = rng.random(len(people)) < 0.5
    films = people.select(
        "patient_id",
        pl.when(~pl.Series(new)).then("fold").alias("fold"),
        "age_years",
        "sex",
        "bmi",
        *(
            pl.Series(f"logit_{output_name(name, fold)}", rng.normal(size=len(people)))
            for name in THRESHOLD_NAMES
            for fold in (NEW, *range(FOLDS))
        ),
    )
    films = films.with_columns(layer_fold=pl.col("fold").fill_null(NEW))
    films = films if order is None else shuffled(films, order)
    return scores.assemble(films, model, "refit", rule, CATEGORIES).sort("patient_id")


@pytest.mark.parametrize("rule", ["prevalence", "youden", "sensitivity:0.9", "argmax", (0.5, 0.3, 0.1)])
def test_the_order_of_films_changes_no_score(rule):
    first = scored(5, rule, None)
    assert scored(5, rule, 1).equals(first)
    for exposure in EXPOSURES:
        known = first.drop_nulls(f"{exposure}_category")
        total = known.select(
            pl.sum_horizontal(f"{exposure}_{name}" for name in ("p_0", "p_1_99", "p_100_399", "p_400"))
        )
        np.testing.assert_allclose(total.to_series(), 1, rtol=1e-12)
        assert set(known[f"{exposure}_category"]) <= set(CATEGORIES)
        assert len(known) > 200


def analysis_set(seed: int, n: int = 500) -> pl.DataFrame:
    """Two sites, one out of fold; categories that tell something; tied days."""
    rng = np.random.default_rng(seed)
    level = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    people: dict[str, object] = {
        "patient_id": [f"{number:04}" for number in range(n)],
        "site": rng.choice(["A", "B"], n),
        "time_days": np.ceil(rng.exponential(900 / (1 + level))).astype(int),
        "status": rng.choice([0, 1, 2], n, p=[0.25, 0.6, 0.15]),
        "age_at_t0_years": rng.normal(60, 8, n),
        "sex": rng.choice(["F", "M"], n),
        "age_band": rng.choice(["50-59", "60-69"], n),
        "true_category": np.array(CATEGORIES)[level],
    }
    for exposure in EXPOSURES:
        latent = rng.normal(level, 2)
        people[f"{exposure}_category"] = np.array(CATEGORIES)[np.searchsorted([0.8, 1.6, 2.6], latent)]
        for position, name in enumerate(THRESHOLD_NAMES):
            people[f"{exposure}_{name}"] = 1 / (1 + np.exp(-(latent - position - 0.5)))
    frame = pl.DataFrame(people)
    return frame.with_columns(
        pl.when(pl.col("site") == "A").then(pl.lit("oof")).otherwise(pl.lit("external")).alias("score_origin"),
        pl.when(pl.col("site") == "A").then(pl.Series(rng.integers(0, 3, n))).alias("fold"),
    )


@settings(max_examples=5, deadline=None, derandomize=True)
@given(SEEDS)
def test_the_order_of_patients_changes_no_table_of_validate(seed):
    people = analysis_set(seed)
    cuts = {("cxr", 0): 0.5}
    first = validation.tables(people, CATEGORIES, "prevalence", cuts, 0.95, np.random.default_rng(0))
    second = validation.tables(shuffled(people, seed), CATEGORIES, "prevalence", cuts, 0.95, np.random.default_rng(0))
    assert first.keys() == second.keys()
    for name, table in first.items():
        assert len(table)
        close(table, second[name])


@pytest.mark.parametrize("seed", [1, 2])
def test_the_order_of_patients_changes_no_table_of_prognosis(seed):
    people = analysis_set(seed)
    # Without resamples, which are drawn by place: the stage puts the patients in order.
    choices = prognosis.Choices(
        ["true", "cxr"], CATEGORIES, ["age_at_t0_years", "sex"], [1, 3], True, 0.95, replicates=0, margin=0.02
    )
    first, second = (
        prognosis.tables(rows, choices, np.random.default_rng(0), lambda done: None)
        for rows in (people, shuffled(people, seed))
    )
    assert first.tables.keys() == second.tables.keys()
    for name, table in first.tables.items():
        assert len(table)
        close(table, second.tables[name])
    assert (first.not_converged, first.hindered, first.few_per_parameter) == (
        second.not_converged,
        second.hindered,
        second.few_per_parameter,
    )
