"""Which CT, which film: methods.md section 1, items 1 to 3, one small table after another."""

import polars as pl
import pytest
from clinical_tables import CATEGORIES, cacs, clinical, day, events, films, link, named, rows

from cohort_scorer.cohort import pairing

# The CT of 2020-07-01; 2020-01-03 is 180 days before it, 2020-12-28 is 180 days after it.
DISTANCE = named(
    """
    case                         | pairing        | film         | days between
    same day                     | nearest        | a 2020-07-01 | 0
    film 180 days before         | nearest        | a 2020-01-03 | -180
    film 181 days before         | nearest        | a 2020-01-02 | out
    film 180 days after          | nearest        | a 2020-12-28 | 180
    film 181 days after          | nearest        | a 2020-12-29 | out
    before wanted, film before   | nearest_before | a 2020-06-30 | -1
    before wanted, film same day | nearest_before | a 2020-07-01 | 0
    before wanted, film after    | nearest_before | a 2020-07-02 | out
    after wanted, film after     | nearest_after  | a 2020-07-02 | 1
    after wanted, film same day  | nearest_after  | a 2020-07-01 | 0
    after wanted, film before    | nearest_after  | a 2020-06-30 | out
    """
)


@pytest.mark.parametrize("case", DISTANCE)
def test_the_window_is_180_days_on_the_wanted_side_both_ends_included(case):
    row = DISTANCE[case]
    cohort, reason = link(films(row["film"]), cacs("2020-07-01"), pairing=row["pairing"])
    if row["days between"] == "out":
        assert reason == "no CACS in the window"
    else:
        assert (reason, cohort["days_between"].to_list()) == ("", [int(row["days between"])])


# One CT on 2020-07-01, several films.
WHICH_FILM = named(
    """
    case                                       | films                                            | chosen
    the nearer                                 | a 2020-06-20; b 2020-07-05                       | b
    tie: the one before the CT                 | a 2020-07-06; b 2020-06-26                       | b
    two on one day: the earlier                | a 2020-06-20 17:30:00; b 2020-06-20 08:00:00     | b
    two on one day: no time comes last         | a 2020-06-20; b 2020-06-20 23:59:59              | b
    two on one day without times: the image_id | b 2020-06-20; a 2020-06-20                       | a
    the same minute: the image_id              | b 2020-06-20 08:00:00; a 2020-06-20 08:00:00     | a
    before the CT goes before the time of day  | a 2020-07-06 01:00:00; b 2020-06-26 23:00:00     | b
    a lateral nearer than a frontal            | a 2020-07-01 lateral; b 2020-05-01               | b
    nearest though far: the frontal at day 180 | a 2020-07-02 lateral; b 2020-12-28; c 2020-12-29 | b
    """
)


@pytest.mark.parametrize("case", WHICH_FILM)
def test_the_nearest_eligible_film_is_taken_and_ties_are_broken_one_way(case):
    row = WHICH_FILM[case]
    cohort, reason = link(films(row["films"]), cacs("2020-07-01"))
    assert (reason, cohort["image_id"].to_list()) == ("", [row["chosen"]])


# Several CTs: the earliest that has a film in the window, whatever lies nearer to a later one.
WHICH_CT = named(
    """
    case                | CTs                           | films                              | CT         | film | CACS
    both have films     | 2020-07-01 50; 2020-09-01 450 | a 2020-09-01; b 2020-05-01         | 2020-07-01 | b    | 50
    first has none near | 2018-07-01 50; 2020-09-01 450 | a 2020-09-05                       | 2020-09-01 | a    | 450
    first only lateral  | 2018-07-01 50; 2020-09-01 450 | a 2018-07-01 lateral; b 2020-09-05 | 2020-09-01 | b    | 450
    any order of rows   | 2020-09-01 450; 2020-07-01 50 | a 2020-09-01                       | 2020-07-01 | a    | 50
    """
)


@pytest.mark.parametrize("case", WHICH_CT)
def test_the_earliest_ct_with_an_eligible_film_is_the_truth(case):
    row = WHICH_CT[case]
    cohort, reason = link(films(row["films"]), cacs(row["CTs"]))
    assert reason == ""
    assert cohort.select("ct_date", "image_id", "cacs").rows() == [(day(row["CT"]), row["film"], float(row["CACS"]))]


CATEGORY = named(
    """
    case  | category
    0     | CAC 0
    0.5   | CAC 1-99
    99.9  | CAC 1-99
    100   | CAC 100-399
    399.9 | CAC 100-399
    400   | CAC 400+
    """
)


@pytest.mark.parametrize("agatston", CATEGORY)
def test_the_category_of_an_agatston_score(agatston):
    cohort, _ = link(films("a 2020-07-01"), cacs(f"2020-07-01 {agatston}"))
    assert cohort["true_category"].to_list() == [CATEGORY[agatston]["category"]]


