"""Ways to wait that asyncio does not offer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def in_own_thread(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> Awaitable[T]:
    """Run it in a new thread: in the loop's own few threads, slow calls would block other work."""
    thread = ThreadPoolExecutor(1, "pfms-own")
    future = asyncio.get_running_loop().run_in_executor(thread, lambda: function(*args, **named))
    thread.shutdown(wait=False)
    return future


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` to its end even if this task is cancelled; the cancellation is raised then."""
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
        log.error("an operation was cancelled and then failed", exc_info=failure)
    raise cancelled


async def in_thread(function: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Run a blocking call to its end: a cancelled task must not leave a thread running."""
    return await to_the_end(asyncio.to_thread(function, *args, **named))


async def first_of(*works: Awaitable[object], seconds: float) -> None:
    """Wait until one of them is done, for at most `seconds`; then cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
