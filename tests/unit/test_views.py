"""The view of a film from what its header says."""

import pytest
from pydicom.sr._cid_dict import cid_concepts
from pydicom.sr._concepts_dict import concepts

from cohort_scorer.imaging.views import view_from


@pytest.mark.parametrize(
    ("position", "view"),
    [
        ("PA", "PA"),
        ("pa", "PA"),
        ("POSTERO-ANTERIOR", "PA"),
        ("POSTEROANTERIOR", "PA"),
        ("AP", "AP"),
        ("AP PORTABLE", "AP"),
        ("ANTERIOR POSTERIOR", "AP"),
        ("LL", "LATERAL"),
        ("RL", "LATERAL"),
        ("LLAT", "LATERAL"),
        ("LEFT LATERAL", "LATERAL"),
        ("XTABLE LATERAL", "LATERAL"),
        ("RLD", "OTHER"),
        ("AP LLD", "OTHER"),
        ("LATERAL DECUBITUS", "OTHER"),
        ("LAO", "OTHER"),
        ("AP AXIAL", "OTHER"),
        ("SWIMMERS", "OTHER"),
        ("", "UNKNOWN"),
        (None, "UNKNOWN"),
        ("UNKNOWN", "UNKNOWN"),
        ("ERECT", "UNKNOWN"),
        ("FRONTAL", "UNKNOWN"),
        ("PA/LAT", "UNKNOWN"),
        ("APEX", "UNKNOWN"),
    ],
    ids=str,
)
def test_view_position_states_a_view_or_nothing(position, view):
    source = "none" if view == "UNKNOWN" else "view_position"
    assert view_from({"view_position": position}) == (view, source, False)


@pytest.mark.parametrize(
    ("description", "view"),
    [
        ("Thorax p.a.", "PA"),
        ("Chest_PA_Erect", "PA"),
        ("CHEST 1 VIEW AP", "AP"),
        ("W033 Chest P-A", "PA"),
        ("Thorax seitl.", "LATERAL"),
        ("Thorax de profil", "LATERAL"),
        ("Tórax PA de frente", "PA"),
        ("CHEST FRONTAL PA", "PA"),
        ("Chest oblique", "OTHER"),
        ("CHEST PA AND LATERAL", "UNKNOWN"),
        ("CHEST AP/PA", "UNKNOWN"),
        ("Thorax face", "UNKNOWN"),
        ("PARANASAL SINUSES", "UNKNOWN"),
        ("Map of the lap", "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("source", ["series_description", "protocol_name"])
def test_a_description_states_a_view_where_it_names_one(source, description, view):
    assert view_from({source: description}) == (view, "none" if view == "UNKNOWN" else source, False)


def test_every_code_of_cid_4010_for_the_trunk_is_known():
    """Codes of the skull and the foot, and of specimens, say nothing of a chest."""
    elsewhere = {
        *("tissue specimen", "Occlusal projection", "Sagittal", "plantodorsal", "dorsoplantar", "acanthioparietal"),
        *("orbitoparietal", "parietoacanthial", "parieto-orbital", "submentovertical", "verticosubmental"),
    }
    views = {"postero-anterior": "PA", "antero-posterior": "AP", "frontal": "UNKNOWN"}
    views |= dict.fromkeys(("lateral", "left lateral", "right lateral"), "LATERAL")
    known = {
        code: meaning
        for name in cid_concepts[4010]["SCT"]
        for code, (meaning, cids) in concepts["SCT"][name].items()
        if 4010 in cids
    }
    assert len(known) > 40
    for code, meaning in known.items():
        expected = "UNKNOWN" if meaning in elsewhere else views.get(meaning, "OTHER")
        assert view_from({"view_code_sequence": code})[0] == expected, meaning


@pytest.mark.parametrize(
    ("code", "view"), [("R-10214", "PA"), ("R-10206", "AP"), ("R-102CD", "LATERAL"), ("R-10236", "LATERAL")]
)
def test_the_older_codes_are_known(code, view):
    assert view_from({"view_code_sequence": code})[0] == view


@pytest.mark.parametrize("code", ["399033003", "R-10202", "LOCAL-17", ""])
def test_a_code_that_does_not_say_which_view_leaves_it_to_the_next_evidence(code):
    assert view_from({"view_code_sequence": code, "view_position": "PA"}) == ("PA", "view_position", False)


@pytest.mark.parametrize(
    ("orientation", "view"),
    [
        ("A\\F", "LATERAL"),
        ("P\\F", "LATERAL"),
        ("F\\A", "LATERAL"),
        ("L\\F", "UNKNOWN"),
        ("R\\F", "UNKNOWN"),
        ("L", "UNKNOWN"),
        ("?\\?", "UNKNOWN"),
    ],
)
def test_orientation_tells_lateral_from_frontal(orientation, view):
    assert view_from({"patient_orientation": orientation})[0] == view


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ({"view_position": "PA", "series_description": "Chest AP"}, ("PA", "view_position", True)),
        ({"view_position": "PA", "series_description": "Chest PA"}, ("PA", "view_position", False)),
        ({"view_position": "PA", "series_description": "Chest PA and lateral"}, ("PA", "view_position", False)),
        ({"view_position": "PA", "patient_orientation": "L\\F"}, ("PA", "view_position", False)),
        ({"view_position": "PA", "patient_orientation": "A\\F"}, ("PA", "view_position", True)),
        ({"view_position": "LL", "patient_orientation": "L\\F"}, ("LATERAL", "view_position", True)),
        ({"view_position": "LL", "view_code_sequence": "399033003"}, ("LATERAL", "view_position", True)),
        ({"view_position": "", "protocol_name": "Thorax ap"}, ("AP", "protocol_name", False)),
        (
            {"series_description": "Thorax pa", "protocol_name": "Thorax lat"},
            ("PA", "series_description", True),
        ),
    ],
    ids=str,
)
def test_the_most_trusted_evidence_decides_and_a_contradiction_is_flagged(evidence, expected):
    assert view_from(evidence) == expected
