"""The server's log: lines for people, or one JSON object a line."""

import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

from pfms import trace

LogFormat = Literal["text", "json"]

_QUIET = ("uvicorn.error", "sse_starlette", "python_multipart", "httpx")
_ACCESS = "uvicorn.access"
_JOB_IN_PATH = re.compile(r"/jobs/(\d{4}(?:-\d\d){5}-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up_logging(form: LogFormat) -> None:
    """Log to stderr; of the noisy libraries only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_context)
    handler.setFormatter(_Json() if form == "json" else _Text(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _add_context(record: logging.LogRecord) -> bool:
    """Note the job and the trace that a line is about; keep queries out of the access log."""
    fields = record.__dict__
    if record.name == _ACCESS and isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, target, version, status = record.args
        path = str(target).partition("?")[0]
        record.args = (client, method, path, version, status)
        fields.update(client=client, method=method, path=path, status=status)
        if found := _JOB_IN_PATH.search(path):
            fields.setdefault("job", found[1])
    fields.setdefault("job", trace.job_id.get())
    fields.setdefault("trace_id", trace.trace_id())
    return True


class _Text(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (its name there)
        """One line, with the job at its end where the message does not name it."""
        line = super().formatMessage(record)
        job = record.__dict__.get("job")
        return line if not job or job in line else f"{line} (job {job})"


class _Json(JsonFormatter):
    """An object with `time`, `level`, `logger`, `message`, and what else is known about a line."""

    def __init__(self) -> None:
        super().__init__(["levelname", "name", "message"])

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Name the fields, the usual ones first; leave out the empty ones."""
        ordered = {
            "time": log_data.pop("time"),
            "level": log_data.pop("levelname"),
            "logger": log_data.pop("name"),
            **log_data,
        }
        ordered.pop("color_message", None)  # uvicorn's, for terminals
        return {name: content for name, content in ordered.items() if content is not None}

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Add the time, as in a job's record."""
        super().add_fields(log_data, record, message_dict)
        moment = datetime.fromtimestamp(record.created, UTC)
        log_data["time"] = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