# Film on 2020-01-10, CT on 2020-01-20; bypass surgery between them shows the treatment of the label.
BYPASS = named(
    """
    case                 | events                       | out
    between              | revascularization 2020-01-15 | yes
    the day of the film  | revascularization 2020-01-10 | yes
    the day of the CT    | revascularization 2020-01-20 | yes
    the day before both  | revascularization 2020-01-09 | no
    the day after both   | revascularization 2020-01-21 | no
    another type between | mi 2020-01-15                | no
    """
)


@pytest.mark.parametrize("scans", ["film first", "CT first"])
@pytest.mark.parametrize("case", BYPASS)
def test_bypass_surgery_between_the_scans_excludes(case, scans):
    row = BYPASS[case]
    film, ct = ("2020-01-10", "2020-01-20") if scans == "film first" else ("2020-01-20", "2020-01-10")
    cohort, reason = link(
        films(f"a {film}"), cacs(ct), None, events(row["events"]), exclude_between=["revascularization"]
    )
    assert reason == ("exclude_between revascularization" if row["out"] == "yes" else "")
    assert len(cohort) == (row["out"] == "no")


# Film and CT on 2020-07-01.
AGE = named(
    """
    case                                 | birth date | age given | out
    18th birthday on the day of the film | 2002-07-01 |           | no
    18th birthday on the day after       | 2002-07-02 |           | yes
    18th birthday in another month       | 2002-06-30 |           | no
    birth date after the study           | 2021-01-01 | 40        | yes
    no birth date, 18.0 given            |            | 18.0      | no
    no birth date, 17.99 given           |            | 17.99     | yes
    the birth date goes before the age   | 1950-01-01 | 12        | no
    """
)


@pytest.mark.parametrize("case", AGE)
def test_adults_by_their_age_on_the_day_of_the_film(case):
    row = AGE[case]
    person = clinical(
        birth_date=day(row["birth date"]) if row["birth date"] else None,
        age_years=float(row["age given"]) if row["age given"] else None,
    )
    cohort, reason = link(films("a 2020-07-01"), cacs("2020-07-01"), person)
    assert reason == ("age missing or under the minimum" if row["out"] == "yes" else "")
    assert len(cohort) == (row["out"] == "no")


def test_who_is_born_on_29_february_comes_of_age_on_1_march():
    person = clinical(birth_date=day("2004-02-29"))
    assert link(films("a 2022-02-28"), cacs("2022-02-28"), person)[1] == "age missing or under the minimum"
    assert link(films("a 2022-03-01"), cacs("2022-03-01"), person)[1] == ""


BIRTHDAYS = named(
    """
    case              | birth date | film       | age
    the birthday      | 1980-09-15 | 2020-09-15 | 40
    the day before    | 1980-09-15 | 2020-09-14 | 39.9993
    the day after     | 1980-09-15 | 2020-09-16 | 40.0027
    half a year later | 1980-01-15 | 2020-07-15 | 40.4983
    months over nine  | 1980-03-01 | 2020-12-31 | 40.8350
    a day in autumn   | 1980-10-31 | 2020-09-01 | 39.8378
    """
)


@pytest.mark.parametrize("case", BIRTHDAYS)
def test_age_in_years_with_its_fraction(case):
    row = BIRTHDAYS[case]
    cohort, _ = link(films(f"a {row['film']}"), cacs(row["film"]), clinical(birth_date=day(row["birth date"])))
    assert cohort["age_years"][0] == pytest.approx(float(row["age"]), abs=5e-5)


# Known of the body -> BMI in kg/m2; empty: missing.
BMI = named(
    """
    case                   | bmi  | height_cm | weight_kg | found
    given                  | 27.5 |           |           | 27.5
    given, height ignored  | 27.5 | 180       | 120       | 27.5
    from height and weight |      | 180       | 81        | 25
    only the height        |      | 180       |           |
    nothing                |      |           |           |
    lowest kept            | 10   |           |           | 10
    too low                | 9.9  |           |           |
    highest kept           | 100  |           |           | 100
    too high               | 101  |           |           |
    height in metres       |      | 1.80      | 81        |
    weight in grams        |      | 180       | 81000     |
    """
)


@pytest.mark.parametrize("case", BMI)
def test_bmi_is_kept_where_it_can_be_one_and_its_lack_excludes_nobody(case):
    row = BMI[case]
    known = {name: float(row[name]) for name in ("bmi", "height_cm", "weight_kg") if row[name]}
    cohort, reason = link(films("a 2020-07-01"), cacs("2020-07-01"), clinical(**known))
    assert (reason, cohort["bmi"].to_list()) == ("", [float(row["found"]) if row["found"] else None])


