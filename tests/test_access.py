"""Who may call what: every route with every kind of token, over a real port."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pfms.access.exposure import check_exposure, is_loopback
from pfms.errors import StartError
from pfms.settings import load_settings
from tests import tokens
from tests.command import finish, pfms, running
from tests.conftest import Server, StartServer, nifti_bytes, seed_model, start
from tests.refused import files_of
from tests.tokens import bearer
from tests.wire import FORM, Wire

SCOPES = ("infer", "models", "admin")
OPEN = {"/health/live", "/health/ready"}
ANY_TOKEN = {"/metrics", "/about", "/sysinfo", "/spleenseg/inference/device"}
NEEDS = {  # besides `admin`, which may do everything
    ("POST", "/spleenseg/modelpth"): {"models"},
    ("GET", "/spleenseg/modelpth"): {"infer", "models"},
    ("GET", "/spleenseg/modelpth/{modelID}"): {"infer", "models"},
    ("DELETE", "/spleenseg/modelpth/{modelID}"): {"models"},
    ("POST", "/spleenseg/NIfTIinference"): {"infer"},
    ("PUT", "/spleenseg/inference/device/{device}"): set(),
}


@dataclass
class Guarded:
    """A server with tokens: one of each scope, and those that are not accepted."""

    server: Server
    file: Path
    good: dict[str, str]
    bad: dict[str, str]

    def calls(self) -> Iterator[tuple[str, str]]:
        """Method and path of every call in the OpenAPI document."""
        document = httpx.get(f"{self.server.url}/openapi.json").json()
        for path, methods in document["paths"].items():
            for method in methods:
                yield method.upper(), path

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Without a body; of jobs and models that do not exist."""
        return self.server.http.request(
            method, self.server.url + re.sub(r"{\w+}", "missing", path), **request
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "tokens.json"
    good = {scope: tokens.add(file, scope, scope) for scope in SCOPES}
    ended = tokens.add(file, "over", *SCOPES, until="2020-01-31")
    revoked = tokens.add(file, "revoked", *SCOPES)
    seed_model(folder / "workspace")
    server = start(folder / "workspace", tokens_file=file)
    assert server.http.get("/about", headers=bearer(revoked)).status_code == 200
    tokens.command(file, "revoke", "revoked")
    wrong = good["admin"][:-1] + ("a" if good["admin"][-1] != "a" else "b")
    yield Guarded(server, file, good, {"wrong": wrong, "ended": ended, "revoked": revoked})
    server.stop()


def is_challenge(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), answer.text
    challenges = answer.headers.get_list("www-authenticate")
    assert [each.split()[0] for each in challenges] == ["Bearer", "Basic"]


# --- every route -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["no", "wrong", "ended", "revoked"])
def test_without_a_token_that_counts_no_call_is_answered(guarded: Guarded, kind: str) -> None:
    headers = {} if kind == "no" else bearer(guarded.bad[kind])
    seen = set()
    for method, path in guarded.calls():
        for each in ("", "/"):
            answer = guarded.call(method, path + each, headers=headers)
            if path in OPEN:
                assert answer.status_code == 200
            else:
                is_challenge(answer)
                seen.add(path)

    assert len(seen) > 15


@pytest.mark.parametrize("scope", SCOPES)
def test_each_call_is_open_to_its_scopes_and_to_no_other(guarded: Guarded, scope: str) -> None:
    for method, path in guarded.calls():
        short = path.removeprefix("/api/v1")
        answer = guarded.call(method, path, headers=bearer(guarded.good[scope]))
        allowed = (
            path in OPEN
            or (method == "GET" and short in ANY_TOKEN)
            or scope in ({"admin"} | NEEDS.get((method, short), {"infer"}))
        )
        if allowed:
            assert answer.status_code not in (401, 403), (method, path, answer.text)
        else:
            refused = (answer.status_code, answer.json()["code"])
            assert refused == (403, "forbidden-scope"), (method, path, answer.text)
            assert answer.json()["detail"].endswith(f"the token has {scope}.")


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/docs/", "/docs/errors", "/docs/try", "/openapi.json", "/health/live"]
)
def test_page_documentation_and_health_need_no_token(guarded: Guarded, path: str) -> None:
    assert guarded.call("GET", path).status_code == 200


