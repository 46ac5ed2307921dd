"""The OpenAPI document: it says all that is answered, and nothing else is."""

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from pfms.api.problems import STATUS
from tests.conftest import ROOT, Server, StartServer, eventually, seed_model, start
from tests.documented import check_documented
from tests.tokens import add

QUICK = 8
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
EXAMPLE = "2026-01-31-12-00-00-f81d4fae-7dec-41d0-a765-00a0c91e6bf6"
TO_REMOVE = [EXAMPLE.replace("12-00-00", f"12-30-0{n}") for n in range(2)]
NOT_RUN_YET = {
    "state": "queued",
    **dict.fromkeys(("started_at", "ended_at", "purged_at", "exit_code", "seconds")),
    **dict.fromkeys(("segmentation", "error")),
    "cancel_requested": False,
    "attempts": 0,
}


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get(f"{server.url}/openapi.json").json()
    return found


def calls(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, call in methods.items():
            yield method.upper(), path, call


# --- the document ----------------------------------------------------------------------------


def test_every_refusal_in_the_document_is_a_problem(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in json.dumps(document)
    for method, path, call in calls(document):
        assert "`internal`" in call["responses"]["500"]["description"], (method, path)
        for status, answer in call["responses"].items():
            # Starlette itself refuses a range out of bounds; the 503 of `ready` has its own body.
            if int(status) < 400 or status == "416" or (status == "503" and "/ready" in path):
                continue
            schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
            assert answer["content"] == {"application/problem+json": schema}, (method, path)
            assert answer["description"]


def test_the_document_says_what_every_call_does(document: dict[str, Any]) -> None:
    names = [call["operationId"] for _, _, call in calls(document)]
    assert len(names) == len(set(names))
    for method, path, call in calls(document):
        assert call["description"], (method, path)
        assert method != "HEAD"


def test_a_generator_of_clients_learns_every_type(document: dict[str, Any]) -> None:
    for method, path, call in calls(document):
        for parameter in call.get("parameters", []):
            assert "type" in parameter["schema"], (method, path, parameter)
        for answer in call["responses"].values():
            for kind, content in answer.get("content", {}).items():
                # An event has no schema in OpenAPI 3.1, which knows none of its fields.
                assert content.get("schema") or kind == "text/event-stream", (method, path, kind)


def test_every_path_refuses_the_methods_it_does_not_have(
    server: Server, document: dict[str, Any]
) -> None:
    for path, methods in document["paths"].items():
        known = {method.upper() for method in methods}
        for method in set(METHODS) - known:
            for slash in ("", "/"):
                answer = server.http.request(method, f"{server.url}{path}{slash}")
                assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
                allowed = set(answer.headers["allow"].split(", "))
                assert allowed == known | ({"HEAD"} if "GET" in known else set())


# --- its pages -------------------------------------------------------------------------------


def test_the_type_of_each_problem_leads_to_its_explanation(server: Server) -> None:
    problem = server.http.get("/nothing").json()
    link = httpx.URL(f"{server.url}/api/v1/nothing").join(problem["type"])
    page = server.http.get(link)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for kind in STATUS:
        assert page.text.count(f'id="{kind.code}"') == 1, kind.code
    assert f'id="{link.fragment}"' in page.text


def test_the_documentation_shows_every_call_and_body(
    server: Server, document: dict[str, Any]
) -> None:
    page = server.http.get(f"{server.url}/docs").text
    for method, path, call in calls(document):
        assert f"<code>{method} {path}</code>" in page
        for parameter in call.get("parameters", []):
            assert f"<code>{parameter['name']} ({parameter['in']})</code>" in page
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in page


def test_swagger_ui_is_served_whole_by_pfms_itself(server: Server) -> None:
    page = server.http.get(f"{server.url}/docs/try")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    options = json.loads(re.findall(r"SwaggerUIBundle\((.+)\)</script>", page.text)[0])
    assert len(loaded) == 2
    assert options["validatorUrl"] is None
    for path in (*loaded, options["url"]):
        assert path.startswith("/")
        assert not path.startswith("//")
        assert server.http.get(server.url + path).status_code == 200, path
    assert "http" not in page.text
    policy = dict(
        each.strip().split(" ", 1) for each in page.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in policy["script-src"]
    assert server.http.get(f"{server.url}/docs/try/__init__.py").status_code == 422


@pytest.mark.parametrize("path", ["/docs", "/docs/errors"])
def test_the_documentation_needs_nothing_from_elsewhere(server: Server, path: str) -> None:
    answer = server.http.get(server.url + path)
    assert re.findall(r"<script|<link|<img|https?://|url\(", answer.text) == []
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", ["/docs", "/docs/errors", "/docs/try", "/openapi.json"])
def test_the_documentation_answers_like_every_other_path(server: Server, path: str) -> None:
    for slash in ("", "/"):
        got = server.http.get(f"{server.url}{path}{slash}")
        head = server.http.head(f"{server.url}{path}{slash}")
        assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
        refused = server.http.post(f"{server.url}{path}{slash}")
        assert (refused.status_code, refused.headers["allow"]) == (405, "HEAD, GET")


# --- responses -------------------------------------------------------------------------------


def job_ids() -> list[str]:
    """Those of schemathesis.toml."""
    return [EXAMPLE.replace("12-00-00", f"12-00-0{n}") for n in range(5)]


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with models, and jobs: succeeded, failed, cancelled, purged, not yet run."""
    workspace = tmp_path_factory.mktemp("seeded") / "workspace"
    for name in ("demo", "exit3", "spare"):
        seed_model(workspace, name, b"exit3" if name == "exit3" else b"empty")
    server = start(workspace, "holds_first.py")
    try:
        cancelled, succeeded, failed, purged, fresh = (
            server.submit(model=model) for model in ("demo", "demo", "exit3", "demo", "demo")
        )
        eventually((workspace / "held").exists)
        server.http.post(f"/jobs/{cancelled}/cancel")
        server.ended(fresh)
        answer = server.http.delete(f"/jobs/{purged}", params={"purge": "voxels"})
        assert answer.status_code == 204, answer.text
    finally:
        server.stop()
    (workspace / "held").rmdir()
    for new, old in zip(job_ids(), (succeeded, failed, cancelled, purged, fresh), strict=True):
        rename(workspace, old, new, **(NOT_RUN_YET if old == fresh else {}))
    for to_remove in TO_REMOVE:
        shutil.copytree(workspace / "jobs" / EXAMPLE, workspace / "jobs" / to_remove)
        rename(workspace, to_remove, to_remove)
    for file in workspace.glob("pfms.db*"):
        file.unlink()  # it is built anew from the folders
    return workspace


def rename(workspace: Path, old: str, new: str, **fields: Any) -> None:
    folder = (workspace / "jobs" / old).rename(workspace / "jobs" / new)
    record = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**record, "id": new, **fields}))


def schemathesis(server: Server, examples: int, *options: str) -> dict[str, set[int]]:
    """Let it call the server, and find nothing wrong; the statuses of each operation."""
    har = server.workspace / "calls.har"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--max-examples", str(examples), "--no-color"),
            *(("--seed", "1") if examples <= QUICK else ()),  # the suite is the same every time
            *("--report", "har", "--report-har-path", str(har), *options),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    seen: defaultdict[str, set[int]] = defaultdict(set)
    document = server.http.get(f"{server.url}/openapi.json").json()
    patterns = [
        (method, re.compile(re.sub(r"\\{\w+\\}", "[^/]*", re.escape(path))), call["operationId"])
        for method, path, call in calls(document)
    ]
    for entry in json.loads(har.read_text())["log"]["entries"]:
        path = urlsplit(entry["request"]["url"]).path
        for method, pattern, name in patterns:
            if method == entry["request"]["method"] and pattern.fullmatch(path):
                seen[name].add(entry["response"]["status"])
    return seen


def check_free(start_server: StartServer, seeded: Path, tmp_path: Path, examples: int) -> None:
    """On a server that runs jobs; one of them never ends."""
    workspace = shutil.copytree(seeded, tmp_path / "workspace")
    server = start_server("holds_first.py", workspace=workspace, jobs_per_device=2)
    seen = schemathesis(server, examples)
    without = [name for name, statuses in seen.items() if not statuses & {200, 202, 204}]
    assert without == ["upload_model"]  # it never gets weights
    assert set().union(*seen.values()) >= {200, 202, 204, 404, 409, 422}
    assert server.http.get(f"{server.url}/health/ready").status_code == 200
    assert "Traceback" not in server.log.read_text()


def check_busy(start_server: StartServer, seeded: Path, tmp_path: Path, examples: int) -> None:
    """On a server where no job ever ends and the queue is soon full."""
    workspace = shutil.copytree(seeded, tmp_path / "workspace")
    for job_id in job_ids():
        rename(workspace, job_id, job_id, **NOT_RUN_YET)
    server = start_server("hangs.py", workspace=workspace, queue_limit=6)
    paths = ("--include-path-regex", "jobs|NIfTIinference")
    seen = schemathesis(server, examples, *paths, "--header", "Prefer: respond-async")
    assert set().union(*seen.values()) >= {200, 202, 404, 409, 422, 503}
    assert "Traceback" not in server.log.read_text()


def test_a_problem_that_the_document_does_not_list_fails_the_test_that_gets_it() -> None:
    """Each `Server.http` of the tests looks at its answers in this way."""
    request = httpx.Request("GET", "http://localhost/api/v1/jobs/x/?resultant=labels")
    kind = {"content-type": "application/problem+json"}
    listed = httpx.Response(404, headers=kind, json={"code": "job-not-found"}, request=request)
    check_documented(listed)
    for status, code in ((404, "model-not-found"), (410, "gone")):
        other = httpx.Response(status, headers=kind, json={"code": code}, request=request)
        with pytest.raises(AssertionError, match=code):
            check_documented(other)


def test_no_answer_is_undocumented(start_server: StartServer, seeded: Path, tmp_path: Path) -> None:
    check_free(start_server, seeded, tmp_path, QUICK)


@pytest.mark.parametrize(
    "given",
    ["none", "full", *(pytest.param(one, marks=pytest.mark.every) for one in ("wrong", "narrow"))],
)
def test_no_answer_to_a_token_is_undocumented(
    start_server: StartServer, seeded: Path, tmp_path: Path, given: str
) -> None:
    tokens_file = tmp_path / "tokens.json"
    tokens = {name: add(tokens_file, name, name) for name in ("infer", "admin")}
    workspace = shutil.copytree(seeded, tmp_path / "workspace")
    server = start_server(
        "holds_first.py",
        workspace=workspace,
        jobs_per_device=2,
        tokens_file=tokens_file,
        metrics="token",
    )
    token = {"wrong": "pfms_wrong", "narrow": tokens["infer"], "full": tokens["admin"]}.get(given)
    sent = ("--header", f"Authorization: Bearer {token}") if token else ()

    # Only with the whole scope is a call with a good input always accepted.
    anything = () if given == "full" else ("--exclude-checks", "positive_data_acceptance")

    seen = schemathesis(server, QUICK // 2, *sent, *anything)

    of_api = {name: seen[name] for name in seen if name not in ("live", "ready")}
    statuses = set().union(*of_api.values())
    if given in ("none", "wrong"):
        assert statuses - {405} == {401}  # 405: a method that no call has
    elif given == "narrow":
        assert {200, 202, 403, 404} <= statuses
        for name in ("upload_model", "remove_model", "set_device"):
            assert not of_api[name] & {200, 204}
    else:
        assert {200, 202, 204, 401, 404} <= statuses  # it leaves the token out, too
        assert 403 not in statuses
    assert "Traceback" not in server.log.read_text()


def test_no_answer_is_undocumented_while_nothing_ends(
    start_server: StartServer, seeded: Path, tmp_path: Path
) -> None:
    check_busy(start_server, seeded, tmp_path, QUICK)


@pytest.mark.every
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("check", [check_free, check_busy])
def test_no_answer_is_undocumented_in_many_examples(
    start_server: StartServer, seeded: Path, tmp_path: Path, check: Any
) -> None:
    check(start_server, seeded, tmp_path, 200)
