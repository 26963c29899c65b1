"""The kill matrix: whatever dies and whenever, after running again every object is one row, once and right.

Each case runs `tubelet label` on 2,000 small objects (5 % of them broken) in an S3 server behind a proxy that
counts what is fetched, and compares with a run that nobody disturbed. Slow: minutes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import wait_until
from support.labelling import assert_one_row_each, read_rows, tiny_bundle, write_video
from tubelet import storage
from tubelet.corpus.index import IndexConfig, index_corpus
from tubelet.storage.local_s3 import LocalS3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

OBJECTS = int(os.environ.get("TUBELET_KILL_OBJECTS", "2000"))
DISTINCT = 100


class Proxy(ThreadingHTTPServer):
    """Hands requests to the S3 server, counts what is fetched, answers a share of them with 500 or 503."""

    daemon_threads = True

    def __init__(self, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target_port = target_port
        self.failing = 0.0
        self.fetched: Counter[str] = Counter()
        self.draw = random.Random(5)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a killed client is what this is about


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.draw.random() < self.server.failing:
            status = self.server.draw.choice((500, 503))
            return self._answer(status, {}, b"<Error><Code>SlowDown</Code></Error>")
        connection = HTTPConnection("127.0.0.1", self.server.target_port, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            reply = connection.getresponse()
            data = reply.read()
        except OSError:
            self.close_connection = True
            return None
        finally:
            connection.close()
        if self.command == "GET" and ".mp4" in self.path and reply.status in (200, 206):
            self.server.fetched[self.path] += 1
        return self._answer(reply.status, dict(reply.getheaders()), data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                self.send_header(name, value)
        length = headers.get("Content-Length", len(data)) if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class World:
    """The corpus in its store, the model, and what an undisturbed run says."""

    server: LocalS3
    proxy: Proxy
    folder: Path
    manifest: str
    env: dict[str, str]
    expected: list[dict[str, Any]] = field(default_factory=list)

    def command(self, out: str, *more: str) -> list[str]:
        tubelet = str(Path(sys.executable).with_name("tubelet"))
        model, runs = str(self.folder / "model"), f"sqlite:///{self.folder}/mlflow.db"
        given = ["--model", model, "--tracking-uri", runs, "--out", out, "--workers", "2"]
        return [tubelet, "label", self.manifest, *given, *more]

    def start(self, out: str, *more: str, **env: str) -> subprocess.Popen[str]:
        log = (self.folder / f"{out.rpartition('/')[2]}.log").open("a")
        return subprocess.Popen(
            self.command(out, *more), env=self.env | env, stdout=subprocess.PIPE, stderr=log, text=True
        )

    def fetched(self) -> int:
        """Videos fetched since the count was cleared."""
        return sum(self.proxy.fetched.values())

    def finish(self, out: str, *more: str) -> dict[str, Any]:
        """Run until done, and check what is there."""
        process = self.start(out, *more)
        text, _ = process.communicate(timeout=1500)
        assert process.returncode == 0, (self.folder / f"{out.rpartition('/')[2]}.log").read_text()[-3000:]
        summary: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
        return summary


def _spoil(path: Path, kind: int) -> None:
    """Garbage that the index finds, or a good start before pictures that do not decode."""
    data = path.read_bytes()
    if kind % 2:
        path.write_bytes(b"garbage " * 50)
        return
    start = data.index(b"mdat") + 4
    start += 3 * (len(data) - start) // 10
    noise = np.random.default_rng(kind).integers(0, 256, len(data) - start, dtype=np.uint8).tobytes()
    path.write_bytes(data[:start] + noise)


def _corpus(folder: Path) -> Path:
    corpus = folder / "corpus"
    (corpus / "videos").mkdir(parents=True)
    names = [folder / "originals" / f"{i}.mp4" for i in range(DISTINCT)]
    originals = [write_video(path, i, frames=10, fast=True) for i, path in enumerate(names)]
    for i in range(OBJECTS):
        path = corpus / "videos" / f"v{i:05d}.mp4"
        shutil.copyfile(originals[i % DISTINCT], path)
        if i % 20 == 7:
            _spoil(path, i // 20)
    return corpus


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("kills")
    with LocalS3(folder / "s3", ("kills",)) as server:
        proxy = Proxy(server.port)
        env = {**os.environ, **server.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}"}
        env |= {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
        old = {name: os.environ.get(name) for name in server.env}
        os.environ.update(server.env)
        storage.upload_dir(_corpus(folder), "s3://kills/in")
        index_corpus(IndexConfig(src="s3://kills/in", out="s3://kills/manifest"))
        tiny_bundle(folder / "model")
        world = World(server, proxy, folder, "s3://kills/manifest", env)
        summary = world.finish("s3://kills/undisturbed")
        assert summary["objects"] == OBJECTS
        world.expected = read_rows("s3://kills/undisturbed")
        assert_one_row_each(world.expected, OBJECTS)
        yield world
        proxy.shutdown()
        for name, value in old.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def check(world: World, out: str, case: str) -> None:
    """One row an object, equal labels and reasons, scores within 1e-6; tells the work done twice."""
    rows = read_rows(out)
    assert_one_row_each(rows, OBJECTS)
    for name in ("key", "label", "status", "error_code", "etag"):
        assert [row[name] for row in rows] == [row[name] for row in world.expected], name
    found, wanted = (np.array([row["score"] or 0.0 for row in each]) for each in (rows, world.expected))
    assert np.abs(found - wanted).max() < 1e-6
    decoded = sum(row["status"] == "ok" or row["error_code"] == "partial" for row in rows)
    twice = max(0, world.fetched() - decoded) / decoded
    told = f"{case}: {len(rows)} rows, max score difference {np.abs(found - wanted).max():.1e}, "
    told += f"fetched twice {100 * twice:.1f} %"
    print(told)
    report = os.environ.get("TUBELET_KILL_REPORT")
    if report:
        with Path(report).open("a", encoding="utf-8") as file:
            file.write(told + "\n")


def processes(root: int, word: str) -> list[psutil.Process]:
    """Processes below ``root`` whose title has ``word``."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def disturb(world: World, out: str, act: Callable[[int], None], *more: str, **env: str) -> None:
    """Start a run, ``act`` on it once it has fetched a tenth of the objects, let it end, and run again."""
    world.proxy.fetched.clear()
    process = world.start(out, *more, **env)
    try:
        wait_until(lambda: world.fetched() > OBJECTS / 10 or process.poll() is not None, 300)
        assert process.poll() is None, "it ended before it could be disturbed: raise OBJECTS"
        act(process.pid)
        process.communicate(timeout=1500)
    finally:
        process.kill()
    summary = world.finish(out, *more)
    assert summary["ok"] + summary["errors"] == OBJECTS


