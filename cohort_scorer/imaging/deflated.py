"""Deflated data sets, inflated as they are read: forwards, one piece in memory. Knows nothing of what they hold."""

import io
import zlib
from typing import BinaryIO, Final

from cohort_scorer.imaging.refusal import Refused

MAXIMUM_INFLATED_BYTES: Final = 256 * 2**20
_BYTES_READ = 2**16
_LARGEST_PIECE = 2**20
_BYTES_KEPT = 2**16  # before a piece: readers of headers take small steps back


def reader(file: BinaryIO) -> io.BufferedReader:
    """Return what a raw deflate stream (PS3.5 A.5) stands for, as a file to read and to seek forwards in.

    Args:
        file: Open, and at the first byte of the stream.

    Returns:
        A file; reading it raises zlib.error where the stream is broken, and Refused (header_too_large) beyond 256 MiB.
    """
    return io.BufferedReader(_Inflated(file), _BYTES_READ)


class _Inflated(io.RawIOBase):
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._piece = b""
        self._start = 0  # of the piece
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end is not known")
        self._position = offset if whence == io.SEEK_SET else self._position + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while self._position >= self._start + len(self._piece) and self._inflate():
            pass
        first = self._position - self._start
        if first < 0:
            raise io.UnsupportedOperation("a step back beyond what is kept")
        part = self._piece[first : first + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _inflate(self) -> bool:
        """Take the next piece; False at the end."""
        if self._inflater.eof:
            return False
        chunk = self._inflater.unconsumed_tail or self._file.read(_BYTES_READ)
        piece = self._inflater.decompress(chunk, _LARGEST_PIECE)
        if not (chunk or piece):
            return False
        kept = self._piece[-_BYTES_KEPT:]
        self._start += len(self._piece) - len(kept)
        self._piece = kept + piece
        if self._start + len(self._piece) > MAXIMUM_INFLATED_BYTES:
            raise Refused("header_too_large", f"inflates beyond {MAXIMUM_INFLATED_BYTES // 2**20} MiB")
        return True
