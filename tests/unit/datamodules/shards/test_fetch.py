import errno
import hashlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from datamodules.shards.fetch import FetchError, Wanted, cached_path, fetch, fetch_all, read_bytes, shown, sibling

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NO_WAITS = (0.0,) * 4


class Server(ThreadingHTTPServer):
    """Serves ``files`` and counts what is asked for; ``spoil`` may change what the n-th gets, ``cut`` ends it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.spoil = lambda number, content: content
        self.cut: int | None = None
        self.delay = 0.0
        self.stop = threading.Event()
        self.lock = threading.Lock()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        with self.server.lock:
            self.server.requests[name] += 1
            number = self.server.requests[name]
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.spoil(number, self.server.files[name])
        if content is None:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:1000])
        self.wfile.flush()
        self.server.stop.wait(self.server.delay)
        self.wfile.write(content[1000 : self.server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = Server()
    made.files["shard.tar"] = CONTENT
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.stop.set()
    made.shutdown()
    thread.join()
    made.server_close()


def get(url: str, cache: Path, **options: object) -> Path:
    return fetch(url, cache, **{"size": len(CONTENT), "sha256": DIGEST, "waits": NO_WAITS, **options})


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = get(server.url("shard.tar"), tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert path.name == f"{DIGEST[:16]}-shard.tar"
    assert get(server.url("shard.tar"), tmp_path / "cache") == path
    assert server.requests["shard.tar"] == 1
    assert files(tmp_path / "cache") == [path.name]


def _get(url: str, cache: Path) -> bytes:
    return get(url, cache).read_bytes()


def test_of_eight_processes_one_downloads(server: Server, tmp_path: Path) -> None:
    server.delay = 0.5
    with get_context("spawn").Pool(8) as pool:
        assert pool.starmap(_get, [(server.url("shard.tar"), tmp_path)] * 8, chunksize=1) == [CONTENT] * 8
    assert server.requests["shard.tar"] == 1


def test_a_forked_worker_can_download_after_its_parent_did(server: Server, tmp_path: Path) -> None:
    get(server.url("shard.tar"), tmp_path / "a")
    with get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_get, (server.url("shard.tar"), tmp_path / "b")).get(timeout=60) == CONTENT


@pytest.mark.parametrize("length", [500, len(CONTENT) - 1])
def test_a_server_that_sends_too_little_is_given_five_tries(server: Server, tmp_path: Path, length: int) -> None:
    server.spoil = lambda number, content: content[:length]
    message = rf"http://127.*/shard\.tar could not be fetched in 5 tries: received {length} bytes, expected 102400"
    with pytest.raises(FetchError, match=message):
        get(server.url("shard.tar"), tmp_path)
    assert server.requests["shard.tar"] == 5
    assert files(tmp_path) == []


def test_a_connection_that_breaks_is_noticed(server: Server, tmp_path: Path) -> None:
    server.cut = 50_000
    with pytest.raises(FetchError, match=r"could not be fetched in 5 tries: \w+Error"):
        get(server.url("shard.tar"), tmp_path)
    assert server.requests["shard.tar"] == 5
    assert files(tmp_path) == []


def test_a_server_that_recovers_is_enough(server: Server, tmp_path: Path) -> None:
    server.spoil = lambda number, content: (None, content[:-1], content)[min(number, 3) - 1]
    assert get(server.url("shard.tar"), tmp_path).read_bytes() == CONTENT
    assert server.requests["shard.tar"] == 3


def test_the_waits_between_tries_are_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    server.files["shard.tar"] = CONTENT[:-1]
    with pytest.raises(FetchError, match="in 4 tries"):
        get(server.url("shard.tar"), tmp_path, waits=(1, 20, 300))
    assert [wait for wait in slept if wait in (1, 20, 300)] == [1, 20, 300]


def test_other_content_is_refused(server: Server, tmp_path: Path) -> None:
    other = bytes(len(CONTENT))
    server.files["shard.tar"] = other
    found = hashlib.sha256(other).hexdigest()
    with pytest.raises(FetchError, match=f"its sha256 is {found}, expected {DIGEST}; check the server"):
        get(server.url("shard.tar"), tmp_path)
    assert files(tmp_path) == []


def test_a_missing_file_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"/other\.tar does not exist; copy the whole data set"):
        get(server.url("other.tar"), tmp_path)
    assert server.requests["other.tar"] == 1
    with pytest.raises(FileNotFoundError):
        read_bytes(server.url("other.tar"))


def test_a_killed_download_leaves_nothing_that_counts(server: Server, tmp_path: Path) -> None:
    server.delay = 60
    process = get_context("spawn").Process(target=_get, args=(server.url("shard.tar"), tmp_path))
    process.start()
    while not (tmp_path.exists() and any(".partial-" in name for name in files(tmp_path))):
        assert process.is_alive()
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not cached_path(server.url("shard.tar"), tmp_path, DIGEST).exists()
    server.delay = 0
    path = get(server.url("shard.tar"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == [path.name]


def test_paths_and_file_urls_work(tmp_path: Path) -> None:
    original = tmp_path / "shard.tar"
    original.write_bytes(CONTENT)
    for number, place in enumerate((str(original), f"file://{original}")):
        assert get(place, tmp_path / str(number)).read_bytes() == CONTENT


def test_equal_names_do_not_collide(tmp_path: Path) -> None:
    paths = []
    for folder, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "shard.tar").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        paths.append(fetch(str(tmp_path / folder / "shard.tar"), tmp_path / "cache", size=3, sha256=digest))
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]


def test_a_copy_of_the_right_size_is_hashed_only_when_asked(tmp_path: Path) -> None:
    original = tmp_path / "shard.tar"
    original.write_bytes(CONTENT)
    path = get(str(original), tmp_path / "cache")
    path.write_bytes(bytes(len(CONTENT)))
    assert get(str(original), tmp_path / "cache").read_bytes() == bytes(len(CONTENT))
    assert get(str(original), tmp_path / "cache", verify=True).read_bytes() == CONTENT
    path.write_bytes(b"short")
    assert get(str(original), tmp_path / "cache").read_bytes() == CONTENT
    path.write_bytes(bytes(len(CONTENT)))
    assert get(str(original), tmp_path / "cache", size=None).read_bytes() == CONTENT


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    tries = []

    def full(self: object, path: str, to: str, **_: object) -> None:
        tries.append(path)
        Path(to).write_bytes(b"part")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(LocalFileSystem, "get_file", full)
    (tmp_path / "shard.tar").write_bytes(CONTENT)
    message = rf"no space left in {tmp_path}/cache for .*shard\.tar of 102400 bytes \(.*{os.strerror(number)}\)"
    with pytest.raises(FetchError, match=message):
        get(str(tmp_path / "shard.tar"), tmp_path / "cache")
    assert len(tries) == 1
    assert files(tmp_path / "cache") == []


def test_a_forbidden_file_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: object, path: str, to: str, **_: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(LocalFileSystem, "get_file", forbidden)
    with pytest.raises(FetchError, match=r"shard\.tar may not be read \(Forbidden\); check permissions"):
        get(str(tmp_path / "shard.tar"), tmp_path / "cache", waits=(100,))


def test_a_missing_backend_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(place: str, **_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(FetchError, match=r"s3://bucket/shard\.tar cannot be opened: Install s3fs .*\(s3fs for s3://"):
        get("s3://bucket/shard.tar", tmp_path)


def test_an_unknown_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"nonsense://shard\.tar cannot be opened: Protocol not known"):
        get("nonsense://shard.tar", tmp_path)


def test_many_files_are_cached_and_counted(server: Server, tmp_path: Path) -> None:
    contents = [bytes([number]) * (2000 + number) for number in range(30)]
    wanted = []
    for number, content in enumerate(contents):
        server.files[f"{number}.tar"] = content
        digest = hashlib.sha256(content).hexdigest()
        wanted.append(Wanted(place=server.url(f"{number}.tar"), sha256=digest, size=len(content)))
    told: list[tuple[int, int]] = []
    paths = fetch_all(wanted, tmp_path, progress=lambda done, of: told.append((done, of)), waits=NO_WAITS)
    assert [path.read_bytes() for path in paths] == contents
    assert told == [(done, 30) for done in range(1, 31)]
    assert set(server.requests.values()) == {1}


def test_staging_stops_at_the_first_file_that_cannot_be_had(server: Server, tmp_path: Path) -> None:
    wanted = [Wanted(place=server.url(f"{number}.tar"), sha256=DIGEST, size=1) for number in range(500)]
    with pytest.raises(FetchError, match="does not exist"):
        fetch_all(wanted, tmp_path, waits=NO_WAITS)
    assert sum(server.requests.values()) < 500


def test_a_disk_too_small_for_all_is_said_before_anything_is_copied(server: Server, tmp_path: Path) -> None:
    wanted = [Wanted(place=server.url("shard.tar"), sha256=DIGEST, size=10**18)]
    with pytest.raises(FetchError, match=rf"{tmp_path} has room for \d+ bytes, but 1 files of 1{'0' * 18} bytes"):
        fetch_all(wanted, tmp_path)
    assert not server.requests


def test_secrets_in_a_url_stay_out_of_messages(server: Server, tmp_path: Path) -> None:
    assert shown("https://me:pass@host:1/a/b.tar?token=secret") == "https://host:1/a/b.tar"
    assert shown("/data/a?b.tar") == "/data/a?b.tar"
    server.spoil = lambda number, content: None
    with pytest.raises(FetchError, match="could not be fetched") as caught:
        get(server.url("shard.tar?token=secret"), tmp_path)
    assert "secret" not in str(caught.value)


def test_neighbours_of_a_place() -> None:
    assert sibling("/data/set/manifest.json", "a.tar") == "/data/set/a.tar"
    assert sibling("manifest.json", "a.tar") == "a.tar"
    assert sibling("s3://bucket/set/manifest.json", "a.tar") == "s3://bucket/set/a.tar"
    assert sibling("https://host/set/manifest.json?sig=1/2", "a.tar") == "https://host/set/a.tar?sig=1/2"


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_cached_is_read_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    place, cache = str(tmp_path / "a.tar"), tmp_path / "cache"
    copy = fetch(place, cache, size=len(CONTENT), sha256=DIGEST)
    for lock in cache.glob(".*.lock"):
        lock.unlink()
    monkeypatch.setattr("datamodules.shards.fetch.locked", lambda _: pytest.fail("it was locked"))
    monkeypatch.setattr("datamodules.shards.fetch._make", lambda _: pytest.fail("it was made"))
    assert fetch(place, cache, size=len(CONTENT), sha256=DIGEST, verify=verify) == copy
    assert fetch_all([Wanted(place=place, size=len(CONTENT), sha256=DIGEST)], cache) == [copy]
    assert list(cache.iterdir()) == [copy]


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FetchError, match=r"cache .*file.* cannot be created .*name a writable folder of this node"):
            fetch("nowhere", cache, size=1, sha256="0" * 64)
        with pytest.raises(FetchError, match="cannot be created"):
            fetch_all([Wanted(place="nowhere", sha256="0" * 64, size=1)], cache)
