"""Google's store: what cannot be reached is one line, soon."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from tubelet import storage
from tubelet.storage import StorageOptions, StoreUnavailableError, gcs, list_objects
from tubelet.storage.gcs import GcsStore

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
