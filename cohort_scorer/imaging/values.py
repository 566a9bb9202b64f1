"""Elements of a data set -> plain values, None where an element is silent or unreadable. Knows no element's meaning."""

import math
import re
from datetime import date
from typing import Any

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

_DAYS_PER_YEAR = 365.25
_OLDEST_YEARS = 130  # nobody has been
_YEARS_PER_UNIT = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / _DAYS_PER_YEAR, "D": 1 / _DAYS_PER_YEAR}


def value_of(header: Dataset, keyword: str) -> Any:
    """Return an element's value as pydicom converts it."""
    try:
        return header.get(keyword)
    except Exception:
        # pydicom converts on access and raises what the malformed value trips over: an unreadable value is no value.
        return None


def is_there(header: Dataset, keyword: str) -> bool:
    """Tell whether an element has a value, readable or not, and without reading one that was deferred."""
    element = header.get_item(keyword, keep_deferred=True)
    if isinstance(element, RawDataElement):
        return bool(element.length)
    return element is not None and not element.is_empty


def text_of(header: Dataset, keyword: str) -> str | None:
    """Return the text of an element, several values joined by backslashes, without outer spaces; never empty."""
    value = value_of(header, keyword)
    if isinstance(value, MultiValue | list):
        value = "\\".join(str(part) for part in value)
    if value is None:
        return None
    text = str(value).replace("\0", "").strip()
    return text.encode("utf-8", "replace").decode("utf-8") or None


def number_of(header: Dataset, keyword: str) -> float | None:
    """Return the first number of an element, where it is finite."""
    value = value_of(header, keyword)
    if isinstance(value, MultiValue | list):
        value = value[0] if value else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def integer_of(header: Dataset, keyword: str) -> int | None:
    """Return the first number of an element, cut to an integer below 2**53."""
    number = number_of(header, keyword)
    return int(number) if number is not None and abs(number) < 2**53 else None


def spacing_mm_of(header: Dataset) -> float | None:
    """Return the row spacing in mm at the patient where known, else at the detector; zero spacing says nothing."""
    spacings = (number_of(header, keyword) for keyword in ("PixelSpacing", "ImagerPixelSpacing"))
    return next((spacing for spacing in spacings if spacing is not None and spacing > 0), None)


def date_of(header: Dataset, keyword: str) -> date | None:
    """Return a date (PS3.5 6.2, DA), also as ACR-NEMA wrote it."""
    digits = (text_of(header, keyword) or "").replace(".", "")  # YYYY.MM.DD
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) if len(digits) == 8 else None
    except ValueError:
        return None


def time_of(header: Dataset, keyword: str) -> str | None:
    """Return a time (PS3.5 6.2, TM) as HH:MM:SS."""
    match = re.match(r"([01]\d|2[0-3]):?([0-5]\d):?([0-5]\d)", text_of(header, keyword) or "")
    return ":".join(match.groups()) if match else None


def age_years(stated: str | None, birth_date: date | None, study_date: date | None) -> float | None:
    """Return PatientAge (PS3.5 AS, or bare years), else the time from birth to study."""
    match = re.fullmatch(r"(\d{1,3})\s*([DWMY]?)", (stated or "").upper())
    if match:
        age = int(match.group(1)) * _YEARS_PER_UNIT[match.group(2)]
    elif birth_date is not None and study_date is not None:
        age = (study_date - birth_date).days / _DAYS_PER_YEAR
    else:
        return None
    return age if 0 <= age <= _OLDEST_YEARS else None
