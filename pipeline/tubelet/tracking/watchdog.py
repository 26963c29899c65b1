"""Outlives the driver: when that dies without a word, sends what it left and marks its run KILLED.

Started as ``python -P watchdog.py SPOOL OWNER PATH`` with a pipe from the driver as stdin, whose end is the
driver's; PATH is the driver's ``sys.path`` as JSON.
Until then it is a bare interpreter of some 10 MB. It reads the spool only, never a bucket.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

GIVE_UP_S = 24 * 3600.0  # how long to wait for a server that is away


def main(folder: Path, owner: str) -> None:
    """Wait for the driver's end, then send the rest."""
    words = sys.stdin.read().split()
    if "done" in words or not (folder / "state.json").exists():
        return
    from tubelet.tracking.flush import flush_spool
    from tubelet.tracking.spool import now_ms, read_journal

    state = json.loads((folder / "state.json").read_text("utf-8"))
    if state["owner"] != owner:  # resumed: run and spool belong to another process now, with its own watchdog
        return
    left = [record for record in read_journal(folder) if record["kind"] == "status"]
    final = left[-1] if left else {"kind": "status", "status": "KILLED", "time_ms": now_ms()}
    deadline_s = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline_s and not flush_spool(folder, state, final):
        time.sleep(5)


if __name__ == "__main__":
    sys.path[:] = json.loads(sys.argv[3])  # imports what the driver imports
    main(Path(sys.argv[1]), sys.argv[2])
