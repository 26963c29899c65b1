"""``tubelet bench decode``: clips a second against other decoders and against the limit.

Each decoder runs in a process of its own, with one decoding thread, pinned to one processor; all take the
same frames of the same videos to the same size, in turns. The time is processor time, of all threads (and
of the sandbox's child): what a clip costs a core, whoever else uses the machine meanwhile.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tubelet.config import UserError
from tubelet.progress import ProgressLine
from tubelet.video import DecodeError, Dense, Linspace, Random, TimeRule, Uniform, probe
from tubelet.video.sampling import Clock

from tubelet_jobs.bench import BenchOptions, missing_peer
from tubelet_jobs.benches import decode_corpus, decode_peers
from tubelet_jobs.benches.decode_peers import Clips

SIDE = 224
# Same picture: scalers differ by less than this, another frame by more.
AGREE_LEVELS = 2.0
# The default run, with the videos it makes first, has to end within 5 minutes.
_BUDGET_S = 200.0
_MAX_ROUNDS = 9

SAMPLINGS: dict[str, Callable[[float], list[TimeRule]]] = {
    "uniform32": lambda u: [Uniform(32)],
    "dense32x2": lambda u: [Dense(32, 2, Random(u))],
    "views4": lambda u: [Dense(32, 2, Linspace(k, 4)) for k in range(4)],
}


def run(options: BenchOptions) -> list[dict[str, Any]]:
    """Measure; one row for each decoder, video and sampling.

    Raises:
        UserError: a peer is missing, or a folder holds no video.
    """
    with ExitStack() as stack:
        # What may be missing is looked for before anything is made.
        peers = options.peers(list(decode_peers.PEERS))
        found = None if options.videos is None else list(_found(Path(options.videos)))
        started = {name: stack.enter_context(_worker(name)) for name in (*peers, *decode_peers.OURS)}
        names = [*decode_peers.OURS, *peers, *decode_peers.LIMIT]
        workers = {name: started.get(name) or stack.enter_context(_worker(name)) for name in names}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tubelet-bench-")))
        return _measure(workers, found or _made(folder), options.full)


def _made(folder: Path) -> list[tuple[str, str, Path]]:
    """(name, codec, path) of the corpus that is made where no other is given."""
    recipes = [*decode_corpus.RECIPES, decode_corpus.LONG]
    with ProgressLine("bench decode: making", len(recipes), "videos") as line:
        made = []
        for recipe in recipes:
            made.append((recipe.name, recipe.codec, decode_corpus.make(recipe, folder)))
            line.advance()
    return made


def _found(folder: Path) -> Iterator[tuple[str, str, Path]]:
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder")
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith((".", "_")):
            try:
                codec = probe(path).codec
            except DecodeError:
                continue
            count += 1
            yield str(path.relative_to(folder)), codec, path
    if not count:
        raise UserError(f"--videos {folder}: holds no video that can be decoded")


def _serve(name: str, link: Connection) -> None:
    """A decoder's process: load it, then time what is asked."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    makers: dict[str, Callable[[], Any]] = {
        **decode_peers.OURS,
        **decode_peers.PEERS,
        **decode_peers.LIMIT,
    }
    try:
        decode = makers[name]()
    except Exception as error:
        link.send(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
        return
    link.send(None)
    while (task := link.recv()) is not None:
        path, clips, want_frames = task
        try:
            if isinstance(decode, decode_peers.Limit):
                decode.prepare(path, clips)
            begin_s = _cpu_s(decode)
            frames = decode(path, clips, SIDE)
            took_s = _cpu_s(decode) - begin_s
            link.send((took_s, frames if want_frames else None, None))
        except Exception as error:
            link.send((None, None, f"{type(error).__name__}: {error}"))


def _cpu_s(decode: decode_peers.Peer) -> float:
    """Processor time of this process, and of the sandbox's child where there is one."""
    return time.process_time() + (decode.child_cpu_s() if isinstance(decode, decode_peers.InSandbox) else 0.0)


@contextmanager
def _worker(name: str) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(name, theirs), daemon=False)
    process.start()
    theirs.close()
    try:
        failure = ours.recv()
        if failure is not None:
            raise missing_peer(name, failure)
        yield ours
        ours.send(None)
    finally:
        process.join(5)
        process.kill()


