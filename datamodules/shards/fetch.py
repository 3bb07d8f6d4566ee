"""Copies remote files into a local folder: each is downloaded once, and kept only if its hash is right.

A place is a path or a URL that fsspec can open: http(s)://, s3://, gs://, file://.
"""

import errno
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from modules.files import new_path, remove_partials
from modules.files import sha256 as sha256_of
from modules.locks import lock_of, locked

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the tries of a download; there is one more try than there are waits."""
THREADS = 8
"""Files downloaded at once."""
_STALLED = 60
"""Seconds without a byte after which a connection counts as dead."""
_FULL = (errno.ENOSPC, errno.EDQUOT)

Progress = Callable[[int, int], None]
"""Called with the number of files copied and the number of all files."""
_T = TypeVar("_T")


class FetchError(ValueError):
    """A file could not be fetched; the message says what was found, what was expected, and the way out."""


class _PassingError(Exception):
    """An error that may go away with another try."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file to fetch. A file of unknown ``size`` must be small: it is hashed every time it is asked for."""

    place: str
    sha256: str
    size: int | None = None


def is_url(place: str | Path) -> bool:
    """Whether ``place`` is a URL, not a path."""
    return "://" in str(place)


def shown(place: str) -> str:
    """``place`` as messages show it: without its query and password, which may be secret."""
    if not is_url(place):
        return place
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def sibling(place: str, name: str) -> str:
    """The file ``name`` in the same folder as ``place``; a URL keeps its query, which may hold an access token."""
    if not is_url(place):
        return str(Path(place).parent / name)
    path, mark, query = place.partition("?")
    return f"{path.rpartition('/')[0]}/{name}{mark}{query}"


def cached_path(place: str, cache: Path, sha256: str) -> Path:
    """Where `fetch` puts a file. The name begins with the hash, so files with the same name do not collide."""
    name = (urlsplit(place).path if is_url(place) else place).rpartition("/")[2]
    return cache / f"{sha256[:16]}-{name}"


def fetch(
    place: str,
    cache: Path,
    *,
    size: int | None,
    sha256: str,
    verify: bool = False,
    waits: Sequence[float] = WAITS,
) -> Path:
    """Copy ``place`` into the folder ``cache`` and return the path; the copy must have this size and hash.

    Any number of processes on a node may ask at the same time: one downloads, the others wait for it. An existing copy
    of the right size is used as it is. With ``verify``, or if the size is not known, it is hashed first, and replaced
    if it is wrong.

    Raises:
        FetchError: the file cannot be fetched, has another content, or the disk is full.
    """
    target = cached_path(place, cache, sha256)
    verify = verify or size is None
    wanted = sha256 if verify else None
    if _is_there(target, size, wanted):  # the cache may be on a disk that cannot be written
        return target
    _make(cache)
    with locked(lock_of(target)):
        if not _is_there(target, size, wanted):
            _download(place, target, size, sha256, waits)
    return target


def fetch_all(
    wanted: Sequence[Wanted], cache: Path, *, progress: Progress | None = None, waits: Sequence[float] = WAITS
) -> list[Path]:
    """`fetch` all files, several at once, and return their paths in the same order.

    Raises:
        FetchError: a file cannot be fetched (no further download is started then), or the disk has too little space.
    """
    missing = [each for each in wanted if not cached_path(each.place, cache, each.sha256).exists()]
    if missing:
        _make(cache)
    needed, free = sum(each.size or 0 for each in missing), shutil.disk_usage(cache).free if missing else 0
    if needed > free:
        raise FetchError(
            f"{cache} has room for {free} bytes, but {len(missing)} files of {needed} bytes must be copied there; "
            "make room or name another folder"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [
            pool.submit(fetch, each.place, cache, size=each.size, sha256=each.sha256, waits=waits) for each in wanted
        ]
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                if progress is not None:
                    progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [job.result() for job in jobs]


def _make(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"cache {cache} cannot be created ({error.strerror}); name a writable folder of this node"
        ) from error


def read_bytes(place: str, waits: Sequence[float] = WAITS) -> bytes:
    """Content of a small file.

    Raises:
        FileNotFoundError: it does not exist.
        FetchError: it cannot be fetched.
    """

    def read(filesystem: Any, path: str) -> bytes:
        return bytes(filesystem.cat_file(path))

    return _tried(place, read, waits)


def _is_there(target: Path, size: int | None, sha256: str | None) -> bool:
    try:
        found = target.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False
    return size in (None, found) and sha256 in (None, sha256_of(target) if sha256 else None)


def _download(place: str, target: Path, size: int | None, sha256: str, waits: Sequence[float]) -> None:
    remove_partials(target.parent, target.name)  # we hold the lock, so these are left over from a killed download

    def download(filesystem: Any, path: str) -> None:
        with new_path(target) as partial:
            filesystem.get_file(path, str(partial))
            found = partial.stat().st_size
            if size not in (None, found):
                raise _PassingError(f"received {found} bytes, expected {size}")
            if (digest := sha256_of(partial)) != sha256:
                raise _PassingError(f"its sha256 is {digest}, expected {sha256}")

    try:
        _tried(place, download, waits)
    except FileNotFoundError as error:
        raise FetchError(f"{shown(place)} does not exist; copy the whole data set again") from error
    except OSError as error:
        raise FetchError(
            f"no space left in {target.parent} for {shown(place)} of {size or 'some'} bytes ({error}); "
            "make room or name another folder"
        ) from error


def _tried(place: str, action: Callable[[Any, str], _T], waits: Sequence[float]) -> _T:
    """Return the result of ``action``, trying again after passing errors.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the disk is full.
        FetchError: anything else, after all tries.
    """
    for number, wait in enumerate((*waits, None), start=1):
        try:
            return _once(place, action)
        except _PassingError as fault:
            if wait is None:
                raise FetchError(
                    f"{shown(place)} could not be fetched in {number} tries: {fault}; "
                    "check the server, and that manifest and shards are from the same build"
                ) from fault
            time.sleep(wait)
    raise AssertionError("unreachable")


def _once(place: str, action: Callable[[Any, str], _T]) -> _T:
    # imported here because it is slow and local data sets do not need it
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(place, **_options(place))
    except (ImportError, ValueError) as error:
        raise FetchError(
            f"{shown(place)} cannot be opened: {error}. Install the package that fsspec needs for it "
            "(s3fs for s3://, gcsfs for gs://, aiohttp for http://) or copy the data set to a disk"
        ) from error
    try:
        return action(filesystem, path)
    except (_PassingError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise FetchError(f"{shown(place)} may not be read ({error}); check permissions and credentials") from error
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise _PassingError(_said(error)) from error
    except Exception as error:  # every backend raises its own errors
        raise _PassingError(_said(error)) from error


def _said(error: Exception) -> str:
    # a backend's message may hold the whole URL with a secret in its query
    return f"{type(error).__name__}: {str(error).partition('?')[0]}"


def _options(place: str) -> dict[str, Any]:
    if not place.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    # aiohttp's default limit is five minutes for a whole file
    timeout = ClientTimeout(total=None, sock_connect=_STALLED, sock_read=_STALLED)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