REASONS = named(
    """
    case                | films                | CTs        | reason
    a CT but no film    |                      | 2020-07-01 | no radiograph
    no film but a slice | a 2020-07-01 CT      | 2020-07-01 | no radiograph
    only a lateral      | a 2020-07-01 lateral | 2020-07-01 | no frontal view
    a film but no CT    | a 2020-07-01         |            | no CACS
    a CT two years away | a 2020-07-01         | 2018-07-01 | no CACS in the window
    everything          | a 2020-07-01         | 2020-07-01 |
    """
)


@pytest.mark.parametrize("case", REASONS)
def test_a_patient_leaves_for_the_first_reason_that_applies(case):
    row = REASONS[case]
    some_film = films("z 2020-07-01", patient="2")
    mine = films(row["films"]) if row["films"] else some_film.clear()
    cohort, reason = link(some_film.vstack(mine), cacs(row["CTs"]).vstack(cacs("2020-07-01", patient="2")))
    assert reason == row["reason"]
    assert cohort["patient_id"].to_list() == (["2"] if reason else ["1", "2"])


def test_without_cacs_the_first_eligible_film_is_taken_and_no_ct_is_missed():
    cohort, reason = link(films("b 2020-07-01; a 2021-07-01; c 2019-07-01 lateral"), None)
    assert (reason, cohort["image_id"].to_list()) == ("", ["b"])
    assert cohort.select("ct_date", "cacs", "true_category").row(0) == (None, None, None)


def test_years_shifted_into_the_future_are_years_like_others():
    cohort, reason = link(
        films("a 2177-01-03"), cacs("2177-07-02"), clinical(birth_date=day("2117-01-03")), pairing="nearest_before"
    )
    assert (reason, cohort["days_between"].to_list(), cohort["age_years"].to_list()) == ("", [-180], [60])


def test_a_film_without_a_date_is_a_frontal_view_that_no_window_can_hold():
    undated = films("a 2020-07-01").with_columns(study_date=pl.lit(None, pl.Date))
    assert link(undated, cacs("2020-07-01"))[1] == "no CACS in the window"
    assert link(undated, None)[1] == "no frontal view"


def test_a_patient_of_two_sites_is_one_patient_at_the_site_of_the_clinical_table_or_else_of_the_film():
    two = films("a 2020-07-01; b 2020-07-03").with_columns(site=pl.Series(["A", "B"]))
    by_film, _ = link(two, cacs("2020-07-03"))
    assert by_film.select("image_id", "site").rows() == [("b", "B")]
    by_table, _ = link(two, cacs("2020-07-03"), clinical(site="C"))
    assert by_table.select("image_id", "site").rows() == [("b", "C")]


# One CT on 2020-07-01, and none where no pairing is named; one film is taken, the other listed with the reason.
SUPERSEDED = rows(
    """
    pairing        | taken              | not taken          | reason
    nearest        | a 2020-06-30       | b 2020-12-29       | outside_window
    nearest_before | a 2020-06-01       | b 2020-07-02       | other_side
    nearest_after  | a 2020-08-01       | b 2020-06-30       | other_side
    nearest        | a 2020-06-30       | b 2020-07-03       | farther
    nearest        | b 2020-06-30       | a 2020-07-02       | after_ct
    nearest        | b 2020-06-30 08:00 | a 2020-06-30 09:00 | later_time
    nearest        | b 2020-06-30 08:00 | a 2020-06-30       | later_time
    nearest        | a 2020-06-30 08:00 | b 2020-06-30 08:00 | later_image_id
                   | b 2020-06-30       | a 2020-07-01       | later_date
                   | b 2020-06-30 08:00 | a 2020-06-30 09:00 | later_time
    """
)


@pytest.mark.parametrize("row", SUPERSEDED, ids=lambda row: f"{row['pairing']} {row['reason']}")
def test_a_film_that_is_not_taken_is_listed_with_the_first_rule_it_lost_by(row):
    both = films(f"{row['taken']}; {row['not taken']}; z 2020-07-01 lateral")
    rules = pairing.Rules(180, row["pairing"] or "nearest", 18, [], [])
    cohort, _ = pairing.link(both, cacs("2020-07-01") if row["pairing"] else None, None, None, rules, CATEGORIES)
    assert cohort["image_id"].to_list() == [row["taken"].split()[0]]
    found = pairing.superseded(both, cohort, rules)
    assert found.select("image_id", "reason").rows() == [(row["not taken"].split()[0], row["reason"])]


def test_an_eligible_film_without_a_date_is_listed_too():
    undated = films("a 2020-07-01; b 2020-07-01").with_columns(
        study_date=pl.when(pl.col("image_id") == "a").then("study_date")
    )
    rules = pairing.Rules(180, "nearest", 18, [], [])
    cohort, _ = pairing.link(undated, cacs("2020-07-01"), None, None, rules, CATEGORIES)
    assert pairing.superseded(undated, cohort, rules).select("image_id", "reason").rows() == [("b", "no_date")]
