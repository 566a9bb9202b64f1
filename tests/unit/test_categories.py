"""From three probabilities to one category: repair, cut points under every rule, and the category itself."""

import numpy as np
import polars as pl
import pytest

from cohort_scorer.prediction import categories


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()][1:]


# p0, p100, p400 as three models gave them -> repaired.
REPAIRED = cells(
    """
    given            | repaired         | why
    0.9 0.5 0.1      | 0.9 0.5 0.1      | in order: untouched
    0.5 0.5 0.5      | 0.5 0.5 0.5      | equal: in order
    0.4 0.6 0.1      | 0.5 0.5 0.1      | the first two pooled
    0.9 0.2 0.4      | 0.9 0.3 0.3      | the last two pooled
    0.2 0.3 0.7      | 0.4 0.4 0.4      | all three pooled
    0.3 0.9 0.0      | 0.6 0.6 0.0      | the first two, the third stays
    0.5 0.1 0.8      | 0.5 0.45 0.45    | the last two, still below the first
    0.3 0.1 0.8      | 0.4 0.4 0.4      | the last two rise above the first: all
    0.0 0.0 1.0      | 0.33333333333333331 0.33333333333333331 0.33333333333333331 | extremes
    """
)


@pytest.mark.parametrize(("given", "repaired", "why"), REPAIRED)
def test_probabilities_that_contradict_each_other_are_pooled(given, repaired, why):
    found = categories.repair(np.array([given.split()], dtype=float))
    np.testing.assert_allclose(found[0], np.array(repaired.split(), dtype=float), rtol=1e-15)


def test_class_probabilities_are_the_differences():
    found = categories.class_probabilities(np.array([[0.9, 0.5, 0.1], [0.4, 0.4, 0.4]]))
    np.testing.assert_allclose(found, [[0.1, 0.4, 0.4, 0.1], [0.6, 0, 0, 0.4]], atol=1e-15)


# Ten patients by their probability of CACS >= 100, and whether they have it: 4 of 10 have.
TEN = pl.DataFrame(
    {
        "probability": [0.05, 0.10, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90],
        "has_it": [False, False, False, True, False, False, True, False, True, True],
    }
)
RULES = cells(
    """
    rule             | cut  | why
    prevalence       | 0.60 | calls 4 of 10, as many as have it
    youden           | 0.60 | Se 3/4 + Sp 5/6; at 0.30 1 + 3/6, at 0.80 2/4 + 1
    sensitivity:0.90 | 0.30 | the largest cut that finds 9 in 10: all 4
    sensitivity:0.75 | 0.60 | 3 of 4 are enough
    sensitivity:0.50 | 0.80 | 2 of 4 are enough
    specificity:0.90 | 0.80 | the smallest cut that spares 9 in 10: all 6
    specificity:0.83 | 0.60 | 5 of 6 are enough
    specificity:0.50 | 0.30 | 3 of 6 are enough
    specificity:0.01 | 0.10 | 1 of 6 is enough
    """
)


@pytest.mark.parametrize(("rule", "cut", "why"), RULES)
def test_the_cut_under_each_rule(rule, cut, why):
    grid = categories.cut_grid(TEN["probability"].to_numpy(), TEN["has_it"].to_numpy())
    assert categories.choose_cut(grid, rule) == float(cut)
    assert categories.choose_cut(grid.sample(fraction=1, shuffle=True, seed=1), rule) == float(cut)


def test_the_grid_of_cuts_is_the_two_by_two_table_at_each():
    grid = categories.cut_grid(TEN["probability"].to_numpy(), TEN["has_it"].to_numpy())
    assert grid["cut"].to_list() == TEN["probability"].to_list()
    for row in grid.iter_rows(named=True):
        called = TEN.filter(pl.col("probability") >= row["cut"])
        assert (row["n"], row["n_positive"]) == (10, 4)
        assert row["predicted_margin"] == pytest.approx(len(called) / 10)
        assert row["sensitivity"] == pytest.approx(called["has_it"].sum() / 4)
        assert row["specificity"] == pytest.approx(1 - (~called["has_it"]).sum() / 6)


