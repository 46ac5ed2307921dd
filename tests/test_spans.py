"""Spans reach a real collector over HTTP, and nobody loads OpenTelemetry without one."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.conftest import ROOT, Server, StartServer, eventually
from tests.small_server import Answers, small_server

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
LOADED = """
import sys
from pfms.spans import Spans
Spans().close()
print(*(name for name in sys.modules if name.partition(".")[0] == "opentelemetry"))
"""


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Span]]:
    """What a collector was sent by the servers of this test."""
    received: list[Span] = []

    def answer(call: Answers) -> None:
        assert call.path == "/v1/traces"
        body = call.rfile.read(int(call.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            assert names["service.name"] == "pfms"
            for scope in resource.scope_spans:
                received.extend(scope.spans)
        call.say(b"")

    with small_server(answer) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield received


def job_of(span: Span) -> str:
    return "".join(each.value.string_value for each in span.attributes if each.key == "pfms.job")


def sent_by(server: Server, spans: list[Span], count: int) -> list[Span]:
    eventually(lambda: len(spans) >= count)
    assert server.stop() == 0
    return sorted(spans, key=lambda span: span.start_time_unix_nano)


def test_a_volume_has_a_span_for_each_step(start_server: StartServer, spans: list[Span]) -> None:
    server = start_server()
    answer = server.infer(headers={"traceparent": PARENT})
    found = sent_by(server, spans, 6)

    assert [span.name for span in found] == ["receive", "look", "wait", "run", "judge", "send"]
    assert {span.trace_id.hex() for span in found} == {TRACE_ID}
    assert {span.parent_span_id.hex() for span in found} == {"00f067aa0ba902b7"}
    assert {job_of(span) for span in found[2:]} == {answer.headers["X-Pfms-Job"]}
    for span in found:
        assert span.start_time_unix_nano < span.end_time_unix_nano
        assert span.status.code != Status.STATUS_CODE_ERROR


def test_a_step_that_fails_says_why(start_server: StartServer, spans: list[Span]) -> None:
    server = start_server("exit3.py")
    server.infer(b"no volume", headers={"traceparent": PARENT})
    server.infer(headers={"traceparent": PARENT})
    found = sent_by(server, spans, 8)

    failed = {(s.name, s.status.message) for s in found if s.status.code}
    assert failed == {("look", "not-a-nifti"), ("judge", "plugin-failed")}


def test_what_the_caller_does_not_sample_is_not_sent(
    start_server: StartServer, spans: list[Span]
) -> None:
    server = start_server()
    server.infer(headers={"traceparent": f"{PARENT[:-2]}00"})
    server.infer(headers={"traceparent": PARENT})
    found = sent_by(server, spans, 6)

    assert len(found) == 6


def test_a_collector_that_is_gone_disturbs_nothing(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_server(lambda call: call.say(b"")) as url:
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    server = start_server()

    assert server.infer().status_code == 200
    assert server.stop() == 0


def test_without_a_collector_nothing_of_opentelemetry_is_loaded(tmp_path: Path) -> None:
    def loaded(**environment: str) -> str:
        line = [sys.executable, "-c", LOADED]
        ended = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    assert loaded() == ""
    assert "opentelemetry.sdk" in loaded(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9").split()


def test_without_the_extra_a_collector_is_warned_of() -> None:
    program = "import sys; sys.modules['opentelemetry.sdk'] = None\n" + LOADED
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stderr
    assert "the extra otel is not installed" in ended.stderr
