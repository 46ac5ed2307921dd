"""Who may call the server by which name, and the pages of which origins may change something."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfms.api.names import names_of
from pfms.errors import StartError
from pfms.hosts import host_of, normal_origin
from pfms.settings import load_settings
from tests.conftest import Server, StartServer, nifti_bytes, seed_model, start
from tests.wire import FORM, Wire, form, part

ABOUT = "/api/v1/about"
INFER = "/api/v1/spleenseg/NIfTIinference?modelID=demo"


def get(server: Server, *hosts: str, target: str = ABOUT, version: str = "1.1") -> tuple[int, str]:
    """Status and body of a GET with these Host headers."""
    with Wire(server.url) as wire:
        lines = [f"GET {target} HTTP/{version}", *(f"Host: {host}" for host in hosts)]
        wire.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        answer = wire.answer("GET")
        return answer.status, answer.body.decode()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    workspace = tmp_path_factory.mktemp("named") / "workspace"
    seed_model(workspace)
    names = "pfms.clinic.example, *.Imaging.Example., bücher.example"
    one = start(workspace, hostnames=names, cors_origins="HTTPS://Viewer.Test:443,http://[::1]:80")
    yield one
    one.stop()


# --- hosts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost.", "localhost:1", "viewer.localhost"),
        *("127.0.0.1", "127.9.9.9:2024", "[::1]", "[::1]:2024", "192.0.2.7", "[2001:DB8::7]:80"),
    ],
)
def test_a_server_on_loopback_answers_to_addresses_and_localhost(server: Server, host: str) -> None:
    assert get(server, host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:2024", "127.0.0.1.evil.example", "localhost.evil.example"),
        *("notlocalhost", "", "[", "[::1", "::1", "a b", "localhost,evil.example", "ä\xff\x80"),
        *("localhost/", "user@localhost", "localhost:port", "*", "*.localhost", "." * 300),
    ],
)
@pytest.mark.parametrize("path", [ABOUT, "/health/live", "/docs", "/openapi.json", "/nothing"])
def test_a_page_cannot_reach_it_by_a_name_of_its_own(server: Server, host: str, path: str) -> None:
    status, body = get(server, host, target=path)

    assert (status, '"wrong-host"' in body, "PFMS_HOSTNAMES" in body) == (421, True, True)
    if host == "evil.example":
        assert "'evil.example'" in body


def test_a_request_by_a_wrong_name_is_refused_before_its_body(server: Server) -> None:
    with Wire(server.url) as wire:
        head = f"POST {INFER} HTTP/1.1\r\nHost: evil.example\r\nContent-Type: {FORM}"
        wire.send(f"{head}\r\nContent-Length: 1000000\r\n\r\n".encode())
        answer = wire.answer()

    assert (answer.status, answer.json()["code"]) == (421, "wrong-host")


def test_one_wrong_name_is_enough(server: Server) -> None:
    assert get(server, "localhost", "evil.example")[0] == 421
    assert get(server, "evil.example", "localhost")[0] == 421


def test_a_client_that_sends_no_host_gets_a_response(server: Server) -> None:
    assert get(server, version="1.0")[0] == 200


def test_neither_a_whole_url_nor_what_a_proxy_adds_is_believed(server: Server) -> None:
    assert get(server, "localhost", target=f"http://evil.example{ABOUT}")[0] == 200
    assert get(server, "evil.example", target=f"http://localhost{ABOUT}")[0] == 421
    with Wire(server.url) as wire:
        more = "X-Forwarded-Host: localhost\r\nForwarded: host=localhost"
        wire.send(f"GET {ABOUT} HTTP/1.1\r\nHost: evil.example\r\n{more}\r\n\r\n".encode())
        assert wire.answer("GET").status == 421


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("pfms.clinic.example", 200),
        ("PFMS.Clinic.Example.:443", 200),
        ("ct.imaging.example", 200),
        ("a.b.imaging.example", 200),
        ("xn--bcher-kva.example", 200),
        ("localhost", 200),
        ("127.0.0.1", 200),
        ("imaging.example", 421),
        ("evilimaging.example", 421),
        ("clinic.example", 421),
        ("pfms.clinic.example.evil.example", 421),
    ],
)
def test_the_names_of_the_settings_pass_and_no_others(
    named: Server, host: str, status: int
) -> None:
    assert get(named, host)[0] == status


def test_a_star_lets_every_name_pass(start_server: StartServer) -> None:
    server = start_server(hostnames="*")

    assert get(server, "evil.example")[0] == 200
    assert get(server, "[")[0] == 200
    assert "WARNING" not in server.log.read_text()


def test_on_every_interface_any_name_passes_with_one_warning_until_names_are_set(
    start_server: StartServer,
) -> None:
    server = start_server(host="0.0.0.0", insecure=True)
    local = server.url.replace("0.0.0.0", "127.0.0.1")
    server.url = local
    assert get(server, "some.container")[0] == 200
    assert get(server, "[")[0] == 200
    warnings = [line for line in server.log.read_text().splitlines() if "WARNING" in line]
    assert [("PFMS_HOSTNAMES" in line, "INSECURE" in line) for line in warnings] == [
        (True, False),
        (False, True),
    ]
    server.stop()

    server = start_server(
        host="0.0.0.0", insecure=True, hostnames="pfms", workspace=server.workspace
    )
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    assert [get(server, host)[0] for host in ("pfms", "some.container")] == [200, 421]
    assert server.log.read_text().count("PFMS_HOSTNAMES") == 1


def test_on_one_address_the_names_of_the_machine_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Box")
    monkeypatch.setattr("socket.getfqdn", lambda: "box.clinic.example")

    names = {
        host: names_of(load_settings(host=host)) - {"localhost", "*.localhost"}
        for host in ("192.0.2.7", "Pfms.example", "::1", "127.0.0.2")
    }

    machine = {"box", "box.clinic.example"}
    assert names == {
        "192.0.2.7": machine,
        "Pfms.example": {"pfms.example", *machine},
        "::1": frozenset(),
        "127.0.0.2": frozenset(),
    }


# --- origins ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://viewer.test",
        "https://VIEWER.test",
        "HTTPS://viewer.test:443",
        "https://viewer.test.",
        "http://[::1]",
        "http://[0:0::1]:80",
    ],
)
def test_a_named_origin_is_let_in_however_it_is_spelt_and_named_as_it_was_sent(
    named: Server, origin: str
) -> None:
    headers = {"Origin": origin}
    assert named.infer(headers=headers).status_code == 200
    answer = named.http.get("/about", headers=headers)
    assert answer.headers["access-control-allow-origin"] == origin
    preflight = named.http.options(
        "/jobs/x", headers={**headers, "Access-Control-Request-Method": "DELETE"}
    )
    assert preflight.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "url",
    ["{url}", "HTTP://LOCALHOST:{port}", "http://localhost.:{port}", "https://localhost:{port}"],
)
def test_our_own_pages_are_let_in_however_their_origin_is_spelt(server: Server, url: str) -> None:
    port = server.url.rpartition(":")[2]
    origin = url.format(url=server.url, port=port)
    host = "localhost" if "local" in url.lower() else "127.0.0.1"

    assert post(server, f"Host: {host}:{port}", f"Origin: {origin}") == (200, None)


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost", "https://localhost", True),  # TLS ended at a proxy
        ("localhost", "http://localhost:80", True),
        ("localhost:80", "http://localhost", True),
        ("localhost:443", "https://localhost", True),
        ("localhost", "https://localhost:8443", False),
        ("[::1]:2024", "http://[0::1]:2024", True),
    ],
)
def test_a_default_port_may_be_written_or_left_out(
    server: Server, host: str, origin: str, allowed: bool
) -> None:
    answer = post(server, f"Host: {host}", f"Origin: {origin}")

    assert answer == ((200, None) if allowed else (403, "forbidden"))


@pytest.mark.parametrize(
    "origins",
    [
        *(
            ["http://["],
            ["null"],
            [""],
            ["https://evil.test"],
            ["localhost"],
            ["http://local host"],
        ),
        ["https://viewer.test/path"],
        ["https://viewer.test https://evil.test"],
        ["https://viewer.test", "https://evil.test"],
        ["https://evil.test", "https://viewer.test"],
        ["https://viewer.test:444"],
        ["http://viewer.test"],
        ["http://\xff\x80"],
        ["http://" + "a" * 5000],
        ["http://a:" + "9" * 5000],
    ],
)
def test_anything_else_is_forbidden_and_never_internal(named: Server, origins: list[str]) -> None:
    lines = [f"Origin: {origin}" for origin in origins]

    assert post(named, "Host: localhost", *lines) == (403, "forbidden")


def post(server: Server, *lines: str) -> tuple[int, str | None]:
    """Status and code of a volume that is sent with these headers."""
    body = form(part(nifti_bytes()))
    head = [f"POST {INFER} HTTP/1.1", *lines, f"Content-Type: {FORM}"]
    with Wire(server.url) as wire:
        wire.send(
            ("\r\n".join([*head, f"Content-Length: {len(body)}"]) + "\r\n\r\n").encode("latin-1")
            + body
        )
        answer = wire.answer()
    return answer.status, answer.json()["code"] if answer.status != 200 else None


# --- how they are written --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("A.Example.:80", "a.example"),
        ("[::0001]:1", "::1"),
        ("my_host", "my_host"),
        ("xn--bcher-kva.example:", "xn--bcher-kva.example"),
    ],
)
def test_a_host_has_one_normal_form(header: str, host: str) -> None:
    assert host_of(header) == host


def test_an_origin_has_one_normal_form() -> None:
    assert normal_origin("HTTP://Bücher.example:0080") == "http://xn--bcher-kva.example"
    assert normal_origin("https://[::1]:81") == "https://[::1]:81"
    assert normal_origin("tauri://localhost") == "tauri://localhost"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("cors_origins", "*"),
        ("cors_origins", "null"),
        ("cors_origins", "https://viewer.test/"),
        ("cors_origins", "https://viewer.test/path"),
        ("cors_origins", "viewer.test"),
        ("cors_origins", "https://a.test, http://["),
        ("hostnames", "https://pfms.test"),
        ("hostnames", "pfms.test:2024"),
        ("hostnames", "pfms.test/path"),
        ("hostnames", "*pfms.test"),
        ("hostnames", "pfms.*.test"),
        ("hostnames", "a b"),
        ("root_path", "/"),
        ("root_path", "pfms"),
        ("root_path", "/pfms/"),
        ("root_path", "/a/../b"),
        ("root_path", "/a//b"),
        ("root_path", "/a?b"),
        ("root_path", "/a#b"),
        ("root_path", "/ä"),
    ],
)
def test_what_is_not_an_origin_a_name_or_a_prefix_stops_the_start(setting: str, value: str) -> None:
    with pytest.raises(StartError) as refused:
        load_settings(Path("nothing.env"), **{setting: value})

    assert re.search(f"PFMS_{setting.upper()}='.+' is not valid", refused.value.line)
