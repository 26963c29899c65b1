"""Why a run ended without a model, in a line or two."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator

from tubelet.config import UserError
from tubelet.error_rate import WINDOW, commonest
from tubelet.video import TRANSIENT


class Reasons:
    """The failures of clips that a run is judged by, by code, with an example of each."""

    def __init__(self) -> None:
        self._codes: deque[str] = deque(maxlen=WINDOW)
        self._examples: dict[str, str] = {}

    def add(self, code: str, uri: str, error: str) -> None:
        """Note one clip that failed."""
        self._codes.append(code)
        self._examples[code] = f"{uri}: {error.splitlines()[0] if error else 'no message'}"

    def commonest(self, last: int) -> str:
        """The commonest codes of the ``last`` failures with their numbers, and an example of each."""
        return commonest(Counter([*self._codes][-last:]), self._examples)

    @property
    def is_outage(self) -> bool:
        """Whether most of them are the store's, the network's or the machine's doing."""
        outages = sum(code in TRANSIENT for code in self._codes)
        return 2 * outages > len(self._codes)


def too_many_errors(failed: int, clips: int, limit: float, reasons: Reasons, resumes_at: int) -> UserError:
    """The error of a run that too many clips failed in."""
    told = reasons.commonest(failed)
    head = f"{failed} of the last {clips} clips failed (max_error_rate={limit:g}): {told}.\n"
    if reasons.is_outage:
        advice = "This is no fault of the files: mend the store, the network or the machine"
    else:
        advice = "See the broken files with `tubelet index --update`, or raise max_error_rate="
    return UserError(f"{head}{advice}, and go on from step {resumes_at} with --resume")


def diverged(problem: str, lr: float, precision: str, newest: str | None) -> UserError:
    """The error of a run whose numbers are no longer finite."""
    other = "precision=float32 or bf16" if precision == "fp16" else "precision=float32"
    more = "" if precision == "float32" else f", or {other}"
    kept = f" The last good checkpoint is {newest} (start from it with --init)." if newest else ""
    return UserError(
        f"{problem}; nothing was registered.{kept}\n"
        f"Try a lower lr= (it was {lr:g}) or a longer warmup_steps={more}, with another --out"
    )


def root_cause(error: BaseException) -> BaseException:
    """What went wrong first, in one line, rather than pages of what followed from it.

    Returns:
        The `UserError` somewhere below ``error``, or a `RuntimeError` with the last line of the deepest
        exception; ``error`` itself where it has nothing below.
    """
    chain = list(_below(error))
    user = next((each for _, each in chain if isinstance(each, UserError)), None)
    if user is not None:
        return UserError(str(user))
    rank, deepest = chain[-1]
    if deepest is error and rank is None:
        return error
    lines = [line.strip() for line in str(deepest).splitlines() if line.strip()]
    name = type(deepest).__name__
    said = lines[-1] if lines else name
    said = said if name in said else f"{name}: {said}"
    failed = RuntimeError(said if rank is None else f"rank {rank} failed: {said}")
    failed.__cause__ = error
    return failed


def _below(error: BaseException, rank: int | None = None) -> Iterator[tuple[int | None, BaseException]]:
    """``error`` and the exceptions that it wraps, outermost first, each with the rank it happened on."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield rank, following
        # Ray Train's errors of ranks and of its controller, and Ray's of tasks and actors.
        ranks: dict[int, BaseException] = getattr(following, "worker_failures", None) or {}
        if ranks:
            rank, following = min(ranks.items(), key=lambda item: item[0])
            continue
        below = (getattr(following, name, None) for name in ("controller_failure", "cause", "__cause__"))
        following = _first_exception(below)


def _first_exception(found: Iterable[object]) -> BaseException | None:
    return next((each for each in found if isinstance(each, BaseException)), None)
