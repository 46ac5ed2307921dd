"""Runs `pfms` and takes each request's caller from a header; for tests of what callers may see.

`Test-Caller: alice infer jobs=2` is a caller with this name, scope and limit. Without it, it is
ANYONE.
"""

from typing import Any, cast

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from pfms import server
from pfms.access.caller import Caller
from pfms.access.limits import Limits
from pfms.api.app import create_app
from pfms.cli import main
from pfms.executors.base import Executor
from pfms.settings import Settings


class NamedCallers:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = dict(scope.get("headers", ())).get(b"test-caller")
        if named:
            name, *words = named.decode().split()
            limits = Limits.model_validate(dict(word.split("=") for word in words if "=" in word))
            scopes = frozenset(cast(Any, word) for word in words if "=" not in word)
            scope.setdefault("state", {})["caller"] = Caller(name, scopes, limits)
        await self.app(scope, receive, send)


def create_named(settings: Settings, executor: Executor | None = None) -> FastAPI:
    app = create_app(settings, executor)
    app.add_middleware(NamedCallers)
    return app


if __name__ == "__main__":
    server.create_app = create_named  # type: ignore[attr-defined]
    main()
