"""One file -> its modality and VOI look-up tables. Does not know what is done with them.

Descriptors lie: about the number of entries, the width of an entry, the sign of the first input. How many bytes there
are decides in their place where PS3.3 lets it.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from cohort_scorer.imaging import data_set
from cohort_scorer.imaging.display import LookUpTable
from cohort_scorer.imaging.refusal import Refused

_KEYWORDS = "ModalityLUTSequence VOILUTSequence"
_DESCRIPTOR, _DATA = 0x00283002, 0x00283006


def read(row: Mapping[str, Any], path: Path) -> tuple[LookUpTable | None, LookUpTable | None]:
    """Read the look-up tables that a row of the index says are there: the first item of either sequence.

    Args:
        row: A row of the index.
        path: The film's file.

    Returns:
        The modality LUT and the VOI LUT, None where the row knows none.

    Raises:
        Refused: missing_file, unreadable_file, header_too_large or look_up_table.
    """
    if not (row["modality_lut"] or row["voi_lut"]):
        return None, None
    with data_set.opened(path) as file, data_set.silenced():
        try:
            elements = data_set.Opened.of(file).elements(_KEYWORDS, _at_pixels, None)
            return (
                _table(elements.ModalityLUTSequence[0], row["pixel_representation"] == 1)
                if row["modality_lut"]
                else None,
                _table(elements.VOILUTSequence[0], _may_be_negative(row)) if row["voi_lut"] else None,
            )
        except (Refused, MemoryError):
            raise
        except Exception as error:
            # The tables are as untrusted as the rest of a header, and pydicom raises whatever it trips over.
            raise Refused("look_up_table", f"pydicom raised {type(error).__name__}") from error


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag in data_set.PIXEL_TAGS


def _may_be_negative(row: Mapping[str, Any]) -> bool:
    """Tell whether the input of a VOI LUT can be negative, and its first input is therefore signed (C.11.2.1.1)."""
    if row["modality_lut"]:
        return False
    bits, is_signed = row["bits_stored"], row["pixel_representation"] == 1
    slope, intercept = row["rescale_slope"] or 1.0, row["rescale_intercept"] or 0.0
    lowest = -(2 ** (bits - 1)) if is_signed else 0
    return bool(min(lowest * slope, (lowest + 2**bits - 1) * slope) + intercept < 0)


def _table(item: Dataset, is_signed: bool) -> LookUpTable:
    descriptor, data = item.get_item(_DESCRIPTOR), item.get_item(_DATA)
    order = "<" if descriptor.is_little_endian else ">"
    declared, first, bits = struct.unpack(f"{order}3H", descriptor.value)
    if first >= 2**15 and (is_signed or descriptor.VR == "SS"):
        first -= 2**16
    entries = _entries(bytes(data.value), declared or 2**16, bits, f"{order}u2")
    if entries.size == 0:
        raise Refused("look_up_table", "no entries")
    return LookUpTable(first, entries.tobytes())


def _entries(data: bytes, declared: int, bits: int, word: str) -> "np.ndarray[Any, np.dtype[np.uint16]]":
    """Return the entries, as many of those declared as there are.

    The length of the data tells entries of one byte from entries of two, padded or not (note of PS3.3 C.11.1.1.1).
    Bytes are packed into words, the first into the lower half (PS3.5 8.1.1), whatever the order of a word's bytes.
    """
    data += b"\0" * (len(data) % 2)
    words = np.frombuffer(data, word).astype("<u2")
    padded = declared + declared % 2
    if len(data) == padded or (bits <= 8 and len(data) < padded):
        return words.view(np.uint8)[:declared].astype("<u2")
    return words[:declared]
