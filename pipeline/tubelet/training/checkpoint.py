"""Checkpoints: one folder each, uploaded in the background, valid once their ``COMPLETE`` marker is there.

A checkpoint ``<out>/checkpoints/step-00000012`` holds ``model.safetensors`` (a MODEL like any other: the
averaged weights where the recipe averages), ``state.safetensors`` (what training needs besides: optimiser,
raw weights) and ``told.json`` (the figures since the checkpoint before). Nothing in it can be executed.
"""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tubelet import storage
from tubelet.config import UserError
from tubelet.inference.integrity import MARKER, marker_of, what_is_torn
from tubelet.storage import StorageOptions, with_retries
from tubelet.storage.errors import DiskFullError
from tubelet.storage.lock import Claim, LockLostError
from tubelet.training.request import Request

_NAME = re.compile(r"step-(\d{8,})")

# How long one upload is tried again, and the first and the longest pause: longer than a store's usual hiccup.
PATIENCE_S = 300.0
PAUSES_S = (1.0, 120.0)


@dataclass
class CheckpointStore:
    """The checkpoints of one output folder, on any store. One process writes, others may read.

    ``claim``: what the writer's job holds the output by; None: nothing is asked before writing.
    """

    out: str
    options: StorageOptions = field(default_factory=StorageOptions)
    retain: int = 3
    claim: Claim | None = None

    @classmethod
    def of(cls, request: Request, claim: Claim | None = None) -> CheckpointStore:
        """Those of a run."""
        return cls(storage.normalise_uri(request.out), request.out_options, request.recipe.retain, claim)

    def uri(self, step: int) -> str:
        """Where the checkpoint of ``step`` lies."""
        return storage.join(self.out, "checkpoints", f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return [step for step in self._all_steps() if self.is_complete(step)]

    def newest(self) -> int | None:
        """Step of the newest checkpoint that is whole; None where there is none."""
        return self.newest_and_torn()[0]

    def newest_and_torn(self) -> tuple[int | None, dict[int, str]]:
        """Step of the newest whole checkpoint, and what is wrong with later ones."""
        torn: dict[int, str] = {}
        for step in reversed(self._all_steps()):
            reason = what_is_torn(self.uri(step), self.options)
            if reason is None:
                return step, torn
            torn[step] = reason
        return None, torn

    def is_complete(self, step: int) -> bool:
        """Whether the marker, which is written last, is there, and the files have the sizes it says."""
        return what_is_torn(self.uri(step), self.options, digests=False) is None

    def fetch_newest(self, folder: Path) -> tuple[int, Path] | None:
        """Step and files of the newest whole checkpoint, fetched as :meth:`fetch` does."""
        for step in reversed(self._all_steps()):
            # What is downloaded is read once: its digests are compared on this machine.
            if self.is_complete(step):
                files = self.fetch(step, folder / str(step))
                if what_is_torn(str(files)) is None:
                    return step, files
        return None

    def fetch(self, step: int, folder: Path) -> Path:
        """The files of a checkpoint on this machine: in place where ``out`` is local, else in ``folder``."""
        if not storage.is_remote(self.out):
            return Path(self.uri(step))
        storage.download_dir(self.uri(step), folder, self.options)
        return folder

    def publish(self, step: int, files: Path, *, keep: Collection[int] = ()) -> None:
        """Copy ``files`` to the checkpoint of ``step``, then its marker, then delete what is not retained.

        ``keep``: steps that retention spares, such as the best.

        Raises:
            LockLostError: another job has taken the output over; nothing of the checkpoint is seen.
        """
        self._check_owner()
        target = self.uri(step)
        if step in self._all_steps():
            self._delete(step)  # a part of an earlier try: its files must not mix with these
        marker = marker_of(step, files)
        storage.upload_dir(files, target, self.options)
        self._check_owner()
        storage.write_bytes(storage.join(target, MARKER), marker, self.options)
        self._retain(keep)

    def withdraw_after(self, step: int) -> None:
        """Delete the checkpoints of later steps than ``step``.

        Raises:
            LockLostError: another job has taken the output over.
        """
        self._check_owner()
        for later in self._all_steps():
            if later > step:
                self._delete(later)

    def withdraw(self, step: int) -> None:
        """Delete what there is of the checkpoint of ``step``."""
        self._delete(step)

    def _check_owner(self) -> None:
        if self.claim is not None:
            self.claim.check()

    def _retain(self, keep: Collection[int]) -> None:
        complete = self.steps()
        spared = {*complete[-self.retain :], *keep}
        for step in self._all_steps():
            if step not in spared and step < complete[-1]:
                self._delete(step)

    def _delete(self, step: int) -> None:
        # The marker goes first: a reader in between sees no checkpoint rather than half of one.
        storage.delete(storage.join(self.uri(step), MARKER), self.options)
        storage.delete_tree(self.uri(step), self.options)

    def _all_steps(self) -> list[int]:
        names = storage.list_names(storage.join(self.out, "checkpoints"), self.options)
        found = (_NAME.fullmatch(name.rstrip("/")) for name in names)
        return sorted(int(match[1]) for match in found if match)


class CheckpointWriter:
    """Writes checkpoints in the background, one at a time, trying again when the store fails.

    ``save`` blocks only for the copy to local disk, and for the upload before this one. An upload that
    failed for good is reported by the next call, so that a run does not go on for days without a
    checkpoint. A full disk is no such failure: neither waiting nor another start of the ranks mends it.

    Attributes:
        retries: failures that were tried again.
        lost: who has taken the output over, '' while nobody has; from then on nothing is written.
        full: which disk is full, '' while none is; likewise.
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        patience_s: float = PATIENCE_S,
        pauses_s: tuple[float, float] = PAUSES_S,
    ) -> None:
        self._store, self._patience_s, self._pauses_s = store, patience_s, pauses_s
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self.retries = 0
        self.lost = self.full = ""

    def save(self, step: int, write: Callable[[Path], None], *, keep: Collection[int] = ()) -> None:
        """``write`` puts files into an empty local folder; they are published while training goes on.

        Raises:
            OSError: the upload before this one failed for good.
        """
        folder = Path(tempfile.gettempdir())
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"tubelet-step-{step}-"))
            write(folder)
        except BaseException as error:
            if folder.name.startswith("tubelet-step-"):
                shutil.rmtree(folder, ignore_errors=True)
            if not _has_no_room(error):
                raise
            self.full = f"no room to write {folder} (No space left on device)"
        try:
            self.wait()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if self.lost or self.full:
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._pending = self._pool.submit(self._publish, step, folder, keep)

    def wait(self) -> None:
        """Return once the upload under way has ended.

        Raises:
            OSError: it failed for good.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish the upload under way and stop."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _publish(self, step: int, folder: Path, keep: Collection[int]) -> None:
        try:
            with_retries(
                lambda: self._store.publish(step, folder, keep=keep),
                retry_on=lambda error: (
                    isinstance(error, Exception) and not isinstance(error, (LockLostError, DiskFullError))
                ),
                patience_s=self._patience_s,
                first_pause_s=self._pauses_s[0],
                most_pause_s=self._pauses_s[1],
                on_retry=self._count,
            )
        except LockLostError as error:  # no failure of a rank, which Ray Train would start anew
            self.lost = str(error)
        except DiskFullError as error:
            self.full = str(error)
            with suppress(OSError, UserError):
                self._store.withdraw(step)
        except Exception as error:
            raise OSError(f"cannot write the checkpoint of step {step}: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _count(self, error: BaseException) -> None:
        del error
        self.retries += 1


def _has_no_room(error: BaseException) -> bool:
    """Whether a local disk is full; safetensors says so in words only."""
    return "No space left" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
