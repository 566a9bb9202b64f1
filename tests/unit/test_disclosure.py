import polars as pl
import pytest

from cohort_scorer.errors import DisclosureError
from cohort_scorer.reporting import disclosure

TABLE = pl.DataFrame({"n": [3, 40]})


def test_the_rule_none_changes_nothing():
    assert disclosure.protect("crosstab", TABLE, "none").equals(TABLE)


def test_a_rule_that_this_version_cannot_keep_is_refused_in_three_lines():
    with pytest.raises(DisclosureError) as refusal:
        disclosure.protect("crosstab", TABLE, "nhs_hes")
    assert refusal.value.exit_code == 16
    lines = str(refusal.value).splitlines()
    assert len(lines) == 3
    assert "nhs_hes" in lines[0] and "crosstab.csv" in lines[0]


@pytest.mark.parametrize(
    ("simulated", "in_sample", "rule", "expected"),
    [
        (True, False, "none", ("SIMULATED DATA", "NOT DISCLOSURE-CONTROLLED")),
        (False, False, "none", ("NOT DISCLOSURE-CONTROLLED",)),
        (False, True, "opensafely", ("IN-SAMPLE SCORES: NOT A VALIDATION",)),
        (False, False, "opensafely", ()),
    ],
)
def test_stamps(simulated, in_sample, rule, expected):
    assert disclosure.stamps(simulated, in_sample, rule) == expected
