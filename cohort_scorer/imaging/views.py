"""The view of a film (PA, AP, LATERAL) from what its header says. Knows neither pixels nor which views a study wants.

Evidence in order of trust: ViewCodeSequence, ViewPosition, SeriesDescription, ProtocolName, PatientOrientation. A view
that is stated but is none of the three (oblique, decubitus) is OTHER; no statement at all is UNKNOWN. What says no more
than that the film is frontal decides nothing, for PA and AP are frontal both, but it contradicts LATERAL; codes and
words that mean no view here say nothing.
"""

import re
from collections.abc import Mapping

# DICOM PS3.16 CID 4010 "DX View": SNOMED CT codes, and the SNOMED-RT codes that they replaced.
_VIEW_CODES = {
    "PA": "272479007 R-10214 R-40888",
    "AP": "399348003 R-10206",
    "LATERAL": "399198007 R-10232 399173006 R-10236 399067008 R-102CD",
    "FRONTAL": "399033003 R-10202",
    "OTHER": (
        "399160007 R-10204 399312000 R-10208 399038007 R-10210 399006002 R-10212 399059000 R-10216 399356000 "
        "R-40985 399135007 R-10220 399368009 R-10226 399099002 R-10230 399236003 R-10234 399184004 R-10238 "
        "399061009 R-10241 399162004 R-10242 399196006 R-10244 399004004 R-10246 399288005 R-10248 399225005 "
        "R-10250 399260004 R-10224 399352003 R-10228 399132005 R-10252 399325008 R-10254 260426006 R-40782 "
        "260427002 R-40783 399182000 R-102C1 399110001 R-102C2"
    ),
}
_VIEW_OF_CODE = {code: view for view, codes in _VIEW_CODES.items() for code in codes.split()}

# Words of free text, and the defined terms of ViewPosition (0018,5101), PS3.3 C.8.1.1 and C.8.11.5: AP, PA, left and
# right lateral (LL, RL), decubitus (LLD, RLD) and oblique (LLO, RLO). A neighbouring digit or underscore ends a word.
_WORDS = {
    view: re.compile(rf"(?<![A-Z])(?:{words})(?![A-Z])")
    for view, words in {
        "PA": r"P[.-]{0,2}A|POSTER(?:O|IOR)[- ]?ANTERIOR",
        "AP": r"A[.-]{0,2}P|ANTER(?:O|IOR)[- ]?POSTERIOR",
        "LATERAL": r"[LR]?LAT|LATERALE?|LL|RL|SEITLICH|SEITL|PROFIL|PERFIL",
        "OTHER": r"OBL|OBLIQUE|DECUB|DECUBITUS|LORDOTIC|APICAL|AXIAL|TANGENTIAL|SWIMMERS?|[LR]L[DO]|[LR][AP]O",
        "FRONTAL": r"FRONTAL|FACE",
    }.items()
}

Evidence = Mapping[str, str | None]


def view_from(evidence: Evidence) -> tuple[str, str, bool]:
    """Weigh the evidence of one header.

    Args:
        evidence: Raw text by source, in the names of the column `view_source`: view_code_sequence (code value),
            view_position, series_description, protocol_name, patient_orientation (row and column direction joined by
            a backslash); missing or None where the header is silent.

    Returns:
        The view (PA, AP, LATERAL, OTHER, UNKNOWN), the source that decided it (`none` for UNKNOWN), and whether
        another source contradicts it.
    """
    findings = [(source, reading(evidence.get(source) or "")) for source, reading in _READINGS.items()]
    stated = [(source, view) for source, view in findings if view not in (None, "FRONTAL")]
    if not stated:
        return "UNKNOWN", "none", False
    source, view = stated[0]
    agreeing = {view, None} if view == "LATERAL" else {view, None, "FRONTAL"}
    return view, source, any(other not in agreeing for _, other in findings)


def _from_code(code: str) -> str | None:
    return _VIEW_OF_CODE.get(code)


def _named(text: str) -> list[str]:
    return [view for view, word in _WORDS.items() if word.search(text.upper())]


def _from_position(position: str) -> str | None:
    """The view of one film: an oblique AP or a lateral decubitus is OTHER."""
    named = _named(position)
    return "OTHER" if "OTHER" in named else _only(named)


def _from_description(description: str) -> str | None:
    """One view where exactly one is named: `CHEST PA AND LATERAL` describes a study, not a film."""
    return _only(_named(description))


def _only(named: list[str]) -> str | None:
    views = [view for view in named if view != "FRONTAL"] or named
    return views[0] if len(views) == 1 else None


def _from_orientation(orientation: str) -> str | None:
    """Where rows or columns run forwards or backwards the film is lateral, else frontal (PS3.3 C.7.6.1.1.1)."""
    directions = [direction[:1] for direction in orientation.split("\\")]
    if len(directions) != 2 or not set(directions) <= set("APLRHF"):
        return None
    return "LATERAL" if set(directions) & {"A", "P"} else "FRONTAL"


_READINGS = {
    "view_code_sequence": _from_code,
    "view_position": _from_position,
    "series_description": _from_description,
    "protocol_name": _from_description,
    "patient_orientation": _from_orientation,
}
