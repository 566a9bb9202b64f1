"""What `check` counts as odd: one patient, or a few, and the problem that is found; everything else finds nothing."""

import polars as pl
import pytest
from clinical_tables import cacs, clinical, day, events, films, named

from cohort_scorer import schemas
from cohort_scorer.cohort import problems

# Patient 1, film and CT in 2020, followed until 2022-01-01. Of the clinical table: born, sex, height, weight, bmi, age.
ONE_PATIENT = named(
    """
    case                           | clinical                                      | CTs            | events                                     | film                 | found
    nothing odd                    | born 1960-05-01 height 170 weight 70 bmi 24.2 | 2020-01-01 100 | mi 2021-01-01                              | a 2020-01-02         |
    CT before birth                | born 2020-06-01                               | 2020-01-01     |                                            |                      | before_birth cacs.ct_date
    event before birth             | born 1999-06-01                               |                | mi 1999-05-31                              |                      | before_birth events.event_date
    event on the day of birth      | born 1999-06-01                               |                | mi 1999-06-01                              |                      |
    film before birth              | born 2020-06-01                               |                |                                            | a 2020-05-31         | age_contradicts_header clinical.age_years; before_birth films.study_date
    event after death              |                                               |                | cardiac_death 2021-01-01; mi 2021-01-02    |                      | after_death events.event_date
    event on the day of death      |                                               |                | cardiac_death 2021-01-01; mi 2021-01-01    |                      |
    CT after death                 |                                               | 2021-01-02     | other_death 2021-01-01                     |                      | after_death cacs.ct_date
    film after death               |                                               |                | other_death 2021-01-01                     | a 2021-01-02         | after_death films.study_date
    two deaths on two days         |                                               |                | cardiac_death 2021-01-01; death 2021-01-02 |                      | after_death events.event_date; several_days_of_death events.event_date
    two deaths on one day          |                                               |                | cardiac_death 2021-01-01; death 2021-01-01 |                      |
    event after the last contact   |                                               |                | mi 2022-01-02                              |                      | after_last_contact events.event_date
    event on the last contact      |                                               |                | mi 2022-01-01                              |                      |
    film after the last contact    |                                               |                |                                            | a 2022-01-02         | after_last_contact films.study_date
    a lateral film after death     |                                               |                | death 2021-01-01                           | a 2021-01-02 lateral |
    one event twice                |                                               |                | mi 2021-01-01; mi 2021-01-01               |                      | duplicated_row events
    two kinds on one day           |                                               |                | mi 2021-01-01; stroke 2021-01-01           |                      |
    day 0 of Unix                  |                                               |                | mi 1970-01-01                              |                      | placeholder_date events.event_date
    born on day 0 of Unix          | born 1970-01-01                               |                |                                            |                      |
    born in 1900                   | born 1900-01-01                               |                |                                            |                      | placeholder_date clinical.birth_date
    height in metres               | height 1.7                                    |                |                                            |                      | height_in_metres clinical.height_cm; outside_usual_range clinical.height_cm
    height in inches               | height 67                                     |                |                                            |                      | height_in_inches clinical.height_cm; outside_usual_range clinical.height_cm
    weight in pounds               | height 170 weight 154                         |                |                                            |                      | weight_in_pounds clinical.weight_kg
    heavy, not in pounds           | height 170 weight 140                         |                |                                            |                      |
    weight in grams                | height 170 weight 70000                       |                |                                            |                      | height_below_weight clinical.height_cm; outside_usual_range clinical.weight_kg
    height and weight swapped      | height 75 weight 170                          |                |                                            |                      | height_below_weight clinical.height_cm; height_in_inches clinical.height_cm; outside_usual_range clinical.height_cm
    BMI of another day             | height 170 weight 70 bmi 30                   |                |                                            |                      | bmi_contradicts_height_and_weight clinical.bmi
    BMI rounded                    | height 170 weight 70 bmi 24                   |                |                                            |                      |
    no such BMI                    | bmi 80                                        |                |                                            |                      | outside_usual_range clinical.bmi
    a child                        | age 12                                        |                |                                            |                      | outside_usual_range clinical.age_years
    another sex in the header      | sex M                                         |                |                                            | a 2020-01-02         | sex_contradicts_header clinical.sex
    60 in the header, born in 1960 | born 1960-01-02                               |                |                                            | a 2020-01-02         |
    60 in the header, born in 1950 | born 1950-01-02                               |                |                                            | a 2020-01-02         | age_contradicts_header clinical.age_years
    60 in the header, 61 told      | age 61                                        |                |                                            | a 2020-01-02         |
    60 in the header, 63 told      | age 63                                        |                |                                            | a 2020-01-02         | age_contradicts_header clinical.age_years
    """  # noqa: E501
)


def person(text: str) -> pl.DataFrame:
    """`born 1960-05-01 height 170` -> a clinical table; what is not told is missing."""
    words = text.split()
    told = dict(zip(words[::2], words[1::2], strict=True))
    numbers = {"height": "height_cm", "weight": "weight_kg", "bmi": "bmi", "age": "age_years"}
    facts: dict[str, object] = {column: float(told[name]) for name, column in numbers.items() if name in told}
    if "born" in told:
        facts["birth_date"] = day(told["born"])
    return clinical(**facts, **({"sex": told["sex"]} if "sex" in told else {}))


def found(tables: dict[str, pl.DataFrame], the_films: pl.DataFrame | None = None, **dropped: int) -> pl.DataFrame:
    counted = schemas.conform(problems.table(tables, the_films, [], dropped), "data_problems")
    assert schemas.check(counted, "data_problems", "data_problems").refused.is_empty()
    return counted.filter(pl.col("n") > 0)


