"""A real identity provider for the tests: a process on a port, which signs with its own key."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.conftest import eventually

USERS: dict[str, dict[str, object]] = {
    "ann": {"scope": "openid infer"},
    "bob": {"scope": ["infer"]},
    "mia": {"scope": "models"},
    "eve": {},
}
BACK = "http://localhost/back"


@dataclass
class Issuer:
    """An issuer that can be stopped, and started again with another key."""

    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, lasting: int = 3600) -> None:
        """Start it; its tokens last so many seconds."""
        users = [json.dumps({"sub": sub, **claims}) for sub, claims in USERS.items()]
        line = [sys.executable, "-m", "oidc_provider_mock", "--port", str(self.port)]
        line += ["--token-max-age", str(lasting)]
        line += [word for user in users for word in ("--user-claims", user)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log)
        eventually(self.answers)

    def answers(self) -> bool:
        try:
            return httpx.get(self.url, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def token(self, sub: str, audience: str = "pfms") -> str:
        """A token for a user, got as a program gets one."""
        with httpx.Client(base_url=self.url, trust_env=False) as http:
            asked = {"client_id": audience, "redirect_uri": BACK, "response_type": "code"}
            asked["scope"] = "openid"
            moved = http.post("/oauth2/authorize", params=asked, data={"sub": sub})
            assert moved.is_redirect, moved.text
            [code] = parse_qs(urlsplit(moved.headers["Location"]).query)["code"]
            form = {"grant_type": "authorization_code", "code": code, "redirect_uri": BACK}
            form |= {"client_id": audience, "client_secret": "any"}
            told = http.post("/oauth2/token", data=form)
            assert told.is_success, told.text
            token: str = told.json()["id_token"]
            return token

    def fetches(self) -> int:
        """How often its keys were asked for."""
        return self.log.read_text().count("/jwks")
