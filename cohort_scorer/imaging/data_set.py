"""Files -> data sets, no further read than wanted. Does not know what their elements mean.

Every file is hostile until read: pydicom sees at most 256 MiB of inflated data, and may read only so often and so much
of it.
"""

import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from cohort_scorer.imaging import deflated
from cohort_scorer.imaging.refusal import Refused
from cohort_scorer.imaging.values import text_of

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG})
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

_LONGEST_OF_GROUP_2 = 2**16
_MOST_READS = 300_000  # an element takes one to three
_MOST_BYTES = 64 * 2**20
_SILENCE = threading.Lock()


def opened(path: Path) -> BufferedReader:
    """Open a file to read.

    Raises:
        Refused: missing_file or unreadable_file.
    """
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused("missing_file", "no such file") from error
    except OSError as error:
        raise Refused("unreadable_file", type(error).__name__) from error


def inflated(file: BinaryIO) -> BufferedReader:
    """Return the data set of a file in the deflated syntax, inflated as it is read.

    Args:
        file: The file, at its start.

    Raises:
        Refused: not_dicom or header_unreadable. Reading raises what `deflated.reader` says.
    """
    with silenced():
        try:
            _read_meta(file)
        except (Refused, MemoryError):
            raise
        except Exception as error:
            # pydicom raises whatever a malformed header trips over.
            raise Refused("header_unreadable", f"pydicom raised {type(error).__name__}") from error
    return deflated.reader(file)


@contextmanager
def silenced() -> Iterator[None]:
    """Keep pydicom's warnings, which quote values of the header, out of every stream and log.

    Filters and levels are the process's: one thread at a time.
    """
    logger = logging.getLogger("pydicom")
    with _SILENCE, warnings.catch_warnings():
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            warnings.simplefilter("ignore")
            yield
        finally:
            logger.setLevel(level)


class _Bounded:
    """A stream that gives pydicom neither millions of elements nor gigabytes: objects take ten times their bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self._reads_left, self._bytes_left = _MOST_READS, _MOST_BYTES

    def read(self, size: int) -> bytes:
        content = self._read(min(size, self._bytes_left + 1))
        self._reads_left -= 1
        self._bytes_left -= len(content)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise Refused("header_too_large", "more elements or bytes than are read of a header")
        return content


@dataclass(frozen=True)
class Opened:
    """A file whose group 2 has been read.

    Attributes:
        meta: Group 2 (PS3.10 7.1).
        has_magic: `DICM` stands at byte 128.
        syntax: The transfer syntax, guessed from the first element where group 2 is silent.
        stream: The data set from its first element, inflated where it was deflated.
    """

    meta: Dataset
    has_magic: bool
    syntax: str
    stream: BinaryIO

    @classmethod
    def of(cls, file: BinaryIO) -> "Opened":
        """Read group 2 of a file at its start.

        Raises:
            Refused: not_dicom or header_too_large. Besides, whatever pydicom raises.
        """
        meta, has_magic = _read_meta(file)
        syntax = text_of(meta, "TransferSyntaxUID") or _guessed_syntax(file)
        return cls(meta, has_magic, syntax, deflated.reader(file) if syntax == DEFLATED else file)

    def elements(
        self, keywords: str, stop_when: Callable[[BaseTag, str | None, int], bool], longest: int | None
    ) -> Dataset:
        """Read some elements of the data set.

        Args:
            keywords: Theirs, between spaces.
            stop_when: Given a tag, its VR and the length of its value, tells whether to stop before it.
            longest: Values of more bytes, where their length is stated, are left out; None reads all.

        Raises:
            Refused: header_too_large. Besides, whatever pydicom raises.
        """
        return _elements(
            self.stream,
            self.syntax == IMPLICIT_LITTLE,
            self.syntax != EXPLICIT_BIG,
            stop_when=stop_when,
            defer_size=longest,
            specific_tags=[tag for tag in map(tag_for_keyword, keywords.split()) if tag is not None],
        )


def _elements(stream: BinaryIO, is_implicit: bool, is_little_endian: bool, **how: Any) -> Dataset:
    try:
        return read_dataset(cast(BinaryIO, _Bounded(stream)), is_implicit, is_little_endian, **how)
    except OSError as error:
        if isinstance(error.__context__, Refused):  # between items, pydicom makes one of whatever reading raises
            raise error.__context__ from None
        raise


def _read_meta(file: BinaryIO) -> tuple[Dataset, bool]:
    """Read group 2 (PS3.10 7.1), leaving the file at the first element after it; tell whether `DICM` stood there."""
    start = file.read(132)
    has_magic = start[128:] == b"DICM"
    if not has_magic:
        # Without a preamble a data set begins with group 2 or 8, in either byte order; HTML and CSV do not.
        if start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
            raise Refused("not_dicom", "no preamble, and no DICOM element at its start")
        file.seek(0)
    meta = _elements(
        file,
        False,
        True,
        stop_when=lambda tag, vr, length: tag >> 16 != 2,
        defer_size=_LONGEST_OF_GROUP_2,
    )
    return meta, has_magic


def _guessed_syntax(file: BinaryIO) -> str:
    """Guess the syntax of a data set without meta information from its first element: tag, then perhaps a VR."""
    start = file.read(6)
    file.seek(-len(start), io.SEEK_CUR)
    if not re.fullmatch(rb"[A-Z]{2}", start[4:6]):
        return IMPLICIT_LITTLE
    return EXPLICIT_BIG if start[:1] == b"\x00" else EXPLICIT_LITTLE
