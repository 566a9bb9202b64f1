"""The view of a film (PA, AP, LATERAL) from what its header says. Knows neither pixels nor which views a study wants.

Evidence in order of trust: ViewCodeSequence, ViewPosition, SeriesDescription, ProtocolName, PatientOrientation. A view
that is stated but is none of the three (oblique, decubitus) is OTHER; no statement at all is UNKNOWN.
"""

import re
from collections.abc import Mapping

# DICOM PS3.16 CID 4010 "DX View": SNOMED CT codes, and the SNOMED-RT codes that they replaced.
_VIEW_CODES = {
    "272479007": "PA",
    "R-10214": "PA",
    "399348003": "AP",
    "R-10206": "AP",
    "399198007": "LATERAL",
    "R-10232": "LATERAL",
    "399173006": "LATERAL",
    "R-10236": "LATERAL",
    "399067008": "LATERAL",
}

# DICOM PS3.3 C.8.1.1 and C.8.11.5 defined terms of ViewPosition (0018,5101), and spellings met in real files.
_VIEW_POSITIONS = {
    "PA": "PA",
    "AP": "AP",
    "LL": "LATERAL",
    "RL": "LATERAL",
    "LAT": "LATERAL",
    "LATERAL": "LATERAL",
    "LLAT": "LATERAL",
    "RLAT": "LATERAL",
    "LEFT LATERAL": "LATERAL",
    "RIGHT LATERAL": "LATERAL",
    "POSTERO-ANTERIOR": "PA",
    "POSTEROANTERIOR": "PA",
    "ANTERO-POSTERIOR": "AP",
    "ANTEROPOSTERIOR": "AP",
}

_WORDS = {
    "PA": re.compile(r"\b(P\.?A|POSTERO-?ANTERIOR)\b"),
    "AP": re.compile(r"\b(A\.?P|ANTERO-?POSTERIOR)\b"),
    "LATERAL": re.compile(r"\b(LAT|LATERAL|LATERALE|LL|RL|SEITLICH|PROFIL)\b"),
    "OTHER": re.compile(r"\b(OBL|OBLIQUE|DECUB|DECUBITUS|LORDOTIC|APICAL)\b"),
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
        another source says something else.
    """
    findings = [(source, reading(evidence.get(source))) for source, reading in _READINGS.items()]
    stated = [(source, view) for source, view in findings if view is not None]
    if not stated:
        return "UNKNOWN", "none", False
    source, view = stated[0]
    return view, source, any(other != view for _, other in stated)


def _from_code(code: str | None) -> str | None:
    return None if code is None else _VIEW_CODES.get(code, "OTHER")


def _from_position(position: str | None) -> str | None:
    return None if position is None else _VIEW_POSITIONS.get(position.upper(), "OTHER")


def _from_description(description: str | None) -> str | None:
    """One view where exactly one is named: `CHEST PA AND LATERAL` describes a study, not a film."""
    named = [view for view, word in _WORDS.items() if description is not None and word.search(description.upper())]
    return named[0] if len(named) == 1 else None


def _from_orientation(orientation: str | None) -> str | None:
    """Rows that run forwards or backwards make a lateral film; frontal ones may be PA or AP (PS3.3 C.7.6.1)."""
    return "LATERAL" if orientation is not None and orientation[:1] in ("A", "P") else None


_READINGS = {
    "view_code_sequence": _from_code,
    "view_position": _from_position,
    "series_description": _from_description,
    "protocol_name": _from_description,
    "patient_orientation": _from_orientation,
}
