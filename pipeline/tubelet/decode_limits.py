"""What one video may cost, as options of every job that decodes; light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ByteSize, Field, TypeAdapter, ValidationError, field_validator

from tubelet.config import Option, Settings

if TYPE_CHECKING:
    from tubelet.video import Limits


class DecodeLimits(Settings):
    """What one video may cost, wherever it is decoded."""

    deadline_s: Annotated[float, Option(flag="--deadline", metavar="SECONDS"), Field(gt=0)] = 60.0
    """Seconds a video may take, fetching included, before it counts as an error."""
    max_frames: Annotated[int, Option(), Field(ge=1)] = 100_000
    """Frames that may be decoded per video (66 minutes at 25 per second)."""
    memory: Annotated[str | None, Option(metavar="SIZE")] = None
    """Memory that decoding a video may take, such as 512MiB (default: 2GiB, or a core's share if less)."""
    sandbox: Annotated[Literal["auto", "required"], Option()] = "auto"
    """required: refuse to decode where the kernel lacks a layer of the decoder's containment."""

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, memory: str | None) -> str | None:
        if memory is not None and _bytes(memory) < 1:
            raise ValueError("must be more than nothing, such as 512MiB")
        return memory

    def limits(self) -> Limits:
        """As the decoder takes them."""
        from tubelet.video import Limits

        given: dict[str, Any] = (
            {} if self.memory is None else {"memory_bytes": _bytes(self.memory), "fit_memory": False}
        )
        return Limits(deadline_s=self.deadline_s, max_frames=self.max_frames, sandbox=self.sandbox, **given)


def _bytes(size: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        raise ValueError("must be a size, such as 512MiB or 4GiB") from None
