"""Files in responses: opened first, then streamed with ETag and ranges."""

import os
import re
from collections.abc import Mapping
from io import BufferedReader

from fastapi import Response
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from pfms import __version__
from pfms.api.common import job_headers
from pfms.jobs.archive import Archive
from pfms.jobs.job import Job
from pfms.plugin.types import Resultant
from pfms.volumes.planes import Wanted

NIFTI = "application/octet-stream"

# One range: nobody needs several of a NIfTI.
_RANGE = re.compile(rb"bytes=(?=.*\d)(\d{0,18})-(\d{0,18})")


class OpenedFileResponse(FileResponse):
    """An opened file, streamed, with ETag and ranges.

    It is sent whole even if it is deleted meanwhile, since it is already open.
    """

    def __init__(
        self,
        file: BufferedReader,
        *,
        filename: str,
        media_type: str = NIFTI,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            f"/dev/fd/{file.fileno()}",
            headers=headers,
            media_type=media_type,
            filename=filename,
            stat_result=os.fstat(file.fileno()),
        )
        self._file = file

    def close(self) -> None:
        """Close the file without sending it."""
        self._file.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a Range that makes no sense is ignored, as RFC 9110 allows."""
        with self._file:
            await super().__call__(_sensible_range(scope), receive, send)


def _sensible_range(scope: Scope) -> Scope:
    asked = next((value for name, value in scope["headers"] if name == b"range"), b"")
    match = _RANGE.fullmatch(asked)
    if match and not (match[1] and match[2] and int(match[2]) < int(match[1])):
        return scope
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"range"]}


async def resultant_file(archive: Archive, job: Job, resultant: Resultant) -> OpenedFileResponse:
    """The NIfTI of a job that has succeeded.

    Raises:
        PfmsError: There is none; `Archive.resultant` lists the causes.
    """
    file = await archive.resultant(job.id, resultant)
    return OpenedFileResponse(file, filename="output.nii.gz", headers=_tagged(job, resultant))


async def volume_file(archive: Archive, job: Job) -> OpenedFileResponse:
    """The volume of a job, under a name that is the same for all.

    Raises:
        PfmsError: There is none; `Archive.volume` lists the causes.
    """
    file = await archive.volume(job.id)
    return OpenedFileResponse(file, filename="input.nii.gz", headers=_tagged(job, "volume"))


def _tagged(job: Job, what: str) -> dict[str, str]:
    # A file never changes once it is there, so its name is as good as its hash.
    tag = f'"{job.id}-{what}"'
    return {**job_headers(job), "ETag": tag, "Cache-Control": "private, no-cache"}


async def picture(
    archive: Archive, job: Job, wanted: Wanted, if_none_match: str | None
) -> Response:
    """The preview as a PNG; it is not drawn for a client that already has it.

    Raises:
        PfmsError: There is none; `Archive.resultant` lists the causes.
    """
    asked = f"{wanted.plane}-{wanted.slice}-{wanted.mosaic}"
    headers = _tagged(job, f"preview-{asked}-{__version__}")
    if not _known(headers["ETag"], if_none_match):
        png = await archive.preview(job.id, wanted)
        return Response(png, media_type="image/png", headers=headers)
    (await archive.resultant(job.id, "labels")).close()  # it could still be drawn
    return Response(status_code=304, headers=headers)


def unless_known(answer: OpenedFileResponse, if_none_match: str | None) -> Response:
    """The answer, or a 304 if the client already has what it would get (`If-None-Match`)."""
    if not _known(answer.headers["etag"], if_none_match):
        return answer
    answer.close()
    own = ("content-type", "content-length", "content-disposition", "accept-ranges")
    headers = {name: value for name, value in answer.headers.items() if name not in own}
    return Response(status_code=304, headers=headers)


def _known(etag: str, if_none_match: str | None) -> bool:
    named = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    return bool(named & {etag, "*"})
