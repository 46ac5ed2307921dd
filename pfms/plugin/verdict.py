"""Finds out why a run ended as it did, from its exit code, signal and log. Pure."""

import re
import signal
from dataclasses import dataclass
from pathlib import PurePosixPath

from pfms.plugin.types import PluginExit

DETAIL_LENGTH = 300


@dataclass(frozen=True)
class Verdict:
    """Whether a run succeeded, and if not, why.

    Attributes:
        error: The code of an error (`errors.by_code`); None if it succeeded.
        detail: Why, in one line without paths of this server; empty if it succeeded.
        warning: What the record and the caller should be told about a run that succeeded.
    """

    error: str | None
    detail: str = ""
    warning: str = ""

    @property
    def ok(self) -> bool:
        """Whether the plugin succeeded; its result still has to be checked."""
        return self.error is None


# The first match decides, so specific patterns come before general ones: a full /dev/shm and a full
# disk have the same errno, and the cause of a worker's death appears before its consequences.
_CAUSES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (error, re.compile(pattern, re.MULTILINE))
    for error, pattern in (
        (
            "gpu-out-of-memory",
            r"^.*(CUDA out of memory|CUDA error: out of memory|(?<=torch\.)OutOfMemoryError"
            r"|(?<=cuda\.)OutOfMemoryError|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED).*$",
        ),
        (
            "no-shared-memory",
            r"^.*([Bb]us error|insufficient shared memory|shared memory.*No space left"
            r"|No space left on device.*/dev/shm).*$",
        ),
        # a semaphore is a small file in /dev/shm: no room for it, or no such folder
        (
            "no-shared-memory",
            r"_multiprocessing\.SemLock\(.*\n(?:[ \t].*\n)*(?P<line>\w*Error: .*)$",
        ),
        (
            "out-of-memory",
            r"^.*(\bMemoryError\b|_ArrayMemoryError|Unable to allocate .* for an array"
            r"|DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc"
            r"|killed by signal: Killed|\[Errno 12\]|Cannot allocate memory).*$",
        ),
        ("disk-full", r"^.*(\[Errno 28\]|No space left on device|\[Errno 122\]).*$"),
    )
)

_SIGNALS = {
    "SIGKILL": ("out-of-memory", "It was killed, as happens when memory runs out"),
    "SIGBUS": (
        "no-shared-memory",
        "It died of a bus error, as happens when shared memory runs out",
    ),
}
_TRACEBACK = "Traceback (most recent call last):"
_NO_ROOM = "The disk of the server was full when the plugin ended."


def cause_of(
    exit: PluginExit,
    log_tail: str,
    onehot_written: bool,
    *,
    root: str = "",
    disk_full: bool = False,
) -> Verdict:
    """Why a run ended as it did.

    Args:
        exit: How the run ended.
        log_tail: The end of its log; 64 KiB is plenty.
        onehot_written: Whether the run wrote the segmentation.
        root: The job's folder: in the detail, paths in it are shown relative to it.
        disk_full: Whether the disk was full when it ended. The log is on the same disk, so it may
            not say so.
    """
    if exit.ended_by == "not-started":
        return Verdict("plugin-failed", one_line(exit.message, root) or "It could not be started.")
    if exit.ended_by == "executor":
        return Verdict("interrupted", one_line(exit.message, root) or "The run was lost.")
    if exit.ended_by == "time-limit":
        return Verdict("timed-out", f"It was ended after {exit.seconds:.0f} seconds.")
    if exit.code == 0:
        if onehot_written:
            return Verdict(None)
        if disk_full:
            return Verdict("disk-full", _NO_ROOM)
        return Verdict("bad-result", "The plugin ended without an error but wrote no segmentation.")

    died_of = _signal_of(exit)
    if died_of == "SIGKILL":  # not from us: this counts for more than anything in the log
        return _ended_by_signal(died_of)
    for error, pattern in _CAUSES:
        if match := pattern.search(log_tail):
            return Verdict(error, one_line(match.groupdict().get("line") or match[0], root))
    if disk_full:
        return Verdict("disk-full", _NO_ROOM)
    if died_of is not None:
        return _ended_by_signal(died_of)
    return Verdict(
        "plugin-failed",
        one_line(final_exception(log_tail), root)
        or f"The plugin ended with exit code {exit.code} and no Python error.",
    )


def _signal_of(exit: PluginExit) -> str | None:
    """The signal's name, even if a shell between us and the plugin turned it into 128 + N."""
    number = exit.signal if exit.signal is not None else (exit.code or 0) - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return None if exit.signal is None else f"signal {number}"


def _ended_by_signal(name: str) -> Verdict:
    error, why = _SIGNALS.get(name, ("plugin-failed", "The plugin was ended by a signal"))
    return Verdict(error, f"{why} ({name}).")


def last_traceback(log_text: str) -> str:
    """What follows the first line of the last traceback; empty if there is no traceback."""
    _, found, after = log_text.rpartition(_TRACEBACK)
    return after if found else ""


def final_exception(log_text: str) -> str:
    """The exception of the last traceback, its lines joined; empty if there is no traceback."""
    lines = iter(last_traceback(log_text).splitlines()[1:])
    line = next((line for line in lines if line and not line[0].isspace()), "")
    while line.endswith(":") and (more := next(lines, "").strip()):
        line = f"{line} {more}"
    return line


def how_it_ended(returncode: int | None, stderr: str) -> str:
    """How a program ended unexpectedly, and its last message: `with exit code 1: …`.

    Args:
        returncode: Negative if a signal ended it.
        stderr: The end of its stderr.
    """
    if returncode is not None and returncode < 0:
        try:
            how = f"by {signal.Signals(-returncode).name}"
        except ValueError:
            how = f"by signal {-returncode}"
    else:
        how = f"with exit code {returncode}"
    message = last_message(stderr)
    return f"{how}: {message}" if message else how


def last_message(stderr: str) -> str:
    """The line of a program's stderr that best says why it died; empty if there is none."""
    fatal = re.findall(r"^Fatal Python error: .*$", stderr, re.MULTILINE)
    lines = [line for line in stderr.splitlines() if line.strip()]
    return one_line((fatal or [final_exception(stderr)])[-1] or (lines or [""])[-1])


# a URL; a quoted path, which may contain spaces; an unquoted one
_PATH = re.compile(
    r"(?P<url>https?://\S+)|(?P<quote>['\"])(?P<quoted>/[^'\"]*)(?P=quote)"
    r"|(?<![\w./~])(?P<bare>/[^\s'\",;:()<>]+)"
)


def one_line(text: str, root: str = "") -> str:
    """Make text fit for a `detail`: one line, at most 300 characters, no folders of this server."""

    def shown(match: re.Match[str]) -> str:
        if match["url"]:
            return match["url"]
        path = match["quoted"] or match["bare"]
        relative = re.sub(r"^.*/jobs/[^/]+/", "", path)  # a job's folder, wherever it is
        kept = relative if relative != path else PurePosixPath(path).name
        return f"{match['quote'] or ''}{kept}{match['quote'] or ''}"

    if root:
        text = text.replace(f"{root.rstrip('/')}/", "")
    text = _PATH.sub(shown, text)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= DETAIL_LENGTH else f"{text[: DETAIL_LENGTH - 1]}…"