def in_words(counted: pl.DataFrame) -> str:
    others = counted.filter(~pl.col("problem").is_in(["missing", "patient_not_there"]))
    places = others.select("problem", pl.concat_str("table", "column", separator=".", ignore_nulls=True))
    return "; ".join(sorted(f"{problem} {place}" for problem, place in places.iter_rows()))


@pytest.mark.parametrize("case", ONE_PATIENT)
def test_what_is_odd_about_one_patient(case: str) -> None:
    row = ONE_PATIENT[case]
    tables = {"follow_up": pl.DataFrame({"patient_id": ["1"], "last_contact_date": [day("2022-01-01")]})}
    if row["clinical"]:
        tables["clinical"] = person(row["clinical"])
    if row["CTs"]:
        tables["cacs"] = cacs(row["CTs"])
    if row["events"]:
        tables["events"] = events(row["events"])
    assert in_words(found(tables, films(row["film"]) if row["film"] else None)) == row["found"]


MATCHES = named(
    """
    case                | cacs of | films of | found
    the same people     | 01 02   | 02 01    |
    a film without a CT | 01      | 01 02    | films patient_not_there in cacs 1 of 2
    a CT without a film | 01 02   | 01       | cacs patient_not_there in films 1 of 2
    leading zeros lost  | 1 02    | 01 02    | cacs patient_not_there in films 1 of 2; cacs patient_there_without_zeros in films 1 of 2; films patient_not_there in cacs 1 of 2; films patient_there_without_zeros in cacs 1 of 2
    capitals            | a1 A2   | A1 A2    | cacs patient_not_there in films 1 of 2; cacs patient_there_without_case in films 1 of 2; films patient_not_there in cacs 1 of 2; films patient_there_without_case in cacs 1 of 2
    """  # noqa: E501
)


@pytest.mark.parametrize("case", MATCHES)
def test_the_patients_of_every_two_tables_are_matched(case: str) -> None:
    row = MATCHES[case]
    scores = pl.concat(cacs("2020-01-01", patient) for patient in row["cacs of"].split())
    taken = pl.concat(films("a 2020-01-01", patient) for patient in row["films of"].split())
    rows = found({"cacs": scores}, taken).select("table", "problem", "compared_with", "n", "of").iter_rows()
    assert "; ".join(f"{name} {problem} in {other} {n} of {of}" for name, problem, other, n, of in rows) == row["found"]


def test_most_patients_have_no_event_and_that_is_no_problem() -> None:
    tables = {"events": events("mi 2021-01-01"), "cacs": pl.concat([cacs("2020-01-01"), cacs("2020-01-01", "2")])}
    assert found(tables).is_empty()


@pytest.mark.parametrize(("n_missing", "severity"), [(0, "none"), (1, "note"), (2, "note"), (3, "warning")])
def test_more_than_a_fifth_missing_is_a_warning(n_missing: int, severity: str) -> None:
    people = pl.DataFrame(
        [{"patient_id": str(n), "sex": None if n < n_missing else "F"} for n in range(10)],
        schema=clinical().schema,
    )
    counted = problems.table({"clinical": people}, None, [], {}).filter(pl.col("column") == "sex")
    assert counted.select("n", "of", "percent", "severity").rows() == [(n_missing, 10, 10.0 * n_missing, severity)]


def test_age_and_bmi_are_missing_only_where_nothing_gives_them() -> None:
    given = pl.concat([person("born 1960-01-01 height 170 weight 70"), person("age 60 bmi 24"), person("height 170")])
    counted = problems.table({"clinical": given}, None, [], {}).filter(pl.col("problem") == "missing")
    assert dict(counted.select("column", "n").iter_rows()) == {"sex": 3, "age_years": 1, "bmi": 1, "site": 3}


def test_what_the_study_file_names_is_looked_at_too() -> None:
    given = person("age 60").with_columns(smoker=pl.lit(None, pl.Boolean))
    counted = problems.table({"clinical": given}, None, ["smoker"], {})
    assert counted.filter(pl.col("column") == "smoker").select("problem", "n").rows() == [("missing", 1)]


@pytest.mark.parametrize(
    ("scores", "n"),
    [([0.0, 1.0, 2.0, 3.0] * 5, 20), ([0.0, 1.0, 2.0, 3.0] * 4, 0), ([0.0, 0.5] * 10, 0), ([0.0, 400.0] * 10, 0)],
    ids=["categories", "too few to say", "fractions", "Agatston units"],
)
def test_categories_in_the_place_of_agatston_scores(scores: list[float], n: int) -> None:
    table = pl.concat([cacs("2020-01-01", str(number)) for number in range(len(scores))])
    assert found({"cacs": table.with_columns(cacs=pl.Series(scores))})["n"].to_list() == ([n] if n else [])


def test_faulty_rows_that_were_dropped_are_counted_of_all_that_came() -> None:
    counted = found({"cacs": cacs("2020-01-01; 2021-01-01; 2022-01-01")}, cacs=1)
    assert counted.select("table", "problem", "n", "of").rows() == [("cacs", "faulty_row_dropped", 1, 4)]


def test_a_patient_with_films_of_two_sites() -> None:
    two = films("a 2020-01-01; b 2020-01-02").with_columns(site=pl.Series(["A", "B"]))
    counted = found({"cacs": cacs("2020-01-01")}, two)
    assert counted.select("problem", "n", "of", "severity").rows() == [("films_of_several_sites", 1, 1, "note")]


def test_every_problem_has_been_seen_here() -> None:
    text = str([*ONE_PATIENT.values(), *MATCHES.values()])
    elsewhere = {"faulty_row_dropped", "missing", "score_like_a_category", "films_of_several_sites"}
    assert set(schemas.vocabulary("data_problems", "problem")) == elsewhere | {
        problem for problem in schemas.vocabulary("data_problems", "problem") if problem in text
    }
