"""Has the child program `weights_child.py` check an upload, so that this process needs no torch."""

import asyncio
import json
import logging
import re
import signal
import uuid
from asyncio import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pfms.aio import to_the_end
from pfms.errors import DiskFull, NotAModel, PfmsError
from pfms.plugin import PLUGIN
from pfms.plugin.verdict import how_it_ended, one_line
from pfms.processes.kill import end_run
from pfms.processes.marks import JOB_MARK
from pfms.processes.run import child_environment
from pfms.programs import WEIGHTS_CHILD

logger = logging.getLogger(__name__)

CHILD_SECONDS = 120.0
"""The time limit. The check takes 3 to 5 seconds, on a busy machine several times as long."""

# What the child needs from the server's environment to find the plugin as a run does, and no more:
# it opens a stranger's file.
PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TMPDIR|TZ|LD_LIBRARY_PATH|VIRTUAL_ENV"
    r"|PYTHONPATH|PYTHONHOME|PYTHONPLATLIBDIR|PYTHONUSERBASE|PYTHONNOUSERSITE|PYTHONUTF8"
    r"|PYTHONDONTWRITEBYTECODE|PYTHONPYCACHEPREFIX|MPLCONFIGDIR|XDG_CACHE_HOME|XDG_CONFIG_HOME"
)
TAIL_BYTES = 16384
ASK_DOCTOR = "Tell the operator of this server: `pfms doctor` says what is missing."
CAUSE_BY_SIGNAL = {
    signal.SIGKILL: "Opening the file took more memory than the server has.",
    signal.SIGXCPU: "Opening the file took far longer than weights of this network ever do.",
    signal.SIGSEGV: "The file is damaged: torch crashes when it opens it.",
    signal.SIGBUS: "The file is damaged: torch crashes when it opens it.",
    signal.SIGABRT: "The file is damaged: torch crashes when it opens it.",
    signal.SIGFPE: "The file is damaged: torch crashes when it opens it.",
}


@dataclass(frozen=True)
class CheckedWeights:
    """Weights that fit the plugin's network, in the file that the child wrote.

    Attributes:
        sha256: Of that file.
        size: Of that file, in bytes.
        warnings: What a user should know, one sentence each.
    """

    sha256: str
    size: int
    warnings: tuple[str, ...]


async def check_weights(
    interpreter: Sequence[str], upload: Path, target: Path, time_limit: float = CHILD_SECONDS
) -> CheckedWeights:
    """Compare `upload` with the plugin's network and write its weights to `target`, as float32.

    When this returns or raises, the child and everything that it started are gone. On an error or a
    cancellation, `target` may be incomplete.

    Args:
        interpreter: How to start the Python that has the plugin.
        upload: The uploaded file; it is only read.
        target: Where to write the weights.
        time_limit: Seconds after which the child is ended.

    Raises:
        NotAModel: It is not a state dict that fits.
        DiskFull: There is no room for `target`.
        PfmsError: The plugin cannot be imported.
    """
    mark = f"weights-{uuid.uuid4().hex}"
    try:
        child = await subprocess.create_subprocess_exec(
            *(*interpreter, str(WEIGHTS_CHILD), str(upload), str(target), PLUGIN.network),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**weights_environment(), JOB_MARK: mark},
            start_new_session=True,
        )
    except OSError as error:
        raise PfmsError("The plugin's Python cannot be started.", ASK_DOCTOR) from error
    try:
        async with asyncio.timeout(time_limit):
            stdout, stderr = await _listen(child)
    except TimeoutError:
        raise NotAModel(f"Checking the file took more than {time_limit:g} seconds.") from None
    finally:
        await to_the_end(_end(child, mark))
    return _verdict_of(child.returncode, stdout, stderr)


def weights_environment() -> dict[str, str]:
    """The environment of the child."""
    # MONAI asks for the user's name, which a UID without a passwd entry has only in USER.
    for_runs = child_environment({})
    passed_on = {name: text for name, text in for_runs.items() if PASSED_ON.fullmatch(name)}
    return {"USER": "pfms", **passed_on, "CUDA_VISIBLE_DEVICES": ""}


async def _end(child: subprocess.Process, mark: str) -> None:
    await end_run(child, mark, grace=0)
    await _listen(child)


async def _listen(child: subprocess.Process) -> tuple[bytes, bytes]:
    """The end of its stdout and stderr, once it has ended."""
    stdout, stderr = await asyncio.gather(_tail(child.stdout), _tail(child.stderr))
    await child.wait()
    return stdout, stderr


async def _tail(stream: asyncio.StreamReader | None) -> bytes:
    kept = b""
    while stream and (piece := await stream.read(65536)):
        kept = (kept + piece)[-TAIL_BYTES:]
    return kept


@cache
def _warn_once(words: str) -> None:
    logger.warning(words)


def _verdict_of(code: int | None, stdout: bytes, stderr: bytes) -> CheckedWeights:
    """The child's verdict, or if there is none, what the child died of."""
    try:
        verdict: dict[str, Any] = json.loads(stdout)
        for what in verdict.get("open", ()):
            _warn_once(one_line(f"the process that opens uploaded weights keeps {what}"))
        if verdict["ok"]:
            return CheckedWeights(
                str(verdict["sha256"]), int(verdict["size"]), tuple(verdict["warnings"])
            )
        kind, detail = str(verdict["code"]), str(verdict["detail"])
    except (ValueError, KeyError, TypeError, AttributeError):
        kind, detail = "died", "The check of the file ended without an answer, "
        detail += f"{how_it_ended(code, stderr.decode(errors='replace'))}."
        if code is not None and -code in CAUSE_BY_SIGNAL:
            kind, detail = "not-a-model", CAUSE_BY_SIGNAL[signal.Signals(-code)]
    if kind == "not-a-model":
        raise NotAModel(detail)
    logger.error("%s: %s\n%s", WEIGHTS_CHILD.name, detail, stderr.decode(errors="replace"))
    if kind == "disk-full":
        raise DiskFull(detail)
    raise PfmsError(detail, ASK_DOCTOR)
