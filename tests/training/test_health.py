"""A run that is not well ends in time, says why, and keeps what was good."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from support import wait_until
from support.training import RecordedEvents, Run, run_on_ranks, run_rank, weights_of, write_corpus
from tubelet import storage
from tubelet.config import UserError
from tubelet.storage import StorageOptions
from tubelet.storage.lock import LockLostError, OutputLock
from tubelet.training.checkpoint import CheckpointStore
from tubelet.training.failures import Reasons, diverged, root_cause, too_many_errors
from tubelet.training.health import Health, Outcome

STEPS = 12
SETTINGS = (f"max_steps={STEPS}", "checkpoint_every=2", "retain=2", "optimiser.name=sgd", "lr=0.05")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from more, and on a busy machine their threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Corpus:
    """A manifest and the folder of its videos, which can go away and come back."""

    manifest: str
    videos: Path

    def at(self, gone: int, back: int | None = None) -> Callable[[int], None]:
        """Takes the videos away before step ``gone``, and brings them back before step ``back``."""
        away = self.videos.with_name("away")

        def act(step: int) -> None:
            if step == gone:
                self.videos.rename(away)
            if step == back:
                away.rename(self.videos)

        return act

    def restore(self) -> None:
        away = self.videos.with_name("away")
        if away.exists():
            away.rename(self.videos)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return Corpus(write_corpus(folder, {"train": 10}, broken=[3]), folder / "videos")


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of a run that nothing happened to."""
    out = str(tmp_path_factory.mktemp("whole") / "run")
    run_rank(0, 1, corpus.manifest, Run(out, None, SETTINGS))
    return out


def end_of(events: RecordedEvents) -> dict[str, Any]:
    assert events.records[-1]["kind"] == "end"
    return events.records[-1]


def steps_of(events: RecordedEvents, kind: str = "step") -> list[int]:
    return [r["step"] for r in events.records if r["kind"] == kind and not r.get("again")]