def kill_some(word: str, times: int, seed: int) -> Callable[[int], None]:
    draw = random.Random(seed)

    def act(pid: int) -> None:
        for _ in range(times):
            # What was killed before takes seconds to come back.
            wait_until(lambda: bool(processes(pid, word)) or not psutil.pid_exists(pid), 60)
            draw.choice(processes(pid, word)).send_signal(signal.SIGKILL)
            time.sleep(draw.uniform(0.2, 1.5))

    return act


def test_decode_processes_are_killed(world: World) -> None:
    disturb(world, "s3://kills/sandbox", kill_some("tubelet.video.child", 6, 1))
    check(world, "s3://kills/sandbox", "6 decode processes killed")


def test_decode_actors_are_killed(world: World) -> None:
    disturb(world, "s3://kills/decoder", kill_some("BlockDecoder", 3, 2), "--predictors", "1")
    check(world, "s3://kills/decoder", "3 decode actors killed")


def test_predictors_are_killed(world: World) -> None:
    out = "s3://kills/predictor"
    disturb(world, out, kill_some("MapWorker(MapBatches(BlockPredictor", 3, 3), "--predictors", "1")
    check(world, out, "3 predictors killed")


def test_actors_that_do_both_are_killed(world: World) -> None:
    disturb(world, "s3://kills/both", kill_some("DecodePredict", 3, 4))
    check(world, "s3://kills/both", "3 decode-and-predict actors killed")


def test_a_raylet_is_killed(world: World) -> None:
    from ray.cluster_utils import Cluster

    old = dict(os.environ)
    os.environ.update(world.env)  # the workers of these nodes reach the store through the proxy
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 << 20})
    try:
        nodes = [cluster.add_node(num_cpus=2, object_store_memory=200 << 20) for _ in range(2)]
        raylet = nodes[0].all_processes["raylet"][0].process

        def act(pid: int) -> None:
            del pid
            raylet.send_signal(signal.SIGKILL)

        disturb(world, "s3://kills/raylet", act, "--ray-address", cluster.address)
        check(world, "s3://kills/raylet", "a raylet killed")
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(old)


def test_driver_is_killed_at_ten_moments(world: World) -> None:
    out, draw = "s3://kills/driver", random.Random(11)
    world.proxy.fetched.clear()
    kills = 0
    for _ in range(10):
        before, process = world.fetched(), world.start(out)
        goal = before + draw.randrange(OBJECTS // 12)
        wait_until(lambda p=process, g=goal: world.fetched() > g or p.poll() is not None, 300)  # type: ignore[misc]
        kills += process.poll() is None
        process.kill()
        process.wait()
        rows = read_rows(out)
        assert_one_row_each(rows, len(rows))
        if len(rows) == OBJECTS:
            break
    world.finish(out)
    check(world, out, f"driver killed {kills} times")
    assert kills >= 3, "it was done before it could be killed: raise OBJECTS"
    again = world.finish(out)
    assert (again["labelled"], again["already_done"]) == (0, OBJECTS)


def test_driver_is_killed_before_it_publishes(world: World) -> None:
    out = "s3://kills/early"
    world.proxy.fetched.clear()
    for seconds in (3, 8):
        process = world.start(out)
        time.sleep(seconds)
        process.kill()
        process.wait()
    world.finish(out)
    check(world, out, "driver killed at 3 s and 8 s")


def test_store_is_away_for_20_seconds(world: World) -> None:
    def act(pid: int) -> None:
        del pid
        world.server.stop()
        time.sleep(20)
        world.server.start()
        world.proxy.target_port = world.server.port

    disturb(world, "s3://kills/away", act)
    check(world, "s3://kills/away", "store away for 20 s")


def test_two_in_a_hundred_requests_fail(world: World) -> None:
    world.proxy.failing = 0.02
    try:
        world.proxy.fetched.clear()
        world.finish("s3://kills/flaky")
        world.finish("s3://kills/flaky")
    finally:
        world.proxy.failing = 0.0
    check(world, "s3://kills/flaky", "2 % of requests answered 500 or 503")
