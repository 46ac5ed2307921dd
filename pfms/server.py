"""`pfms serve`: one process, one port, and a stop that lets running jobs finish."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import ChangeReload

from pfms.access.exposure import check_exposure
from pfms.api.app import create_app
from pfms.api.door import Door, servable
from pfms.api.tls import Certificate
from pfms.api.wire import Connection
from pfms.errors import StartError
from pfms.logs import set_up_logging
from pfms.service import Service
from pfms.settings import Settings, load_settings

log = logging.getLogger(__name__)

# The group, such as a container's random UID, can link and clean up; nobody else may see a CT.
UMASK = 0o007

_THREADS = 32
_BACKLOG = 2048  # connections that wait to be accepted
_ACCEPTED_AT_ONCE = 32  # a refusal takes a few turns of the loop; meanwhile each has a descriptor
_GOODBYE_SECONDS = 5  # for downloads that are still going on when all else has ended
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # dead clients: a minute


class StopSignals:
    """Notes SIGTERM, SIGINT and SIGHUP from now until the process ends; the event loop acts.

    Before there is a loop, and after it has ended, there is nothing to drain: a note is enough.
    """

    def __init__(self) -> None:
        self.noted = False
        self._react: Callable[[], object] | None = None
        kinds = [signal.SIGTERM, signal.SIGINT]
        if (
            signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        ):  # a closed terminal, unless under nohup
            kinds.append(signal.SIGHUP)
        for kind in kinds:
            signal.signal(kind, self._note)

    def _note(self, kind: int, frame: FrameType | None) -> None:
        self.noted = True
        if self._react is not None:
            self._react()

    @contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """Call `action` on the running loop at each signal; at once, if one came before."""
        loop = asyncio.get_running_loop()
        self._react = partial(loop.call_soon_threadsafe, action)
        try:
            if self.noted:
                action()
            yield
        finally:
            self._react = None


class Server(uvicorn.Server):
    """uvicorn, except that a signal first drains the service while it still listens.

    uvicorn itself would close its listeners at once, and no client could learn of the drain.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        signals: StopSignals,
        on_listening: Callable[[], None],
    ):
        super().__init__(config)
        self._service = service
        self._signals = signals
        self._on_listening = on_listening
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(_BACKLOG)
        if self.started:
            self._on_listening()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """React to signals in our own way, not uvicorn's."""
        with self._signals.calling(self._asked_to_stop):
            yield

    def _asked_to_stop(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._service.drain())
            self._drain.add_done_callback(lambda _: setattr(self, "should_exit", True))
        else:
            self._service.drain_now()


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        StartError: The port is taken, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(
                f"Port {port} is taken.",
                "Use another (PFMS_PORT), or let pfms serve --port 0 pick a free one.",
            ) from None
        reason = (error.strerror or str(error)).partition(" (while attempting")[0]
        raise StartError(
            f"Cannot listen on {host} port {port}: {reason}.", "Set PFMS_HOST and PFMS_PORT."
        ) from None
    # Connections inherit this. Without it, head and body of a response (two writes) are sent 40 ms
    # apart; asyncio sets it only on sockets with an explicit protocol, which these are not.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A client whose machine or network is gone cannot say so: the kernel checks now and then.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """The base URL of the server on a socket."""
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal ends it; `say` is given the one line that names the URL.

    Raises:
        StartError: The service cannot start.
    """
    signals = StopSignals()
    os.umask(UMASK)
    set_up_logging(settings.log_format)
    app = create_app(settings)
    # What exists now stays: a scan of it by the collector would stall all responses for 80 ms.
    gc.collect()
    gc.freeze()
    with listen(settings.host, settings.port) as sock:
        asyncio.run(_serve(app, sock, signals, say))


async def _serve(
    app: FastAPI, sock: socket.socket, signals: StopSignals, say: Callable[[str], None]
) -> None:
    # The default pool is small on a small machine, and long work would keep short work waiting.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "pfms"))
    service: Service = app.state.service
    certificate = await asyncio.to_thread(Certificate.of, service.settings)
    config = uvicorn.Config(
        app,
        http=cast(
            "type[asyncio.Protocol]",
            partial(
                Connection,
                idle_seconds=service.settings.idle_seconds,
                door=Door(
                    servable(service.settings.max_connections),
                    service.settings.max_connections_per_address,
                    service.settings.trusted_proxies,
                ),
                root_path=service.settings.root_path,
                on_refusal=service.refused_on_the_wire,
            ),
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        # By its own default, uvicorn would believe every process of this machine.
        proxy_headers=bool(service.settings.trusted_proxies),
        forwarded_allow_ips=list(service.settings.trusted_proxies),
        ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
        backlog=_ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
    )
    exposed = check_exposure(service.settings, sock.getsockname()[0])
    await service.start()
    watch = asyncio.create_task(certificate.watch()) if certificate else None
    try:
        if signals.noted:
            return
        url = url_of(sock, "https" if certificate else "http")
        where = f"pfms listens on {url} (device {', '.join(service.devices)})"
        if exposed:
            where += ". INSECURE: everyone who reaches it may call, without any token"
        await Server(config, service, signals, lambda: say(where)).serve(sockets=[sock])
    finally:
        if watch is not None:
            watch.cancel()
        await service.stop()


def serve_reloading(settings: Settings, folders: list[str]) -> None:
    """Serve, and start again whenever a source file below `folders` changes: for debugging.

    Raises:
        StartError: It cannot listen on the address.
    """
    # Each start is a new process, which gets the settings through the environment.
    for name, value in settings.model_dump(mode="json").items():
        shown = ",".join(value) if isinstance(value, list) else str("" if value is None else value)
        os.environ[f"PFMS_{name.upper()}"] = shown
    set_up_logging(settings.log_format)
    config = uvicorn.Config(__name__, reload=True, reload_dirs=folders, log_config=None)
    with listen(settings.host, settings.port) as sock:
        check_exposure(settings, sock.getsockname()[0])
        ChangeReload(config, target=_serve_this_time, sockets=[sock]).run()


def _serve_this_time(sockets: list[socket.socket] | None) -> None:
    """Serve until the reloader sends a signal."""
    signals = StopSignals()
    os.umask(UMASK)
    try:
        # Running jobs go back into the queue at once, so that the change takes effect now.
        settings = load_settings(drain_seconds=0)
        set_up_logging(settings.log_format)
        app = create_app(settings)
        [sock] = sockets or []
        asyncio.run(_serve(app, sock, signals, log.info))
    except StartError as error:
        log.error(error.line)  # the reloader waits for a change that fixes it
