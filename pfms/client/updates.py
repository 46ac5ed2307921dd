"""How far a call has got, as its caller is told."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from pfms.client.problems import Json

ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class JobEvent:
    """One event of a job: `kind` is `state` or `progress`, `n` grows."""

    n: int
    kind: str
    data: Json


@dataclass(frozen=True)
class Update:
    """How far a call has got.

    Attributes:
        stage: `uploading`, `checking` (the server looks at the upload; there is no `job` yet),
            `waiting`, then the stages of the run: `loading`, `inferring`, `resampling`, `writing`,
            `checking` (of the result); then `downloading`.
        done: Bytes of an upload or a download; of a stage of the run, windows of the network while
            `inferring`, otherwise per cent; None if unknown.
        total: How many there are in total.
        job: The job's ID, once it has one.
        fraction: How much of the run is done, 0 to 1; None if unknown.
        place: In the queue; 0 runs next.
        elapsed: Seconds since the run began.
        expected: Seconds that recent runs of this model took.
    """

    stage: str
    done: int | None = None
    total: int | None = None
    job: str | None = None
    place: int | None = None
    elapsed: float | None = None
    expected: float | None = None
    fraction: float | None = None


OnUpdate = Callable[[Update], None]


def tell(on_update: OnUpdate | None, update: Update) -> None:
    """Pass an update on, if anyone wants it."""
    if on_update is not None:
        on_update(update)


def update_of(job: Json) -> Update:
    """How far a job has got."""
    progress = job["progress"]
    names = ("stage", "done", "total", "elapsed", "expected", "fraction")
    known = {name: progress.get(name) for name in names}
    return Update(**known, job=job["id"], place=job["place"])


class ReportingFile(io.RawIOBase):
    """A file, open to be read, that reports how far it has been; it is closed with it."""

    def __init__(self, file: BinaryIO, on_update: OnUpdate | None) -> None:
        self._file = file
        self._on_update = on_update
        self._total = file.seek(0, io.SEEK_END)
        file.seek(0)
        tell(on_update, Update("uploading", 0, self._total))

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""
        data = self._file.read(size)
        done = self._file.tell()
        stage = "uploading" if done < self._total else "checking"
        tell(self._on_update, Update(stage, done, self._total))
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As every file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As every file does."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()
