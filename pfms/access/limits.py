"""What a caller may hold at a time."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field

from pfms.settings import number_and_unit


class Limits(BaseModel):
    """A caller's own limits. 0 is no limit; None leaves it to the settings.

    Attributes:
        jobs: Queued and running, also those whose volume is being received.
        uploads: Of volumes or weights, being received and checked at the same time.
        bytes: Of the volumes and results of all jobs on record that were not purged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    jobs: Annotated[int | None, Field(ge=0)] = None
    uploads: Annotated[int | None, Field(ge=0)] = None
    bytes: Annotated[ByteSize, BeforeValidator(number_and_unit), Field(ge=0)] | None = None


AS_IN_SETTINGS = Limits()
