"""One S3 server and one Ray cluster a test session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support import S3Bucket
from support.hostile import HostileFolder
from tubelet.storage.local_s3 import LocalS3
from xdist.scheduler import LoadScopeScheduling

# Never reach for a model hub, and never send usage statistics, from a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# At its default of 15, workers starve beside anything else that runs, and Ray gives up on starting them.
os.environ.setdefault("RAY_worker_niceness", "0")


class _RayApart(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """In `make test` two processes share the tests: one runs those that need Ray, by file go the others.

    So there is one Ray cluster for the session, and what the tests of a file share is made once.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "ray" if _uses_ray(self.config.rootpath / path) else path


@cache
def _uses_ray(path: Path) -> bool:
    """Whether a file's tests use the session's Ray, or run commands that start one."""
    return path.parent.name == "jobs" or "ray_cluster" in path.read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that use Ray begin: they take longest, and the other process has the rest meanwhile."""
    items.sort(key=lambda item: not _uses_ray(item.path))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """What `--dist` would choose otherwise."""
    return _RayApart(config, log)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A real S3 server; AWS_* of this process (and of what it starts) point to it."""
    with LocalS3(tmp_path_factory.mktemp("s3"), ("tubelet-test",)) as server:
        old = {name: os.environ.get(name) for name in server.env}
        os.environ.update(server.env)
        yield server
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def s3(s3_server: LocalS3) -> S3Bucket:
    """A fresh prefix on the session's S3 server."""
    return S3Bucket(s3_server, "tubelet-test", uuid4().hex[:12])


@pytest.fixture(scope="session")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> HostileFolder:
    """A working folder whose modules nothing of ours may import."""
    return HostileFolder(tmp_path_factory.mktemp("work") / "hostile")


@pytest.fixture(scope="session")
def ray_cluster(s3_server: LocalS3, hostile_folder: HostileFolder) -> Iterator[None]:
    """One local Ray for the session, with 4 logical CPUs whatever the machine has.

    It starts after the S3 server, so that its workers inherit the server's AWS_* variables; and it starts in
    a hostile folder, as a person's may be.
    """
    import ray
    from tubelet_jobs.common import connect_ray

    # What tests send to workers lies in their own modules and in `support`.
    tests = Path(__file__).parent
    path = [str(tests.parent), str(tests), *filter(None, [os.environ.get("PYTHONPATH")])]
    with chdir(hostile_folder.path), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        connect_ray("local", num_cpus=4)
    yield
    ray.shutdown()


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of its own for one test, on a local folder and on a real S3 server, as a URI."""
    if request.param == "local":
        return str(tmp_path / "a place")
    bucket: S3Bucket = request.getfixturevalue("s3")
    return f"{bucket.uri}/a place"
