"""Everything that can go wrong, typed where it arises; its HTTP status is in `api/problems.py`.

The tree::

    PfmsError
    ├── StartError                 the service cannot start (never reaches a client)
    ├── RequestError               the caller can fix it
    │   ├── InvalidParameter  MissingModelID  InvalidModelID  MissingFile  IdempotencyMismatch
    │   ├── UnsupportedCoding  RequestTimeout  HeadersTooLarge
    │   ├── Unauthorized  ForbiddenScope  Forbidden  WrongHost
    │   ├── NotAModel
    │   ├── NotANifti  TruncatedNifti  UnsupportedNifti  TooLarge  NoMemory
    │   ├── ModelNotFound  JobNotFound
    │   └── JobNotFinished  JobFailed  JobActive  ResultantNotMade  Gone
    ├── NotNow                     the same request may succeed later
    │   └── QueueFull  DiskFull  NotReady  NoDevice  Interrupted  TooManyConnections
    └── RunFailed                  the plugin ran, or should have run, and there is no result
        └── PluginFailed  BadResult  OutOfMemory  GpuOutOfMemory  NoSharedMemory
            TimedOut  Cancelled
"""

from typing import ClassVar


class PfmsError(Exception):
    """Base of all.

    Attributes:
        code: The stable name that clients test for (docs/api.md, "Errors").
        title: What the code means, in words.
        remedy: What the caller can do, in one sentence.
        detail: What happened this time, without a traceback or a path of pfms itself.
        job: The ID of the job it belongs to, if any.
        retry_after: Seconds after which trying again is sensible, if known.
    """

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something in pfms failed"
    remedy: str = (
        "Try again; if it happens again, tell the operator of this server when it happened."
    )

    def __init__(
        self,
        detail: str = "",
        remedy: str | None = None,
        *,
        job: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.detail = detail or f"{self.title}."
        super().__init__(self.detail)
        if remedy is not None:
            self.remedy = remedy
        self.job = job
        self.retry_after = retry_after


class StartError(PfmsError):
    """The service cannot start; `detail` and `remedy` are printed as one `line`."""

    code = "cannot-start"
    title = "pfms cannot start"
    remedy = "Run `pfms doctor` for a closer look."

    @property
    def line(self) -> str:
        """What the operator sees."""
        return f"{self.title}: {self.detail.rstrip('.')}. {self.remedy}"


class RequestError(PfmsError):
    """The caller can fix it."""


class InvalidParameter(RequestError):
    """A query parameter, header or body is not what the call accepts."""

    code = "invalid-parameter"
    title = "The request is not what this call accepts"
    remedy = "Correct the parameter; /docs lists what each call accepts."


class Unauthorized(RequestError):
    """The server asks who calls, and the request does not carry a token that it accepts."""

    code = "unauthorized"
    title = "This server accepts only callers that it knows"
    remedy = (
        "Send a token that the operator of this server gave you, as Authorization: Bearer TOKEN "
        "or as the password of HTTP Basic."
    )


class ForbiddenScope(RequestError):
    """The token is accepted, but it does not allow this call."""

    code = "forbidden-scope"
    title = "The token does not allow this call"
    remedy = "Ask the operator of this server for a token with the scope that is named."


class Forbidden(RequestError):
    """A web page of another origin tried to change something."""

    code = "forbidden"
    title = "A web page of another origin may not do this"
    remedy = "The operator of this server can name its origin in PFMS_CORS_ORIGINS."


class WrongHost(RequestError):
    """The request names a host that this server does not go by."""

    code = "wrong-host"
    title = "This server does not go by the name in the URL"
    remedy = "Call it by its IP address, or ask its operator to add this name to PFMS_HOSTNAMES."


class MissingModelID(RequestError):
    """The query has no modelID."""

    code = "missing-model-id"
    title = "The query names no model"
    remedy = "Add ?modelID=NAME to the URL."


class InvalidModelID(RequestError):
    """The model ID could not be a folder name."""

    code = "invalid-model-id"
    title = "This is not a model ID"
    remedy = (
        "Use letters, digits, '.', '_' and '-', starting with a letter or digit, "
        "at most 128 characters."
    )


class MissingFile(RequestError):
    """No multipart field `file`, or an empty one."""

    code = "missing-file"
    title = "The request carries no file"
    remedy = "Send multipart/form-data with the file in the field 'file' (curl: -F file=@NAME)."


class UnsupportedCoding(RequestError):
    """The body is compressed in transit, by a Content-Encoding or a Transfer-Encoding."""

    code = "unsupported-coding"
    title = "The body is encoded in a way that this service does not decode"
    remedy = (
        "Leave the header out and send the form as it is; a .nii.gz in it is a file like any other."
    )


class HeadersTooLarge(RequestError):
    """URL and headers, or the trailers, are longer or more than the server reads."""

    code = "headers-too-large"
    title = "The headers of the request are too large"
    remedy = "Send fewer and shorter headers, and a shorter URL."


class RequestTimeout(RequestError):
    """Next to nothing arrived for PFMS_IDLE_SECONDS in the middle of a request."""

    code = "request-timeout"
    title = "The request stopped in the middle"
    remedy = "Send the request again; check the network if this happens again."


class IdempotencyMismatch(RequestError):
    """The key was used before, with different content."""

    code = "idempotency-mismatch"
    title = "This Idempotency-Key was used for another request"
    remedy = "Use a new Idempotency-Key for a new request."


class NotAModel(RequestError):
    """The upload does not hold weights that fit the plugin's network."""

    code = "not-a-model"
    title = "The file is not a model that the plugin can use"
    remedy = "Upload the model.pth that spleenseg's training wrote: a state dict of its network."


class NotANifti(RequestError):
    """The upload is not NIfTI."""

    code = "not-a-nifti"
    title = "The file is not a NIfTI volume"
    remedy = "Send a NIfTI-1 or NIfTI-2 file, plain or gzipped (dcm2niix makes one from DICOM)."


class TruncatedNifti(RequestError):
    """Fewer voxels than the header says, or a damaged gzip stream."""

    code = "truncated-nifti"
    title = "The NIfTI file is incomplete or damaged"
    remedy = "Send the file again, or recreate it from its source."


class UnsupportedNifti(RequestError):
    """NIfTI, but not a volume that the plugin can segment."""

    code = "unsupported-nifti"
    title = "This NIfTI file cannot be segmented"
    remedy = "Send one 3-D CT volume in Hounsfield units with a valid spacing and orientation."


class TooLarge(RequestError):
    """The upload has more bytes than the settings, or its own header, allow."""

    code = "too-large"
    title = "The upload is too large"
    remedy = "Send a smaller volume: crop it to the abdomen, or resample it."


class NoMemory(RequestError):
    """A run of the volume would need more memory than runs may have."""

    code = "no-memory"
    title = "The volume needs more memory than the server has for a run"
    remedy = "Send a smaller volume: crop it to the abdomen, or resample it."


class ModelNotFound(RequestError):
    """No model has this ID."""

    code = "model-not-found"
    title = "There is no such model"
    remedy = "GET /api/v1/spleenseg/modelpth lists the models; upload one with a POST there."


class JobNotFound(RequestError):
    """No job has this ID."""

    code = "job-not-found"
    title = "There is no such job"
    remedy = "GET /api/v1/jobs lists the jobs."


class JobNotFinished(RequestError):
    """The result was requested while the job was waiting or running."""

    code = "job-not-finished"
    title = "The job has not ended yet"
    remedy = "Wait: follow the job's /events, or ask again when its state is 'succeeded'."


class JobFailed(RequestError):
    """The result was requested, but there is none."""

    code = "job-failed"
    title = "The job has no result"
    remedy = "Read the job's error and /log; POST /rerun runs it again."


class JobActive(RequestError):
    """Only an ended job can be removed."""

    code = "job-active"
    title = "The job has not ended"
    remedy = "Cancel it first: POST to the job's /cancel."


class ResultantNotMade(RequestError):
    """The run did not make this resultant."""

    code = "resultant-not-made"
    title = "The run did not make this resultant"
    remedy = "POST to the job's /rerun?resultant=logits makes it."


class Gone(RequestError):
    """The voxels were purged; the record is kept."""

    code = "gone"
    title = "The voxels of this job were removed"
    remedy = "Send the volume again."


class NotNow(PfmsError):
    """The same request may succeed later."""


class QueueFull(NotNow):
    """PFMS_QUEUE_LIMIT jobs are already waiting."""

    code = "queue-full"
    title = "The queue is full"
    remedy = "Try again after the time that Retry-After gives."


class TooManyRequests(NotNow):
    """The caller holds as many jobs, uploads or bytes as it may."""

    code = "too-many-requests"
    title = "This caller holds as much as it may"
    remedy = "Try again after the time that Retry-After gives."


class DiskFull(NotNow):
    """There is no room for another upload, or the disk filled up in the meantime."""

    code = "disk-full"
    title = "The server has no room left on its disk"
    remedy = "Tell the operator of this server; try again when there is room."


class NotReady(NotNow):
    """The server is starting or stopping, or cannot use its files."""

    code = "not-ready"
    title = "The server cannot accept work right now"
    remedy = "Try again in a minute; GET /health/ready says what it is waiting for."


class TooManyConnections(NotNow):
    """PFMS_MAX_CONNECTIONS are open, or PFMS_MAX_CONNECTIONS_PER_ADDRESS from this address."""

    code = "too-many-connections"
    title = "The server has too many connections"
    remedy = "Try again in a few seconds."


class NoDevice(NotNow):
    """None of the devices to run on is there."""

    code = "no-device"
    title = "There is no device to run on"
    remedy = "Tell the operator of this server: `pfms doctor` lists the devices."


class Interrupted(NotNow):
    """The server stopped during a blocking call, or died too often while it ran a job."""

    code = "interrupted"
    title = "The server stopped during the run"
    remedy = "The job stays queued and runs after the restart: look it up by its ID."


class RunFailed(PfmsError):
    """There is no result, and the job's record says why."""


class PluginFailed(RunFailed):
    """The plugin ended with an error of its own."""

    code = "plugin-failed"
    title = "The plugin failed"
    remedy = "Read the job's /log for what the plugin said."


class BadResult(RunFailed):
    """The plugin succeeded, but its output does not pass the checks."""

    code = "bad-result"
    title = "The plugin's result does not fit the volume"
    remedy = "Read the job's /log; check that the model fits the installed plugin."


class OutOfMemory(RunFailed):
    """The host ran out of memory."""

    code = "out-of-memory"
    title = "The run needed more memory than the server has"
    remedy = "Send a smaller volume (crop it to the abdomen), or give the server more memory."


class GpuOutOfMemory(RunFailed):
    """The GPU ran out of memory."""

    code = "gpu-out-of-memory"
    title = "The run needed more memory than the GPU has"
    remedy = "Try again when the GPU is free, send a smaller volume, or run on the CPU."


class NoSharedMemory(RunFailed):
    """Shared memory is too small for the plugin's DataLoader workers."""

    code = "no-shared-memory"
    title = "The plugin had too little shared memory"
    remedy = "Give the container more: docker run --shm-size=2g (or --ipc=host)."


class TimedOut(RunFailed):
    """The run took longer than PFMS_JOB_TIMEOUT_SECONDS."""

    code = "timed-out"
    title = "The run took longer than the time limit"
    remedy = "Send a smaller volume, or ask the operator to raise PFMS_JOB_TIMEOUT_SECONDS."


class Cancelled(RunFailed):
    """Someone cancelled the job, or the client of its blocking call went away."""

    code = "cancelled"
    title = "The job was cancelled"
    remedy = "POST to the job's /rerun to run it again."


def leaves(kind: type[PfmsError]) -> list[type[PfmsError]]:
    """The leaves of the tree below `kind`."""
    below = [leaf for sub in kind.__subclasses__() for leaf in leaves(sub)]
    return below or [kind]


def by_code(code: str) -> type[PfmsError]:
    """The class of a recorded `code`; `PfmsError` itself if no class has it."""
    return next((kind for kind in leaves(PfmsError) if kind.code == code), PfmsError)
