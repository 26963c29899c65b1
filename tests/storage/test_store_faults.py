"""Stores that fail, break off or lack something: a typed error or the right bytes, never a wrong verdict."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
from support import S3Bucket
from support.s3_proxy import Fault, Mode, S3Proxy, s3_proxy
from tubelet import storage
from tubelet.config import UserError
from tubelet.storage import (
    CredentialsError,
    DeniedError,
    ObjectChangedError,
    StorageOptions,
    StoreUnavailableError,
    list_objects,
    s3_reads,
)
from tubelet.storage.lock import OutputLock, lock_folder
from tubelet.storage.opener import ObjectOpener

CONTENT = random.Random(7).randbytes(700_000)  # larger than what is fetched whole
SINGLE = StorageOptions(single_writer=True)


@pytest.fixture
def proxy(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """A way to the server that can be made to fail; nothing is known of the store yet, pauses are short."""
    storage.write_bytes(f"{s3.uri}/clip.mp4", CONTENT)
    monkeypatch.setattr(s3_reads, "_PAUSES_S", (0.01, 0.02))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with s3_proxy(s3.server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def _opener(bucket: S3Bucket) -> ObjectOpener:
    info = storage.stat(f"{bucket.uri}/clip.mp4")
    assert info is not None
    return ObjectOpener(info.uri, info.size_bytes, info.etag)


def _read(opener: ObjectOpener) -> bytes:
    """In two ranges, the later one first."""
    with opener() as file:
        file.seek(500_000)
        end = file.read()
        file.seek(0)
        return file.read(500_000) + end


@pytest.mark.parametrize("mode", [Mode.SHORT, Mode.CUT, Mode.SHIFTED, Mode.OVERLOADED])
def test_a_broken_answer_is_asked_for_again(s3: S3Bucket, proxy: S3Proxy, mode: Mode) -> None:
    opener = _opener(s3)
    proxy.fault = Fault(mode, times=1)
    assert _read(opener) == CONTENT
    proxy.fault = Fault(mode, times=1)
    assert storage.read_bytes(opener.uri) == CONTENT
    assert proxy.fault.hits == 1


@pytest.mark.parametrize("mode", [Mode.SHORT, Mode.CUT, Mode.SHIFTED, Mode.OVERLOADED])
def test_a_store_that_stays_broken_is_no_verdict_on_the_file(
    s3: S3Bucket, proxy: S3Proxy, mode: Mode
) -> None:
    opener = _opener(s3)
    proxy.fault = Fault(mode)
    with pytest.raises(StoreUnavailableError, match=r"clip\.mp4") as caught:
        _read(opener)
    assert storage.is_transient(caught.value)
    assert not isinstance(caught.value, (ObjectChangedError, FileNotFoundError))
    if mode is not Mode.SHIFTED:  # a whole object is asked for from its first byte on: nothing to shift
        with pytest.raises(StoreUnavailableError):
            storage.read_bytes(opener.uri)


def test_slow_bodies_are_waited_for(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.SLOW, match="clip.mp4")
    assert _read(_opener(s3)) == CONTENT


def test_downloads_are_whole(s3: S3Bucket, proxy: S3Proxy, tmp_path) -> None:  # type: ignore[no-untyped-def]
    proxy.fault = Fault(Mode.SHORT, times=1)
    storage.download_file(f"{s3.uri}/clip.mp4", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_store_that_ignores_ranges_is_read_rightly_and_named(
    s3: S3Bucket, proxy: S3Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fault = Fault(Mode.NO_RANGE)
    with caplog.at_level(logging.WARNING):
        assert _read(_opener(s3)) == CONTENT
        assert storage.read_bytes(f"{s3.uri}/clip.mp4") == CONTENT
    said = [r.getMessage() for r in caplog.records if "ignores ranges" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"the store at {proxy.endpoint} ignores ranges:")


def test_empty_objects_are_read(s3: S3Bucket, proxy: S3Proxy) -> None:
    storage.write_bytes(f"{s3.uri}/empty", b"")
    assert storage.read_version(f"{s3.uri}/empty")[0] == b""


def test_an_expired_token_and_a_denied_object_are_told_apart(s3: S3Bucket, proxy: S3Proxy) -> None:
    opener = _opener(s3)
    proxy.fault = Fault(Mode.EXPIRED)
    for action in (
        lambda: _read(opener),
        lambda: list(list_objects(s3.uri)),
        lambda: storage.stat(opener.uri),
    ):
        with pytest.raises(CredentialsError, match="refused the credentials"):
            action()
    proxy.fault = Fault(Mode.EXPIRED, after=1)  # in the middle of reading
    with pytest.raises(CredentialsError, match="ExpiredToken"):
        _read(opener)
    proxy.fault = Fault(Mode.DENIED)
    for action in (lambda: _read(opener), lambda: list(list_objects(s3.uri))):
        with pytest.raises(DeniedError, match="denied"):
            action()


# ---- conditional puts


def test_weak_etags_pin_what_is_read(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.WEAK_ETAGS)
    opener = _opener(s3)
    assert '"' not in str(opener.etag)
    assert [info.etag for info in list_objects(s3.uri)] == [opener.etag]
    assert _read(opener) == CONTENT
    storage.write_bytes(opener.uri, CONTENT[::-1])
    with pytest.raises(ObjectChangedError):
        _read(opener)


def test_weak_etags_do_for_a_rewrite(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.WEAK_ETAGS)
    with OutputLock(f"{s3.uri}/out") as lock:
        lock.check()
        storage.write_bytes(f"{s3.uri}/out/part", b"one")
        data, etag = storage.read_version(f"{s3.uri}/out/part")
        assert storage.put_if_unchanged(f"{s3.uri}/out/part", data + b" two", etag)
        assert not storage.put_if_unchanged(f"{s3.uri}/out/part", b"three", etag)
    assert storage.read_bytes(f"{s3.uri}/out/part") == b"one two"


@pytest.mark.parametrize("mode", [Mode.NO_CONDITIONS, Mode.IGNORED_CONDITIONS])
def test_an_output_needs_conditional_puts(s3: S3Bucket, proxy: S3Proxy, mode: Mode) -> None:
    proxy.fault = Fault(mode)
    with pytest.raises(UserError, match=r"does not honour conditional puts.*\n.*--single-writer") as caught:
        OutputLock(f"{s3.uri}/out").acquire()
    assert str(caught.value).count("\n") == 1
    assert not storage.exists(f"{s3.uri}/out")


@pytest.mark.parametrize("mode", [Mode.NO_CONDITIONS, Mode.IGNORED_CONDITIONS])
def test_a_single_writer_goes_on_without_a_lock(
    s3: S3Bucket, proxy: S3Proxy, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fault, out = Fault(mode), f"{s3.uri}/out"
    with caplog.at_level(logging.WARNING), OutputLock(out, options=SINGLE) as lock:
        lock.check()
        assert storage.list_names(lock_folder(out)) == []
        assert storage.put_if_absent(f"{out}/part", b"one", SINGLE)
        assert not storage.put_if_absent(f"{out}/part", b"two", SINGLE)
        _, etag = storage.read_version(f"{out}/part", SINGLE)
        assert storage.put_if_unchanged(f"{out}/part", b"three", etag, SINGLE)
        assert not storage.put_if_unchanged(f"{out}/part", b"four", etag, SINGLE)
    assert [r.getMessage() for r in caplog.records] == [
        f"the store of {out} does not honour conditional puts: no lock is held (--single-writer), start no"
        " second job on it"
    ]
    assert storage.read_bytes(f"{out}/part") == b"three"


def test_a_single_writer_holds_a_lock_where_it_can(s3: S3Bucket, proxy: S3Proxy) -> None:
    with OutputLock(f"{s3.uri}/out", options=SINGLE), pytest.raises(UserError, match="is in use by"):
        OutputLock(f"{s3.uri}/out", options=SINGLE).acquire()


def test_the_store_is_asked_once_per_output(s3: S3Bucket, proxy: S3Proxy) -> None:
    with OutputLock(f"{s3.uri}/out"):
        for number in range(3):
            storage.put_if_absent(f"{s3.uri}/out/part-{number}", b"x")
    assert len([line for line in proxy.requests if "probe-" in line]) == 4
