"""Settings are strict, the ground stands: Ray starts, the S3 server answers."""

from __future__ import annotations

import boto3
import pytest
from support import S3Bucket
from tubelet.config import Settings, UsageError, UserError, load_settings


class _Inner(Settings):
    rate: float = 0.1


class _Outer(Settings):
    batch: int = 8
    inner: _Inner = _Inner()


def test_overrides_reach_nested_settings() -> None:
    settings = load_settings(_Outer, {"batch": 4}, ["inner.rate=0.5", "batch=16"])
    assert (settings.batch, settings.inner.rate) == (16, 0.5)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown setting 'batchs'; did you mean batch"):
        load_settings(_Outer, {}, ["batchs=3"])


def test_what_is_wrong_on_the_command_line_is_told_from_what_is_wrong_in_a_file() -> None:
    for override in ("batchs=3", "batch=many", "inner.rat=1", "batch"):
        with pytest.raises(UsageError):
            load_settings(_Outer, {}, [override])
    with pytest.raises(UserError) as caught:
        load_settings(_Outer, {"batch": "many"}, ["inner.rate=0.5"])
    assert not isinstance(caught.value, UsageError)


def test_bad_value_names_key_and_value() -> None:
    with pytest.raises(UserError, match=r"batch: .*given 'many'"):
        load_settings(_Outer, {}, ["batch=many"])


def test_s3_server_answers(s3: S3Bucket) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/ä b.txt", Body=b"0123456789")
    body = client.get_object(Bucket=s3.bucket, Key=f"{s3.prefix}/ä b.txt", Range="bytes=2-4")["Body"].read()
    assert body == b"234"


@pytest.mark.usefixtures("ray_cluster")
def test_ray_runs() -> None:
    import ray

    assert ray.data.range(4).sum("id") == 6
