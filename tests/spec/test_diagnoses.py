"""When a diagnosis is an event: code prefixes, where in the record the code stands, and code systems."""

import polars as pl
import pytest
from clinical_tables import day, named, parts, rows

from cohort_scorer import schemas
from cohort_scorer.cohort import diagnoses, follow_up
from cohort_scorer.study import CodeList

CASES = named(
    """
    case                              | prefixes  | position | system | diagnosis              | event
    the code itself                   | I21       |          |        | I21 1                  | yes
    a longer code                     | I21       |          |        | I21.4 1                | yes
    written without its point         | I21.4     |          |        | I214 1                 | yes
    written small                     | i21       |          |        | i21.9 1                | yes
    another code                      | I21       |          |        | I22 1                  | no
    shorter than the prefix           | I21.4     |          |        | I21 1                  | no
    the prefix inside, not in front   | I21       |          |        | ZI21 1                 | no
    the second of two prefixes        | I21; I22  |          |        | I22.0 1                | yes
    any position                      | I21       |          |        | I21 7                  | yes
    no position, any asked for        | I21       |          |        | I21                    | yes
    the principal diagnosis           | I21       | 1        |        | I21 1                  | yes
    a secondary one                   | I21       | 1        |        | I21 2                  | no
    within the first three            | I21       | 3        |        | I21 3                  | yes
    nobody says where it stood        | I21       | 1        |        | I21                    | no
    the system asked for              | E11       |          | ICD-10 | E11 1 ICD-10           | yes
    another system                    | E11       |          | ICD-10 | E11 1 ICD-9            | no
    a system that nobody tells        | E11       |          | ICD-10 | E11 1                  | no
    """
)


def table(text: str) -> pl.DataFrame:
    """`I21.4 1 ICD-10` -> a diagnosis of patient 1 on 2020-02-10; position and system may be left out."""
    found = []
    for part in parts(text):
        code, *more = part.split()
        position = int(more[0]) if more else None
        found.append(("1", code, day("2020-02-10"), position, more[1] if len(more) > 1 else None))
    return pl.DataFrame(found, schema=schemas.columns("diagnoses"), orient="row")


def code_list(row: dict[str, str]) -> CodeList:
    position = int(row["position"]) if row["position"] else None
    return CodeList(prefixes=parts(row["prefixes"]), maximum_position=position, system=row["system"])


@pytest.mark.parametrize("case", CASES)
def test_when_a_diagnosis_is_an_event(case: str) -> None:
    row = CASES[case]
    found, _ = diagnoses.events(table(row["diagnosis"]), {"mi": code_list(row)})
    assert found.rows() == ([("1", "mi", day("2020-02-10"))] if row["event"] == "yes" else [])


def test_two_diagnoses_of_one_day_are_one_event_and_the_manifest_holds_the_list() -> None:
    lists = {"mi": CodeList(prefixes=["I21"], maximum_position=1), "stroke": CodeList(prefixes=["I63", "I64"])}
    found, told = diagnoses.events(table("I21.4 1; I21.0 1; I21; I63.9 2; J18 1"), lists)
    assert found.rows() == [("1", "mi", day("2020-02-10")), ("1", "stroke", day("2020-02-10"))]
    assert told == {
        "mi": {"prefixes": ["I21"], "maximum_position": 1, "system": "", "n_events": 1, "n_without_position": 1},
        "stroke": {
            "prefixes": ["I63", "I64"], "maximum_position": None, "system": "", "n_events": 1, "n_without_position": 0,
        },
    }  # fmt: skip


PRESETS = rows(
    """
    name            | components
    mace3           | cardiovascular_death; myocardial_infarction; stroke
    mace4           | cardiovascular_death; myocardial_infarction; stroke; unstable_angina
    mace5           | cardiovascular_death; myocardial_infarction; stroke; unstable_angina; heart_failure
    all_cause_death | cardiovascular_death; Death_of_cancer
    """
)


@pytest.mark.parametrize("row", PRESETS, ids=lambda row: row["name"])
def test_what_the_names_of_outcomes_stand_for(row: dict[str, str]) -> None:
    types = ["cardiovascular_death", "stroke", "Death_of_cancer", "pci"]
    assert list(follow_up.components(row["name"], types)) == parts(row["components"])


def test_a_list_of_types_is_itself() -> None:
    assert follow_up.components(["stroke", "pci"], ["pci"]) == ["stroke", "pci"]