def test_the_manual_needs_no_token(guarded: Guarded) -> None:
    assert guarded.call("GET", "/manual").status_code == 307
    assert guarded.call("GET", "/manual/index.html").status_code in (200, 404)  # 404: not built


@pytest.mark.parametrize(
    "path",
    [
        *("/page", "/nothing", "/api/v1/nothing", "/healthy", "/docsx", "/openapi.json.bak"),
        *("/health/../api/v1/jobs", "/health/%2e%2e/api/v1/jobs", "//api/v1/jobs", "/API/v1/jobs"),
        *("/docs/..%2fapi/v1/jobs", "/api/v1/jobs/health", "/metricsx", "/manuals"),
        *("/page/x/../../api/v1/jobs", "/pagex"),
    ],
)
def test_no_other_path_says_without_a_token_even_what_is_there(guarded: Guarded, path: str) -> None:
    with Wire(guarded.server.url) as wire:
        wire.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer = wire.answer("GET")

    # A path below an open one is not a call of another: it does not exist.
    below_an_open_one = path == "/page" or path.startswith(("/health/", "/docs/", "/page/"))
    assert answer.status in ((404, 422) if below_an_open_one else (401,)), answer.body


@pytest.mark.parametrize(("setting", "status"), [("token", 401), ("open", 200), ("off", 401)])
def test_a_setting_says_whether_metrics_need_a_token(
    start_server: StartServer, tmp_path: Path, setting: str, status: int
) -> None:
    tokens.add(tmp_path / "tokens.json", "a")
    server = start_server(tokens_file=tmp_path / "tokens.json", metrics=setting)

    assert server.http.get(f"{server.url}/metrics").status_code == status
    assert server.http.get(f"{server.url}/metrics/x").status_code == (404 if status == 200 else 401)


# --- how a token is sent ---------------------------------------------------------------------


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.mark.parametrize("user", ["", "any", "a b", "ä"])
def test_the_token_may_be_the_password_of_any_user(guarded: Guarded, user: str) -> None:
    headers = {"Authorization": basic(user, guarded.good["infer"])}
    assert guarded.call("GET", "/api/v1/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("form_of_it", ["Bearer {}", "bearer {}", "BEARER   {}"])
def test_a_bearer_token_may_be_written_in_these_ways(guarded: Guarded, form_of_it: str) -> None:
    headers = {"Authorization": form_of_it.format(guarded.good["infer"])}
    assert guarded.call("GET", "/api/v1/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "lines",
    [
        ["{token}"],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["Token {token}"],
        ["Bearer {token} {token}"],
        ["Bearer {token},"],
        ["Bearer \xff"],
        ["Basic"],
        ["Basic {token}"],
        ["Basic ===="],
        ["Basic \xff"],
        [basic("any", "")],
        ["Basic " + base64.b64encode(b"any").decode()],
        ["Bearer {token}", "Bearer {token}"],
        ["Bearer " + "a" * 50_000],
    ],
)
def test_what_is_not_a_proper_header_is_refused(guarded: Guarded, lines: list[str]) -> None:
    sent = [f"Authorization: {line.format(token=guarded.good['infer'])}" for line in lines]
    with Wire(guarded.server.url) as wire:
        head = "\r\n".join(["GET /api/v1/jobs HTTP/1.1", "Host: localhost", *sent])
        wire.send(f"{head}\r\n\r\n".encode("latin-1"))
        answer = wire.answer("GET")

    assert (answer.status, answer.json()["code"]) == (401, "unauthorized")


def test_a_token_in_the_query_is_none(guarded: Guarded) -> None:
    params = {"access_token": guarded.good["admin"], "token": guarded.good["admin"]}
    is_challenge(guarded.call("GET", "/api/v1/jobs", params=params))


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("models", 403)])
def test_a_volume_is_refused_before_it_is_read(
    guarded: Guarded, token: str | None, status: int
) -> None:
    before = files_of(guarded.server)
    carried = f"Authorization: Bearer {guarded.good[token]}\r\n" if token else ""
    with Wire(guarded.server.url) as wire:
        head = "POST /api/v1/spleenseg/NIfTIinference?modelID=demo HTTP/1.1\r\nHost: localhost\r\n"
        wire.send(
            f"{head}{carried}Content-Type: {FORM}\r\nContent-Length: 1000000000\r\n\r\n".encode()
        )
        answer = wire.answer()  # though not one byte of the body has been sent

    assert answer.status == status
    assert files_of(guarded.server) == before


