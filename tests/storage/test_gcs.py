"""Google's store: what cannot be reached is one line, soon; of those who write at once, one does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.gcs_server import gcs_server
from tubelet import storage
from tubelet.config import UserError
from tubelet.storage import (
    CredentialsError,
    StorageOptions,
    StoreUnavailableError,
    gcs,
    list_objects,
    registry,
)
from tubelet.storage.gcs import GcsStore
from tubelet.storage.lock import OutputLock

PUBLIC = StorageOptions(anonymous=True)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield "gs://bucket/videos"


def test_no_way_to_the_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(gcs, "_RETRY_LIMIT_S", 0.5)
    store, began_s = GcsStore(PUBLIC), time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"^cannot reach gs://b/x: .*; check the bucket, the net"):
        store.stat("gs://b/x")
    with pytest.raises(StoreUnavailableError, match=r"^cannot reach gs://b/x"):
        store.names("gs://b/x")
    assert time.monotonic() - began_s < 30


def test_a_server_that_says_nothing_is_not_waited_for(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_DEADLINE_S", 0.3)
    store = GcsStore(PUBLIC)
    with pytest.raises(StoreUnavailableError, match="no answer in 0 s; check the bucket"):
        list(store.walk(silent))


def test_all_tries_end_within_a_minute() -> None:
    """The last try may begin at the limit of the retries; the deadline is over all of them."""
    assert gcs._RETRY_LIMIT_S < gcs._DEADLINE_S < 40


@pytest.mark.slow
def test_without_a_network_a_listing_ends_within_a_minute(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in (lambda: list(list_objects(silent, PUBLIC)), lambda: storage.exists(silent, PUBLIC)):
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailableError) as caught:
            attempt()
        assert time.monotonic() - began_s < 60
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with gcs_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A place of its own in a bucket of a server that honours preconditions."""
    monkeypatch.setenv(gcs.EMULATOR, server)
    registry._store.cache_clear()
    yield f"gs://b/{tmp_path.name}"
    registry._store.cache_clear()


def test_of_many_who_write_at_once_one_does(bucket: str) -> None:
    start = threading.Barrier(6)

    def put(number: int) -> bool:
        start.wait()
        return storage.put_if_absent(f"{bucket}/part", str(number).encode())

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(put, range(6)))
    assert done.count(True) == 1
    data, etag = storage.read_version(f"{bucket}/part")
    assert data == str(done.index(True)).encode() == storage.read_bytes(f"{bucket}/part")

    def replace(number: int) -> bool:
        start.wait()
        return storage.put_if_unchanged(f"{bucket}/part", str(number).encode(), etag)

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(replace, range(6)))
    assert done.count(True) == 1
    assert storage.read_bytes(f"{bucket}/part") == str(done.index(True)).encode()
    assert not storage.put_if_unchanged(f"{bucket}/nothing", b"x", etag)
    with pytest.raises(FileNotFoundError):
        storage.read_version(f"{bucket}/nothing")


def test_output_is_locked_as_elsewhere(bucket: str) -> None:
    with OutputLock(bucket, job="tubelet label") as lock:
        lock.check()
        with pytest.raises(UserError, match="is in use by `tubelet label`"):
            OutputLock(bucket).acquire()
    assert storage.list_names(f"{bucket}/_lock") == []


def test_server_that_ignores_preconditions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    single = StorageOptions(single_writer=True)
    with gcs_server(honours=False) as endpoint:
        monkeypatch.setenv(gcs.EMULATOR, endpoint)
        registry._store.cache_clear()
        with pytest.raises(UserError, match=r"does not honour conditional puts.*\n.*--single-writer"):
            OutputLock("gs://b/out").acquire()
        with OutputLock("gs://b/out", options=single):
            assert storage.put_if_absent("gs://b/out/part", b"one", single)
            assert not storage.put_if_absent("gs://b/out/part", b"two", single)
            _, etag = storage.read_version("gs://b/out/part", single)
            assert storage.put_if_unchanged("gs://b/out/part", b"three", etag, single)
            assert not storage.put_if_unchanged("gs://b/out/part", b"four", etag, single)
        assert storage.read_bytes("gs://b/out/part") == b"three"
    registry._store.cache_clear()


def test_what_google_says_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "_RETRY_LIMIT_S", 0.5)
    monkeypatch.setenv(gcs.EMULATOR, "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailableError, match=r"^cannot reach gs://b/x: .*; check the bucket, the net"):
        GcsStore(StorageOptions()).put_if_absent("gs://b/x", b"")
    monkeypatch.delenv(gcs.EMULATOR)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(CredentialsError, match=r"^cannot reach gs://: .*nowhere.json.*check the bucket"):
        GcsStore(StorageOptions()).put_if_absent("gs://b/x", b"")


def test_a_large_bucket_is_listed_by_many_requests_and_lost_pages_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with gcs_server(loses=5, objects=6000) as endpoint:
        monkeypatch.setenv(gcs.EMULATOR, endpoint)
        found = list(GcsStore(PUBLIC).walk("gs://b/many"))
        names = [f"{folder}/video-{number:05d}.mp4" for folder in "ab" for number in range(3000)]
        assert [info.path for info in found] == names
        one = found[3]
        assert one == storage.ObjectInfo("gs://b/many/a/video-00003.mp4", one.path, one.etag, 6)
        stat = GcsStore(PUBLIC).stat(one.uri)
        assert stat is not None
        assert stat.etag == one.etag, "an etag is the same whoever asks for it"
