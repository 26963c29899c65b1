"""What a store or the machine does while a corpus is indexed is never a verdict on a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support import S3Bucket
from support.corpus import put, put_videos, video_bytes
from support.s3_proxy import Fault, Mode, S3Proxy, s3_proxy
from tubelet import storage
from tubelet.config import UserError
from tubelet.corpus.index import IndexConfig, IndexSummary, index_corpus
from tubelet.corpus.manifest import read_manifest
from tubelet.decode_limits import DecodeLimits


@pytest.fixture
def proxy(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """A way to the server that can be made to fail; who reads through it gives up soon."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3_proxy(s3.server) as proxy:
        put_videos(f"{s3.uri}/v", [f"{i:02d}.mp4" for i in range(24)])
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def _index(s3: S3Bucket, **settings: Any) -> IndexSummary:
    return index_corpus(IndexConfig(src=f"{s3.uri}/v", out=f"{s3.uri}/m", workers=1, **settings))


def _codes(s3: S3Bucket) -> dict[str, str]:
    rows = read_manifest(f"{s3.uri}/m").to_pylist()
    return {row["path"]: row["error_code"] for row in rows if row["status"] != "ok"}


def test_credentials_that_expire_end_the_job(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.EXPIRED, after=9, match=".mp4")
    with pytest.raises(UserError, match="ExpiredToken") as caught:
        _index(s3)
    assert len(str(caught.value).splitlines()) <= 2
    visible = [name for name in storage.list_names(f"{s3.uri}/m") if not name.startswith("_")]
    assert not visible, "what was found is kept, but not where readers look"
    proxy.fault, opened = None, len(proxy.requests)
    summary = _index(s3)
    assert (summary.ok, summary.probed + summary.unchanged) == (24, 24)
    assert summary.unchanged >= 7, "nine requests are for seven videos at the least"
    assert sum(".mp4" in request for request in proxy.requests[opened:]) < 24 * 2
    assert not storage.exists(f"{s3.uri}/m/_staging")


def test_what_cannot_be_read_at_all_ends_the_job(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.DENIED, match=".mp4")
    with pytest.raises(UserError, match=r"can be listed, but not read: .*AccessDenied"):
        _index(s3)
    assert not storage.exists(f"{s3.uri}/m")
    assert sum(request.startswith("GET") and ".mp4" in request for request in proxy.requests) < 60


def test_a_denied_listing_ends_the_job(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.DENIED, match="list-type")
    with pytest.raises(UserError, match="AccessDenied") as caught:
        _index(s3)
    assert len(str(caught.value).splitlines()) <= 2


def test_few_denials_are_rows_and_tried_again(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.DENIED, match="/00.mp4")
    summary = _index(s3)
    assert (summary.ok, summary.errors, summary.to_retry) == (23, 1, 1)
    assert _codes(s3) == {"00.mp4": "denied"}
    proxy.fault = None
    summary = _index(s3, update=True)
    assert (summary.ok, summary.probed, summary.unchanged, summary.to_retry) == (24, 1, 23, 0)


def test_a_failure_that_passes_is_mended_by_the_second_pass(
    s3: S3Bucket, proxy: S3Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.fault = Fault(Mode.OVERLOADED, match="/07.mp4", times=2)  # the request and its retry
    summary = _index(s3)
    assert "trying again: 1/1 videos" in capsys.readouterr().err
    assert (summary.ok, summary.errors, summary.probed) == (24, 0, 24)


def test_a_body_that_is_always_short_is_no_verdict(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.SHORT, match="/07.mp4")
    summary = _index(s3, include="0[67].mp4")
    assert (summary.ok, summary.to_retry, summary.reasons) == (1, 1, {"io_error": 1})


def test_an_outage_ends_the_job_and_names_its_cause(s3: S3Bucket, proxy: S3Proxy) -> None:
    proxy.fault = Fault(Mode.OVERLOADED, after=6, match=".mp4")
    with pytest.raises(UserError, match=r"4 of the last 10 videos failed.*4 io_error") as caught:
        _index(s3, include="0*")
    assert "No manifest was written" in str(caught.value)
    # What is kept is about a content, not a name.
    proxy.fault = None
    put(f"{s3.uri}/v", {"00.mp4": video_bytes(frames=7)})
    summary = _index(s3, include="0*")
    assert (summary.ok, summary.probed, summary.unchanged) == (10, 5, 5)
    rows = {row["path"]: row["frames"] for row in read_manifest(f"{s3.uri}/m").to_pylist()}
    assert rows["00.mp4"] == 7
    assert all(rows.values())


@pytest.mark.parametrize("match", ["_staging/part-", "_staging/probed-", "m/part-", "_manifest.json"])
def test_a_store_that_is_away_while_the_manifest_is_published_is_waited_for(
    match: str, s3: S3Bucket, proxy: S3Proxy
) -> None:
    assert _index(s3, include="0[67].mp4").ok == 2
    proxy.fault = Fault(Mode.OVERLOADED, match=match, times=2, methods=("PUT", "DELETE", "POST"))
    assert _index(s3, include="0[6-8].mp4", update=True).ok == 3
    assert proxy.fault.hits == 2
    assert len(read_manifest(f"{s3.uri}/m")) == 3


def test_a_record_that_was_written_before_the_answer_was_lost_is_no_other_jobs(
    s3: S3Bucket, proxy: S3Proxy
) -> None:
    """The store has replaced it, and the second try finds another than it knew."""
    proxy.fault = Fault(Mode.LOST, match="_manifest.json", times=1, methods=("PUT",))
    assert _index(s3, include="0[67].mp4").ok == 2
    assert proxy.fault.hits == 1
    assert len(read_manifest(f"{s3.uri}/m")) == 2


def test_a_slow_store_is_no_verdict(s3: S3Bucket, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    # What arrives after the deadline is kept for the second look, but for large objects.
    monkeypatch.setattr("tubelet.storage.opener._KEPT_OBJECT_BYTES", 0)
    proxy.fault = Fault(Mode.SLOW, match="/07.mp4")
    summary = _index(s3, limits=DecodeLimits(deadline_s=0.3), include="0[67].mp4")
    assert summary.reasons == {"timeout": summary.errors}
    assert summary.to_retry == summary.errors >= 1
    proxy.fault = None
    assert _index(s3, update=True).ok == 2
