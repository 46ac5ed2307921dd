"""Several calls at a time, which do not keep a program from ending."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(call: Callable[[T], R], items: Iterable[T], at_a_time: int) -> Iterator[R]:
    """The results of `call` for all items, in the order in which they end; raises what one raises.

    Whoever leaves early, as after Ctrl-C, need not wait for the rest: the threads end with the
    program. Those of `concurrent.futures` would be waited for, minutes if a server is away.
    """
    todo: SimpleQueue[T] = SimpleQueue()
    done: SimpleQueue[Future[R]] = SimpleQueue()
    for item in items:
        todo.put(item)
    count = todo.qsize()

    def work() -> None:
        with suppress(Empty):
            while True:
                item = todo.get_nowait()
                future: Future[R] = Future()
                try:
                    future.set_result(call(item))
                except Exception as error:
                    future.set_exception(error)
                done.put(future)

    for _ in range(min(at_a_time, count)):
        Thread(target=work, daemon=True).start()
    for _ in range(count):
        yield done.get().result()
