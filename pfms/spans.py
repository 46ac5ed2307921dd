"""Spans for OpenTelemetry: sent if the extra `otel` is installed and a collector is named.

Without both, nothing of OpenTelemetry is imported. Its SDK reads its own settings, `OTEL_...`, from
the environment.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pfms import __version__, trace
from pfms.errors import PfmsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_WARN = "%s is set, but the extra otel is not installed: no spans are sent"

Step = Literal["receive", "look", "wait", "run", "judge", "send"]


class Spans:
    """The spans of one app. Each belongs to the trace that this task works on (`trace`)."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
        if endpoint is not None:
            try:
                self._provider = _provider()
            except ImportError:
                log.warning(_WARN, endpoint)

    @contextmanager
    def span(self, step: Step) -> Iterator[None]:
        """What is done within this is one span."""
        begun = time.time_ns()
        failure: str | None = None
        try:
            yield
        except BaseException as error:
            failure = error.code if isinstance(error, PfmsError) else type(error).__name__
            raise
        finally:
            self._finish(step, begun, failure)

    def passed(self, step: Step, seconds: float) -> None:
        """A step has just ended after `seconds`."""
        self._finish(step, time.time_ns() - int(seconds * 1e9), None)

    def close(self) -> None:
        """Send what has not been sent yet. Blocking."""
        if self._provider is not None:
            self._provider.shutdown()

    def _finish(self, step: Step, begun: int, failure: str | None) -> None:
        parent = trace.traceparent.get()
        if self._provider is None or parent is None:
            return
        from opentelemetry import trace as otel

        _, trace_id, parent_id, flags = parent.split("-")
        context = otel.SpanContext(
            int(trace_id, 16),
            int(parent_id, 16),
            is_remote=True,
            trace_flags=otel.TraceFlags(int(flags, 16)),
        )
        span = self._provider.get_tracer("pfms", __version__).start_span(
            step,
            context=otel.set_span_in_context(otel.NonRecordingSpan(context)),
            start_time=begun,
        )
        if job := trace.job_id.get():
            span.set_attribute("pfms.job", job)
        if failure is not None:
            span.set_status(otel.StatusCode.ERROR, failure)
        span.end()


def _provider() -> "TracerProvider":
    """What sends spans to the collector, in a thread of its own.

    Raises:
        ImportError: The extra `otel` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource({"service.name": "pfms", "service.version": __version__})
    provider = TracerProvider(
        resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
