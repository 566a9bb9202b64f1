"""Which files an archive holds, and their names. Opens none of them.

A uri is the POSIX path below the root, percent-encoded byte by byte (RFC 3986), so that a name in Latin-1, with a line
break or with markup is plain ASCII text everywhere else.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import polars as pl

from cohort_scorer.errors import StudyFileError
from cohort_scorer.imaging.refusal import Refused

_SEPARATOR = os.fsencode(os.sep)
_COLUMNS = {
    "uri": pl.String,
    "file_size": pl.Int64,
    "file_mtime_ns": pl.Int64,
    "problem": pl.String,
    "listed_uri": pl.String,
}

_Found = tuple[str, int | None, int | None, str | None, str | None]


def find_files(root: Path, listing: pl.DataFrame | None) -> pl.DataFrame:
    """Find the files of one root, or look up those that a listing names.

    Symbolic links are followed where they stay below the root; a link to a folder there is not, since its files are
    found at their own place, which also makes loops harmless.

    Args:
        root: An existing folder.
        listing: Rows of the schema `listing`, or None to take every file below the root.

    Returns:
        One row per file, sorted by uri: uri, file_size (bytes), file_mtime_ns, problem (null, or a reason of
        data_schemas/refusals.json; then size and time may be null), listed_uri (the uri as the listing writes it).

    Raises:
        StudyFileError: The root is no folder.
    """
    if not root.is_dir():
        raise StudyFileError(
            "study.toml: [archive] root is not a folder.",
            "Expected an existing folder of films.",
            "Correct [archive] root; paths are relative to the study file.",
        )
    real_root = os.path.realpath(os.fsencode(root))
    found = _walk(real_root) if listing is None else _look_up(real_root, listing["uri"].to_list())
    return pl.DataFrame(list(found), schema=_COLUMNS, orient="row").sort("uri", "listed_uri")


def path_of(root: Path, uri: str) -> Path:
    """Return the file that a uri names below a root.

    Raises:
        Refused: outside_root, where the uri is absolute or climbs with `..`.
    """
    relative = unquote_to_bytes(uri)
    if relative.startswith(b"/") or b".." in relative.split(b"/") or b"\0" in relative:
        raise Refused("outside_root", "the uri leaves the archive")
    return root / os.fsdecode(relative)


def _uri(relative: bytes) -> str:
    return quote(relative.replace(_SEPARATOR, b"/"))


def _walk(root: bytes) -> Iterator[_Found]:
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as scanned:  # noqa: PTH118 (names are bytes)
                entries = [(os.path.join(folder, entry.name), entry) for entry in scanned]  # noqa: PTH118
        except OSError:
            yield _uri(folder), None, None, "unreadable_file", None
            continue
        for relative, entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(relative)
            elif not entry.is_symlink():
                yield _described(root, relative, None)
            elif not _is_folder_inside(root, entry.path):
                yield _resolved(root, relative, None)


def _is_folder_inside(root: bytes, link: bytes) -> bool:
    target = os.path.realpath(link)
    return (target == root or _is_inside(root, target)) and os.path.isdir(link)  # noqa: PTH112


def _look_up(root: bytes, uris: list[str]) -> Iterator[_Found]:
    times_listed: dict[bytes, int] = {}
    names = [os.path.normpath(unquote_to_bytes(uri)) for uri in uris]
    for name in names:
        times_listed[name] = times_listed.get(name, 0) + 1
    for uri, name in zip(uris, names, strict=True):
        count = times_listed.pop(name, 0)
        if count == 1:
            yield _resolved(root, name, uri)
        elif count > 1:
            yield _uri(name), None, None, "listed_twice", uri


def _resolved(root: bytes, relative: bytes, listed_uri: str | None) -> _Found:
    """Describe a file whose name may lead anywhere."""
    try:
        target = os.path.realpath(os.path.join(root, relative))  # noqa: PTH118
    except ValueError:  # a NUL byte
        return _uri(relative), None, None, "missing_file", listed_uri
    if relative.startswith(_SEPARATOR) or not _is_inside(root, target):
        return _uri(relative), None, None, "outside_root", listed_uri
    return _described(root, relative, listed_uri)


def _described(root: bytes, relative: bytes, listed_uri: str | None) -> _Found:
    uri = _uri(relative)
    try:
        status = os.stat(os.path.join(root, relative))  # noqa: PTH116, PTH118
    except (FileNotFoundError, NotADirectoryError):
        return uri, None, None, "missing_file", listed_uri
    except OSError:
        return uri, None, None, "unreadable_file", listed_uri
    problem = None if stat.S_ISREG(status.st_mode) else "not_a_file"
    return uri, status.st_size, status.st_mtime_ns, problem, listed_uri


def _is_inside(root: bytes, path: bytes) -> bool:
    return path.startswith(root.rstrip(_SEPARATOR) + _SEPARATOR)