def test_a_page_of_another_origin_is_refused_even_with_a_token(guarded: Guarded) -> None:
    headers = {**bearer(guarded.good["admin"]), "Origin": "https://evil.example"}
    answer = guarded.call("PUT", "/api/v1/spleenseg/inference/device/cpu", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_the_document_says_how_to_send_a_token(guarded: Guarded, server: Server) -> None:
    document = httpx.get(f"{guarded.server.url}/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert {each["scheme"] for each in schemes.values()} == {"bearer", "basic"}
    for path, calls in document["paths"].items():
        for call in calls.values():
            assert ("security" in call) == (path not in OPEN), path
            if path not in OPEN:
                assert "`unauthorized`" in call["responses"]["401"]["description"]
            if path.startswith("/api/v1"):
                assert "`forbidden-scope`" in call["responses"]["403"]["description"]
    # Where nobody is asked, Swagger UI has no button for it.
    without = server.http.get(f"{server.url}/openapi.json").json()
    assert "securitySchemes" not in without["components"]


# --- while it runs ---------------------------------------------------------------------------


def test_a_job_belongs_to_its_token(guarded: Guarded) -> None:
    other = tokens.add(guarded.file, "other")
    volume = {"modelID": "demo"}, {"file": nifti_bytes()}
    made = guarded.call(
        "POST",
        "/api/v1/spleenseg/NIfTIinference",
        params=volume[0],
        files=volume[1],
        headers=bearer(guarded.good["infer"]),
    )
    assert made.status_code == 200, made.text
    job = f"/api/v1/jobs/{made.headers['x-pfms-job']}"

    seen = guarded.call("GET", job, headers=bearer(guarded.good["infer"])).json()
    assert seen["owner"] == "infer"
    assert guarded.call("GET", job, headers=bearer(other)).status_code == 404
    assert guarded.call("GET", job, headers=bearer(guarded.good["admin"])).status_code == 200


def test_a_file_that_breaks_while_it_runs_opens_nothing(
    start_server: StartServer, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    token = tokens.add(file, "a", "admin")
    server = start_server(tokens_file=file)
    good = file.read_bytes()
    for broken in (b"", b'{"tokens": {}', b"\x00" * 10_000):
        file.write_bytes(broken)
        for headers in ({}, bearer(token), bearer("wrong")):
            answer = server.http.get("/jobs", headers=headers)
            expected = (401, "unauthorized") if not headers else (503, "not-ready")
            assert (answer.status_code, answer.json()["code"]) == expected
            assert str(tmp_path) not in answer.text
    assert "operator" in answer.json()["remedy"]
    assert server.log.read_text().count("is not valid") == 3  # once for each change
    file.write_bytes(good)

    assert server.http.get("/jobs", headers=bearer(token)).status_code == 200
    added = tokens.add(file, "b")
    assert server.http.get("/jobs", headers=bearer(added)).status_code == 200


def test_a_token_is_found_nowhere(start_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = tokens.add(file, "a", "admin")
    server = start_server("tells_all.py", tokens_file=file)
    encoded = basic("any", token).split()[1]
    for header in (f"Bearer {token}", f"Basic {encoded}", f"Unknown {token}"):
        server.http.headers["Authorization"] = header
        server.infer()
        server.http.get("/nothing")
        server.http.post("/jobs/x/cancel")
    lines = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    server.stop()

    assert "holds 1 tokens" in server.log.read_text()
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "job.json" for path in found)
    for secret in (token.encode(), encoded.encode()):
        assert [path for path in found if secret in path.read_bytes()] == []
        assert secret.decode() not in "".join(lines)


# --- listening beyond loopback ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True)),
        *(("0.0.0.0", False), ("::", False), ("192.0.2.7", False), ("::ffff:192.0.2.7", False)),
        ("fe80::1%lo", False),
    ],
)
def test_only_loopback_needs_no_tokens(tmp_path: Path, address: str, local: bool) -> None:
    def settings(**given: object) -> Any:
        return load_settings(tmp_path / "none.env", **given)

    assert is_loopback(address) == local
    assert not check_exposure(settings(tokens_file=tmp_path / "tokens"), address)
    assert check_exposure(settings(insecure=True), address) != local
    if local:
        assert not check_exposure(settings(), address)
    else:
        with pytest.raises(StartError, match=re.escape(address)):
            check_exposure(settings(), address)


@pytest.mark.parametrize("more", [[], ["--reload"]])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_a_server_that_asks_nobody_does_not_open_itself_to_a_network(
    tmp_path: Path, host: str, more: list[str]
) -> None:
    line = ["serve", "--port", "0", "--workspace", str(tmp_path / "workspace"), *more]
    named = ["--host", host] if host else []
    plain = {"plugin_command": str(Path(__file__).parent / "plugins" / "ok.py"), "devices": "cpu"}
    other = {} if host else {"host": "0.0.0.0"}

    done = pfms(*line, *named, cwd=tmp_path, code=2, **plain, **other)

    assert "without tokens would open" in done.stderr
    assert "--insecure" in done.stderr
    assert "PFMS_TOKENS_FILE" in done.stderr
    assert not (tmp_path / "workspace" / "pfms.db").exists()


@pytest.mark.parametrize("how", ["option", "setting"])
def test_it_says_out_loud_that_everyone_may_call(tmp_path: Path, how: str) -> None:
    line = ["serve", "--host", "0.0.0.0", "--port", "0", "--workspace", str(tmp_path / "workspace")]
    line += ["--insecure"] if how == "option" else []
    given = {"plugin_command": str(Path(__file__).parent / "plugins" / "ok.py"), "devices": "cpu"}
    given |= {"insecure": "true"} if how == "setting" else {}
    with running(*line, cwd=tmp_path, executor="fresh", min_free_bytes="0", **given) as process:
        assert process.stdout
        said = process.stdout.readline()
        process.terminate()
        _, log = finish(process, 0)

    assert said.startswith("pfms listens on http://0.0.0.0:")
    assert "INSECURE" in said
    assert "INSECURE" in log


def test_with_tokens_it_may_listen_everywhere(start_server: StartServer, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = tokens.add(file, "a")
    server = start_server(host="0.0.0.0", tokens_file=file)
    url = server.url.replace("0.0.0.0", "127.0.0.1")

    assert httpx.get(f"{url}/api/v1/jobs").status_code == 401
    assert httpx.get(f"{url}/api/v1/jobs", headers=bearer(token)).status_code == 200
    assert "INSECURE" not in server.log.read_text()


def test_a_missing_tokens_file_stops_the_start(tmp_path: Path) -> None:
    done = pfms("serve", "--port", "0", cwd=tmp_path, code=2, tokens_file="missing.json")

    assert "missing.json" in done.stderr
    assert "pfms tokens add" in done.stderr
