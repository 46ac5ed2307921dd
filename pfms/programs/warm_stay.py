"""A process that stays after a run: it puts back what the run has changed, and waits for another.

Part of the program `warm_parent.py`: imports nothing of pfms. The other side is `warm_kept.py`.

What cannot be put back stays: the state of modules, what libraries cache, native threads, memory
that was freed. docs/operating.md, "Runs that share a process", says what that means.
"""

import atexit
import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

_OF_SYS = ("stdin", "stdout", "stderr", "excepthook", "displayhook")

# Settings of torch: how to read and how to change them.
_OF_TORCH = (
    ("initial_seed", "manual_seed"),  # of the GPUs' generators too
    ("get_default_dtype", "set_default_dtype"),
    ("get_default_device", "set_default_device"),
    ("is_grad_enabled", "set_grad_enabled"),
    ("get_num_threads", "set_num_threads"),
    ("get_float32_matmul_precision", "set_float32_matmul_precision"),
    ("are_deterministic_algorithms_enabled", "use_deterministic_algorithms"),
)
_OF_CUDNN = ("enabled", "benchmark", "deterministic", "allow_tf32")


class Before:
    """The state of a process before its first run."""

    def __init__(self) -> None:
        self._at_exit = _at_exit()
        self._restore: list[Callable[[], object]] = []
        self._remember_process()
        self._remember_random()
        self._remember_libraries()

    def left_by_run(self, folder: str) -> str:
        """What the run has left that cannot be put back, so that this process has to end.

        Args:
            folder: The job's.
        """
        if threading.active_count() > 1:
            return "a thread"
        if _at_exit() != self._at_exit:
            return "something to be done at its exit"
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return "a process"
        folder, log = os.path.realpath(folder), _target_of("1")
        for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names alone
            target = _target_of(number)
            if target.startswith(f"{folder}/") or (target == log and number not in ("1", "2")):
                return "an open file"
        return ""

    def restore(self) -> None:
        """Put back what can be, and give freed memory back to the system and to the device."""
        for step in self._restore:
            step()
        gc.collect()
        torch: Any = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        with contextlib.suppress(AttributeError):  # another libc than glibc
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # a kernel without it: the peak is that of all runs
            Path("/proc/self/clear_refs").write_text("5")

    def _remember_process(self) -> None:
        restore = self._restore.append
        environment = dict(os.environ)
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        filters, path = warnings.filters[:], sys.path[:]
        of_sys = {name: getattr(sys, name) for name in _OF_SYS}
        os.umask(umask := os.umask(0))
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])

        def put_back() -> None:
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
            os.umask(umask)
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) != handler:
                    signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sys.path[:] = path
            for name, value in of_sys.items():
                setattr(sys, name, value)
            warnings.filters[:] = filters  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]  # a warning is shown again

        restore(put_back)

    def _remember_random(self) -> None:
        state = random.getstate()
        self._restore.append(lambda: random.setstate(state))
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None:
            of_numpy = numpy.random.get_state()
            self._restore.append(lambda: numpy.random.set_state(of_numpy))

    def _remember_libraries(self) -> None:
        torch: Any = sys.modules.get("torch")
        if torch is not None:
            for read, change in _OF_TORCH:
                self._remember(getattr(torch, read), getattr(torch, change))
            state = torch.get_rng_state()
            self._restore.append(lambda: torch.set_rng_state(state))
            cudnn = torch.backends.cudnn
            for name in _OF_CUDNN:
                self._remember(partial(getattr, cudnn, name), partial(setattr, cudnn, name))
        matplotlib: Any = sys.modules.get("matplotlib")
        if matplotlib is not None:
            parameters = dict(matplotlib.rcParams)
            # As `rc_context` does it: set one by one, the deprecated ones would give warnings.
            self._restore.append(lambda: dict.update(matplotlib.rcParams, parameters))
            self._restore.append(_close_figures)
        tqdm: Any = sys.modules.get("tqdm")
        if tqdm is not None:
            tqdm.tqdm.monitor_interval = 0  # otherwise its thread stays, which redraws slow bars

    def _remember(self, read: Callable[[], Any], change: Callable[[Any], object]) -> None:
        value = read()

        def put_back() -> None:
            if read() != value:
                change(value)

        self._restore.append(put_back)


def _at_exit() -> int:
    """How many functions are to be called when Python exits."""
    return atexit._ncallbacks()


def _target_of(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - a string is compared
    except FileNotFoundError:  # the one that lists the folder
        return ""


def _close_figures() -> None:
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