def cut_of(probabilities: list[float], passed: list[bool], rule: str) -> float:
    return categories.choose_cut(categories.cut_grid(np.array(probabilities), np.array(passed)), rule)


def test_youden_ties_go_to_the_higher_sensitivity():
    # 0.4: Se 1, Sp 1/2; 0.8: Se 1/2, Sp 1.
    assert cut_of([0.2, 0.4, 0.6, 0.8], [False, True, False, True], "youden") == 0.4
    # 7/7 + 2/7 and 4/7 + 5/7: the higher sensitivity, so the lower cut.
    passed = [False, False, True, True, True, False, False, False, True, True, True, False, True, False]
    order = np.argsort(np.random.default_rng(0).random(14))
    cut = cut_of(list(np.arange(14)[order] / 14), list(np.array(passed)[order]), "youden")
    assert cut == 2 / 14


def test_a_specificity_that_no_cut_reaches_gives_the_highest():
    assert cut_of([0.2, 0.8, 0.9], [True, True, False], "specificity:0.99") == 0.9


def test_equal_probabilities_are_called_together():
    assert cut_of([0.2, 0.5, 0.5, 0.9], [False, True, False, True], "sensitivity:1.0") == 0.5
    # A margin of 2/4 cannot be met: 1/4 and 3/4 are as near, and the lower cut is taken.
    assert cut_of([0.2, 0.5, 0.5, 0.9], [False, True, False, True], "prevalence") == 0.5
    # 4 of 10 have it, 3 or 5 can be called: as near, though not in floating point.
    tied = [0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6, 0.7, 0.8]
    assert cut_of(tied, [number > 5 for number in range(10)], "prevalence") == 0.5


# Repaired p0, p100, p400 against cuts 0.5, 0.3, 0.2.
CATEGORY = cells(
    """
    p0 p100 p400    | category    | why
    0.4  0.2  0.1   | CAC 0       | reaches no cut
    0.5  0.2  0.1   | CAC 1-99    | reaches the first exactly
    0.6  0.3  0.1   | CAC 100-399 | reaches the second exactly
    0.9  0.6  0.2   | CAC 400+    | reaches all
    0.4  0.35 0.1   | CAC 100-399 | fails the first but reaches the second: the highest counts
    0.4  0.25 0.25  | CAC 400+    | fails two, reaches the third
    0.6  0.25 0.2   | CAC 400+    | fails the second, reaches the third
    """
)
NAMES = ("CAC 0", "CAC 1-99", "CAC 100-399", "CAC 400+")


def test_the_category_is_the_highest_threshold_whose_cut_is_reached():
    repaired = np.array([row[0].split() for row in CATEGORY], dtype=float)
    found = [NAMES[level] for level in categories.categorise(repaired, (0.5, 0.3, 0.2))]
    assert found == [row[1] for row in CATEGORY]
    assert categories.crosses(repaired, (0.5, 0.3, 0.2)).sum() == 3


# Repaired p0, p100, p400 -> class probabilities -> the likeliest.
LIKELIEST = cells(
    """
    p0 p100 p400    | category    | class probabilities
    0.4  0.2  0.1   | CAC 0       | .6 .2 .1 .1
    0.9  0.3  0.1   | CAC 1-99    | .1 .6 .2 .1
    0.9  0.8  0.2   | CAC 100-399 | .1 .1 .6 .2
    0.9  0.8  0.7   | CAC 400+    | .1 .1 .1 .7
    0.5  0.0  0.0   | CAC 0       | .5 .5 0 0: tie, the lower
    """
)


def test_argmax_takes_the_likeliest_class():
    repaired = np.array([row[0].split() for row in LIKELIEST], dtype=float)
    assert [NAMES[level] for level in categories.categorise(repaired, None)] == [row[1] for row in LIKELIEST]
