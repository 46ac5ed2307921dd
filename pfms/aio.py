"""Ways to wait that asyncio lacks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def in_own_thread(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> Awaitable[T]:
    """Run it in a new thread: in the loop's few, slow calls would keep out all other work."""
    thread = ThreadPoolExecutor(1, "pfms-own")
    future = asyncio.get_running_loop().run_in_executor(thread, lambda: function(*args, **named))
    thread.shutdown(wait=False)
    return future


async def to_the_end(work: Awaitable[T]) -> T:
    """Await it to its end even if the waiting task is cancelled; the cancel is raised after it."""
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    if not future.cancelled() and (failure := future.exception()) is not None:
        log.error("it was cancelled, and failed at its end", exc_info=failure)
    raise cancelled


async def in_thread(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Call what blocks, to its end: a cancelled task must not leave a thread that goes on."""
    return await to_the_end(asyncio.to_thread(function, *args, **named))
