"""What one video may cost, as options of every job that decodes; light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    memory: Annotated[str, Option(metavar="SIZE")] = "2GiB"
    """Memory that decoding a video may take, such as 512MiB."""

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, memory: str) -> str:
        if _bytes(memory) < 1:
            raise ValueError("must be more than nothing, such as 512MiB")
        return memory

    def limits(self) -> Limits:
        """As the decoder takes them."""
        from tubelet.video import Limits

        return Limits(self.deadline_s, _bytes(self.memory), self.max_frames)


def _bytes(size: str) -> int:
    try:
        return int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        raise ValueError("must be a size, such as 512MiB or 4GiB") from None