def _measure(
    workers: dict[str, Connection], videos: list[tuple[str, str, Path]], full: bool
) -> list[dict[str, Any]]:
    cases = [(video, sampling) for video in videos for sampling in _samplings(video[0])]
    times: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    agree: dict[tuple[str, str, str], bool] = {}
    clocks = {name: _clock(path) for name, _, path in videos}
    draw = np.random.default_rng(0)
    begin_s = time.monotonic()
    with ProgressLine("bench decode", None, "cases") as line:
        for round_ in range(-1, _MAX_ROUNDS):
            for (name, _, path), sampling in cases:
                rules = SAMPLINGS[sampling](float(draw.random()))
                clips = [rule.pick(clocks[name]).tolist() for rule in rules]
                for who, (took_s, agrees) in _turn(workers, str(path), clips, round_).items():
                    if round_ < 0:  # warms everything up, and checks the pictures
                        agree[name, sampling, who] = bool(agrees)
                    else:
                        times[name, sampling, who].append(took_s)
                line.advance()
            spent_s = time.monotonic() - begin_s
            if not full and round_ >= 0 and spent_s * (round_ + 3) / (round_ + 2) > _BUDGET_S:
                break
    rows = [
        row
        for (name, codec, _), sampling in cases
        for row in _rows((name, codec, sampling), list(workers), times, agree)
    ]
    return rows + list(_means(rows))


def _samplings(video: str) -> list[str]:
    return ["uniform32"] if video == decode_corpus.LONG.name else list(SAMPLINGS)


def _clock(path: Path) -> Clock:
    frames = probe(path).frames
    if frames is None:
        raise UserError(
            f"{path}: only decoding tells its frames; the bench needs files with an index or plain packets"
        )
    return Clock(np.arange(frames) / 30.0, frames / 30.0)


def _turn(
    workers: dict[str, Connection], path: str, clips: Clips, round_: int
) -> dict[str, tuple[float, bool | None]]:
    """Every decoder once, one after another.

    Who begins changes from round to round, so that nobody always finds the file warm.

    Returns:
        By decoder: seconds, and whether its pictures are ours (told in the round before the first).
    """
    check = round_ < 0
    whos = list(workers)
    turn = 0 if check else round_ % len(whos)
    taken: dict[str, tuple[float, bool | None]] = {}
    ours: Any = None
    for who in whos[turn:] + whos[:turn]:
        workers[who].send((path, clips, check))
        took_s, frames, failure = workers[who].recv()
        if failure is not None:
            if who not in decode_peers.PEERS:
                raise RuntimeError(f"{who} failed on {path}: {failure}")
            # A peer that cannot decode a video loses that video, not the run.
            taken[who] = (math.nan, False)
            continue
        ours = frames if ours is None else ours
        agrees = None
        if check and frames is not None:
            agrees = float(np.abs(frames.astype(np.int16) - ours).mean()) < AGREE_LEVELS
        taken[who] = (took_s, agrees)
    return taken


def _rows(
    case: tuple[str, str, str],
    whos: list[str],
    times: dict[Any, list[float]],
    agree: dict[Any, bool],
) -> Iterator[dict[str, Any]]:
    """One row a decoder. Ratios compare the same rounds: a dense clip's place differs from round to round."""
    name, codec, sampling = case
    clips = len(SAMPLINGS[sampling](0.0))
    seconds = {who: np.array(times[name, sampling, who]) for who in whos}
    peers = [who for who in whos if who in decode_peers.PEERS]
    peers = [who for who in peers if not np.isnan(seconds[who]).any()]
    best = min(peers, key=lambda who: float(seconds[who].sum())) if peers else None
    for who in whos:
        failed = bool(np.isnan(seconds[who]).any())
        yield {
            "bench": "decode",
            "peer": who,
            "video": name,
            "codec": codec,
            "sampling": sampling,
            "clips_per_s": None if failed else clips / float(np.median(seconds[who])),
            "ratio_to_best_peer": None if failed or best is None else _ratio(seconds[best], seconds[who]),
            "ratio_to_limit": None if failed else _ratio(seconds["limit"], seconds[who]),
            "frames_agree": None if who in decode_peers.LIMIT else agree[name, sampling, who],
            "best_peer": best,
            "rounds": len(seconds[who]),
        }


def _ratio(other: Any, own: Any) -> float:
    return float(np.exp(np.median(np.log(other / own))))


def _means(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Geometric means over the videos of a codec, for each decoder and sampling."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["codec"], row["sampling"], row["peer"]].append(row)
    for (codec, sampling, who), members in groups.items():
        if len(members) > 1:
            mean: dict[str, Any] = {**members[0], "video": "geometric mean", "best_peer": None}
            for key in ("clips_per_s", "ratio_to_best_peer", "ratio_to_limit"):
                values = [row[key] for row in members]
                mean[key] = None if None in values else float(np.exp(np.mean(np.log(values))))
            mean["frames_agree"] = None if who == "limit" else all(row["frames_agree"] for row in members)
            yield {**mean, "codec": codec, "sampling": sampling}