def differing(first: str, second: str, step: int) -> list[str]:
    a, b = weights_of(first, step), weights_of(second, step)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_outage_ends_the_run_and_keeps_what_was_good(corpus: Corpus, whole: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    try:
        events = run_rank(0, 1, corpus.manifest, Run(out, None, SETTINGS, corpus.at(9)))
    finally:
        corpus.restore()
    end = end_of(events)
    assert (end["outcome"], end["saved"]) == ("too many errors", 8)
    assert end["failed"] > 0.2 * end["clips"]
    # Batches without a clip are no points of a curve, and nothing comes of them.
    assert steps_of(events) == list(range(1, 10))
    assert steps_of(events, "empty step") == [10, 11]
    assert CheckpointStore(out).steps() == [6, 8]
    # Resumed, it ends as if nothing had been.
    assert end_of(run_rank(0, 1, corpus.manifest, Run(out, None, SETTINGS)))["outcome"] == "done"
    assert not differing(whole, out, STEPS)


def test_short_outage_changes_no_weight_and_the_run_goes_on(
    corpus: Corpus, whole: str, tmp_path: Path
) -> None:
    """Momentum would move the weights of a step without gradients too."""
    out = str(tmp_path / "run")
    settings = ("max_error_rate=0.5", *SETTINGS)
    try:
        events = run_rank(0, 1, corpus.manifest, Run(out, None, settings, corpus.at(8, back=9)))
    finally:
        corpus.restore()
    assert end_of(events)["outcome"] == "done"
    assert steps_of(events) == [step for step in range(1, STEPS + 1) if step != 9]
    assert CheckpointStore(out).newest() == STEPS
    assert differing(whole, out, STEPS), "a step's clips are missing"


def test_run_whose_output_was_taken_over_writes_nothing_more(corpus: Corpus, tmp_path: Path) -> None:
    """The other job may already be at the same steps: what a checkpoint has of both is of neither."""
    out = str(tmp_path / "run")
    store, breaker = CheckpointStore(out), OutputLock(out, options=StorageOptions(break_lock=True))

    def take(step: int) -> None:
        if step == 5:
            wait_until(lambda: 4 in store.steps(), 30)
            breaker.acquire()

    # Nothing but the look before writing can tell: the lock is not renewed in this time.
    with OutputLock(out, job="tubelet train", heartbeat_every_s=1000) as lock:
        events = run_rank(0, 1, corpus.manifest, Run(out, None, SETTINGS, take, lock.claim()))
        with pytest.raises(LockLostError):
            CheckpointStore(out, claim=lock.claim()).withdraw_after(2)
    breaker.release()
    end = end_of(events)
    assert end["outcome"] == Outcome.TAKEN_OVER
    assert f"{out} was taken over by " in end["problem"]
    assert store.steps() == [2, 4]
    assert max(steps_of(events)) < STEPS, "it found out at its next checkpoint"


def test_full_disk_ends_the_run_at_once_and_it_goes_on(corpus: Corpus, whole: str, tmp_path: Path) -> None:
    """Waiting for room, and starting the ranks again and again, would mend nothing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        out = str(disk / "run")
        store = CheckpointStore(out)

        def fill(step: int) -> None:
            if step == 5:
                wait_until(lambda: 4 in store.steps(), 30)
                with suppress(OSError), (disk / "filler").open("wb") as file:
                    file.write(bytes(64 << 20))

        events = run_rank(0, 1, corpus.manifest, Run(out, None, SETTINGS, fill))
        end = end_of(events)
        assert (end["outcome"], store.steps()) == (Outcome.DISK_FULL, [2, 4])
        assert len(list((disk / "run/checkpoints").iterdir())) == 2, "nor is there a part of another"
        assert end["problem"].startswith(f"no room to write {out}/checkpoints/step-0000000")
        (disk / "filler").unlink()
        run_rank(0, 1, corpus.manifest, Run(out, None, SETTINGS))
        assert differing(whole, out, STEPS) == []
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_outage_in_the_last_steps_is_no_finished_run(corpus: Corpus, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    try:
        events = run_rank(0, 1, corpus.manifest, Run(out, None, SETTINGS, corpus.at(STEPS - 2)))
    finally:
        corpus.restore()
    assert (end_of(events)["outcome"], end_of(events)["saved"]) == ("too many errors", STEPS - 2)
    assert CheckpointStore(out).newest() == STEPS - 2


def spoilt(manifest: str, out: str, *overrides: str, lr: str = "1e30") -> RecordedEvents:
    return run_rank(0, 1, manifest, Run(out, None, (*SETTINGS, f"lr={lr}", *overrides)))


def check_nothing_of_nan(out: str, events: RecordedEvents) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    for record in events.records:
        json.loads(json.dumps(record), parse_constant=refuse)
    store = CheckpointStore(out)
    for step in store.steps():
        text = storage.read_bytes(f"{store.uri(step)}/told.json").decode()
        json.loads(text, parse_constant=refuse)
        assert all(bool(t.isfinite().all()) for t in weights_of(out, step).values())


def test_learning_rate_that_is_too_high_ends_the_run(corpus: Corpus, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    events = spoilt(corpus.manifest, out)
    end = end_of(events)
    assert end["outcome"] == "diverged"
    assert "is not a finite number" in end["problem"]
    assert end["step"] <= 6, "found at once"
    check_nothing_of_nan(out, events)


@pytest.mark.parametrize("steps", [2, 3])
def test_last_update_that_spoils_the_weights_makes_no_model(
    corpus: Corpus, tmp_path: Path, steps: int
) -> None:
    """No later step would show it. (The first update of a warm-up has a learning rate of 0.)"""
    out = str(tmp_path / "run")
    events = spoilt(
        corpus.manifest, out, f"max_steps={steps}", "checkpoint_every=1", "clip_norm=null", lr="1e38"
    )
    assert end_of(events)["outcome"] == "diverged"
    assert CheckpointStore(out).newest() == 1
    check_nothing_of_nan(out, events)


def test_half_precision_may_leave_out_some_steps_in_a_row(corpus: Corpus, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    events = spoilt(corpus.manifest, out, "precision=fp16", "max_skipped_steps=3", "checkpoint_every=50")
    assert end_of(events)["outcome"] == "diverged"
    assert "(and of the 3 before)" in end_of(events)["problem"]
    check_nothing_of_nan(out, events)


@pytest.mark.slow
def test_ranks_agree(corpus: Corpus, tmp_path: Path) -> None:
    """Ranks that disagreed would wait for each other for ever."""
    outs = [str(tmp_path / name) for name in ("diverged", "fp16")]
    more = (("lr=1e30",), ("lr=1e30", "precision=fp16", "max_skipped_steps=2"))
    runs = [Run(out, None, (*SETTINGS, *each)) for out, each in zip(outs, more, strict=True)]
    run_on_ranks(2, corpus.manifest, runs)
    for out in outs:
        assert (CheckpointStore(out).newest() or 0) < STEPS


def test_limit_is_over_a_window() -> None:
    """A run of millions of clips must not average an outage away."""
    health = Health(0.2, None)
    assert {health.see_clips(step, 50, 5) for step in range(10_000)} == {Outcome.DONE}
    assert health.failing_since is None
    verdicts = [health.see_clips(10_000 + step, 50, 50) for step in range(4)]
    assert verdicts[0] is Outcome.DONE
    assert verdicts[-1] is Outcome.TOO_MANY_ERRORS
    assert health.failing_since is not None
    assert abs(health.failing_since - 10_000) <= 2


def test_few_clips_end_nothing() -> None:
    health = Health(0.2, None)
    assert [health.see_clips(step, 8, 8) for step in range(7)] == [Outcome.DONE] * 7
    assert health.see_clips(7, 8, 8) is Outcome.TOO_MANY_ERRORS


def test_reasons_tell_an_outage_from_broken_files() -> None:
    outage, broken = Reasons(), Reasons()
    for _ in range(30):
        outage.add("io_error", "s3://b/a.mp4", "503 Slow Down\nand pages more")
        broken.add("decode_error", "s3://b/a.mp4", "no packet decodes")
    outage.add("decode_error", "s3://b/c.mp4", "")
    text = str(too_many_errors(31, 100, 0.2, outage, 30))
    assert "30 io_error (s3://b/a.mp4: 503 Slow Down); 1 decode_error" in text
    assert "mend the store, the network or the machine, and go on from step 30 with --resume" in text
    assert "tubelet index --update" in str(too_many_errors(30, 100, 0.2, broken, 0))
    assert len(text.splitlines()) == 2


def test_divergence_says_what_to_try() -> None:
    text = str(diverged("the loss of step 7 is not a finite number", 0.5, "fp16", "/out/step-00000005"))
    assert "lower lr= (it was 0.5)" in text
    assert "precision=float32 or bf16" in text
    assert "/out/step-00000005" in text
    assert len(text.splitlines()) == 2


def test_reason_of_a_rank_is_found_below_what_ray_says() -> None:
    lost = ValueError("pages\n\nno such GPU")
    task = RayTaskError("f", "Traceback\n  …\nValueError: no such GPU", lost)
    for error in (WorkerGroupError("x", {1: lost}), ControllerError(WorkerGroupError("x", {1: task}))):
        assert str(root_cause(error)) == "rank 1 failed: ValueError: no such GPU"
    own = ControllerError(RayTaskError("configure", "Traceback", UserError("add CPUs")))
    assert isinstance(root_cause(own), UserError)
    assert str(root_cause(own)) == "add CPUs"
    assert root_cause(lost) is lost
