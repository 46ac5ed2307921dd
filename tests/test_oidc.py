"""Tokens of an identity provider: a real one signs them, a real server checks them."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pfms.access.oidc import Issuer as Accepted
from pfms.errors import StartError
from tests import tokens
from tests.conftest import Server, StartServer, eventually, nifti_bytes, seed_model, start
from tests.issuer import Issuer
from tests.test_proxy import free_port
from tests.tokens import bearer

LIST = "/jobs"


@dataclass
class House:
    """A server, the issuer that it believes and another one."""

    server: Server
    issuer: Issuer
    other: Issuer

    def status(self, token: str, path: str = LIST) -> int:
        return self.answer(token, path).status_code

    def answer(self, token: str, path: str = LIST) -> httpx.Response:
        return self.server.http.get(path, headers=bearer(token))


def settings_for(issuer: Issuer) -> dict[str, str]:
    return {"oidc_issuer": issuer.url, "oidc_audience": "pfms"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("oidc")
    issuers = [Issuer(free_port(), folder / f"issuer-{n}.log") for n in range(2)]
    seed_model(folder / "workspace")
    server = None
    try:
        for issuer in issuers:
            issuer.start()
        server = start(folder / "workspace", **settings_for(issuers[0]))
        yield House(server, *issuers)
    finally:
        for issuer in issuers:
            issuer.stop()
        if server is not None:
            server.stop()


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def made(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None = None) -> str:
    """A token that no library would make."""
    signed = ".".join(encoded(json.dumps(each).encode()) for each in (header, claims))
    signature = hmac.digest(secret, signed.encode(), hashlib.sha256) if secret else b""
    return f"{signed}.{encoded(signature)}"


# --- accepted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sub", ["ann", "bob"], ids=["words", "list"])
def test_a_caller_of_the_issuer_may_do_what_its_scopes_say(house: House, sub: str) -> None:
    token = house.issuer.token(sub)
    answer = house.server.infer(headers=bearer(token))
    assert answer.status_code == 200, answer.text
    job_id = answer.headers["X-Pfms-Job"]
    folder = house.server.workspace / "jobs" / job_id
    assert json.loads((folder / "job.json").read_bytes())["owner"] == f"oidc:{sub}"
    assert house.status(token, f"/jobs/{job_id}") == 200
    stranger = house.issuer.token("bob" if sub == "ann" else "ann")
    assert house.status(stranger, f"/jobs/{job_id}") == 404


def test_it_may_be_the_password_of_http_basic(house: House) -> None:
    token = house.issuer.token("ann")
    assert house.server.http.get(LIST, auth=("any", token)).status_code == 200


@pytest.mark.parametrize("sub", ["mia", "eve", "a stranger"])
def test_a_scope_that_is_not_in_the_token_is_403(house: House, sub: str) -> None:
    answer = house.server.infer(headers=bearer(house.issuer.token(sub)))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden-scope")


# --- refused -----------------------------------------------------------------------------------


def test_another_issuers_token_is_401(house: House) -> None:
    token = house.other.token("ann")
    assert house.status(token) == 401
    claims = claims_of(token) | {"iss": house.issuer.url}  # as if it were the other's
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert house.status(jwt.encode(claims, key, algorithm="RS256")) == 401


def test_another_audience_is_401(house: House) -> None:
    answer = house.answer(house.issuer.token("ann", audience="another-service"))
    assert answer.status_code == 401
    assert "another service" in answer.json()["detail"]


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, [], 5])
def test_an_unsigned_token_is_401(house: House, algorithm: object) -> None:
    token = house.issuer.token("ann")
    header = {"typ": "JWT", "alg": algorithm}
    assert house.status(made(header, claims_of(token))) == 401
    signature = token.rpartition(".")[2]
    assert house.status(made(header, claims_of(token)) + signature) == 401


def test_a_token_signed_with_the_public_key_as_a_secret_is_401(house: House) -> None:
    """The classic confusion of HS256 with RS256."""
    token = house.issuer.token("ann")
    [published] = httpx.get(f"{house.issuer.url}/jwks", trust_env=False).json()["keys"]
    public = jwt.PyJWK(published).key
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), json.dumps(published).encode()):
        header = {"typ": "JWT", "alg": "HS256"}
        assert house.status(made(header, claims_of(token), secret)) == 401


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_changed_token_is_401(house: House, part: int) -> None:
    pieces = house.issuer.token("ann").split(".")
    middle = len(pieces[part]) // 2
    other = "A" if pieces[part][middle] != "A" else "B"
    pieces[part] = pieces[part][:middle] + other + pieces[part][middle + 1 :]
    assert house.status(".".join(pieces)) == 401


@pytest.mark.parametrize("token", ["a.b.c", "....", "eyJ.eyJ.x", "e30.e30.e30", "x" * 5000])
def test_what_is_no_jwt_is_401(house: House, token: str) -> None:
    assert house.status(token) == 401


def test_unknown_keys_do_not_make_the_server_ask_the_issuer_each_time(house: House) -> None:
    claims = claims_of(house.issuer.token("ann"))
    before, began = house.issuer.fetches(), time.monotonic()
    for n in range(100):
        header = {"typ": "JWT", "alg": "RS256", "kid": f"unknown-{n}"}
        assert house.status(made(header, claims, b"secret")) == 401
    seconds = time.monotonic() - began
    assert house.issuer.fetches() - before <= 1 + seconds / 10
    assert house.status(house.issuer.token("ann")) == 200


# --- the issuer --------------------------------------------------------------------------------


def test_new_keys_are_fetched_and_ended_tokens_and_old_keys_refused(house: House) -> None:
    old = house.issuer.token("ann")
    assert house.status(old) == 200
    house.issuer.stop()
    assert house.status(old) == 200, "known keys are used while the issuer is away"
    house.issuer.start(lasting=-3600)
    ended = house.issuer.token("ann")
    eventually(lambda: "has ended" in house.answer(ended).json()["detail"])
    assert house.status(ended) == 401
    assert house.status(old) == 401
    house.issuer.stop()
    house.issuer.start()
    new = house.issuer.token("ann")
    eventually(lambda: house.status(new) == 200)


def test_without_the_issuer_its_callers_wait_and_others_do_not(
    start_server: StartServer, tmp_path: Path
) -> None:
    issuer = Issuer(free_port(), tmp_path / "issuer.log")
    issuer.start()
    token = issuer.token("ann")
    issuer.stop()
    file = tmp_path / "tokens.json"
    own = tokens.add(file, "own")
    server = start_server(tokens_file=file, **settings_for(issuer))

    answer = server.http.get(LIST, headers=bearer(token))
    assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
    assert int(answer.headers["Retry-After"]) >= 1
    assert server.http.get(LIST, headers=bearer(own)).status_code == 200
    assert token not in server.log.read_text()
    issuer.start()
    try:
        token = issuer.token("ann")
        eventually(
            lambda: server.http.get(LIST, headers=bearer(token)).status_code == 200, seconds=60
        )
    finally:
        issuer.stop()


def test_with_an_issuer_a_network_may_be_served(start_server: StartServer, house: House) -> None:
    server = start_server(host="0.0.0.0", **settings_for(house.issuer))
    assert httpx.get(f"{server.url}/api/v1/jobs").status_code == 401
    assert "INSECURE" not in server.log.read_text()


@pytest.mark.parametrize(
    ("url", "audience", "words"),
    [
        ("http://login.example", "pfms", "not an https URL"),
        ("ftp://login.example", "pfms", "not an https URL"),
        ("login.example", "pfms", "not an https URL"),
        ("https://", "pfms", "not an https URL"),
        ("https://login.example", "", "PFMS_OIDC_AUDIENCE is not set"),
        ("", "pfms", "PFMS_OIDC_ISSUER is not set"),
    ],
)
def test_an_issuer_that_cannot_be_believed_prevents_the_start(
    url: str, audience: str, words: str
) -> None:
    with pytest.raises(StartError) as told:
        Accepted(url, audience, "scope")
    assert words in told.value.line


def test_a_volume_is_not_read_before_the_token_is_checked(house: House) -> None:
    answer = house.server.infer(nifti_bytes(), headers=bearer(house.other.token("ann")))
    assert answer.status_code == 401
    assert house.server.uploads() == []
