"""Which files an archive holds, and their names. Opens none of them.

A uri is the POSIX path below the root, percent-encoded byte by byte (RFC 3986), so that a name in Latin-1, with a line
break or with markup is plain ASCII text everywhere else.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice, permutations
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import polars as pl

from cohort_scorer.errors import StudyFileError
from cohort_scorer.imaging.refusal import Refused

_SEPARATOR = os.fsencode(os.sep)
_BATCH_FILES = 2_000
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
    batches = iter(lambda: list(islice(found, _BATCH_FILES)), [])  # As Python objects they take three times the memory.
    frames = [pl.DataFrame(batch, schema=_COLUMNS, orient="row") for batch in batches]
    return pl.concat([pl.DataFrame(schema=_COLUMNS), *frames]).sort("uri", "listed_uri")


def refuse_nested(roots: Mapping[str, Path]) -> None:
    """Refuse roots that hold one another: their files would be found twice, and be duplicates of themselves.

    Args:
        roots: Folder by name; symbolic links are followed.

    Raises:
        StudyFileError: one root is another, or lies below it.
    """
    places = [os.path.realpath(os.fsencode(root)) for root in roots.values()]
    nested = sum(place == other or _is_inside(other, place) for place, other in permutations(places, 2))
    if nested:
        raise StudyFileError(
            "study.toml: [archive] root names folders that hold one another.",
            f"Expected {len(places)} folders, none of them another or below it; found {nested} that are.",
            "Keep the outer folder, or name folders that stand side by side.",
        )


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
    folders = [(b"", "")]
    while folders:
        folder, prefix = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as scanned:  # noqa: PTH118 (names are bytes)
                entries = list(scanned)
        except (FileNotFoundError, NotADirectoryError):
            continue  # Removed since its parent was read.
        except OSError:
            if not folder:
                raise  # An archive that does not answer is not an empty one.
            yield prefix.rstrip("/"), None, None, "unreadable_file", None
            continue
        for entry in entries:
            uri = prefix + quote(entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append((os.path.join(folder, entry.name), uri + "/"))  # noqa: PTH118
            elif not entry.is_symlink():
                yield _described(uri, entry.stat, None)
            elif not _is_folder_inside(root, entry.path):
                yield _resolved(root, os.path.join(folder, entry.name), None)  # noqa: PTH118


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
    return _described(_uri(relative), partial(os.stat, os.path.join(root, relative)), listed_uri)  # noqa: PTH118


def _described(uri: str, look_up: Callable[[], os.stat_result], listed_uri: str | None) -> _Found:
    try:
        status = look_up()
    except (FileNotFoundError, NotADirectoryError):
        return uri, None, None, "missing_file", listed_uri
    except OSError:
        return uri, None, None, "unreadable_file", listed_uri
    problem = None if stat.S_ISREG(status.st_mode) else "not_a_file"
    return uri, status.st_size, status.st_mtime_ns, problem, listed_uri


def _is_inside(root: bytes, path: bytes) -> bool:
    return path.startswith(root.rstrip(_SEPARATOR) + _SEPARATOR)
