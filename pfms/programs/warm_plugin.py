"""The plugin inside the warm parent: imported, adapted before forking, and called.

Part of the program `warm_parent.py`: imports nothing of pfms.
"""

import ast
import contextlib
import importlib
import runpy
import signal
import site
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:  # the tests and benches import it
    from pfms.programs import warm_adaptations, warm_progress
else:
    import warm_adaptations
    import warm_progress

Message = dict[str, Any]


def load(order: Message) -> tuple[Callable[[], object], list[str]]:
    """Import the plugin and what its runs will import, and adapt it.

    Returns:
        The function that a run calls, and what `warm_adaptations.adapt` lacks.
    """
    call = entry_point(order["entry_point"]) if order["entry_point"] else script(order["script"])
    warm_progress.watch()  # before a step is put into a thread of its own
    lacking = warm_adaptations.adapt(order["adaptations"])
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("importing the plugin starts CUDA: only PFMS_EXECUTOR=fresh can run it")
    return call, lacking


def entry_point(name: str) -> Callable[[], object]:
    """Import the function that a console script calls: `module:function`."""
    module, _, path = name.partition(":")
    function: Callable[[], object] = importlib.import_module(module)  # type: ignore[assignment]
    for attribute in path.split("."):
        function = getattr(function, attribute)
    return function


def script(path: str) -> Callable[[], object]:
    """Import what a script will import. The script itself is read again for each run."""

    def run() -> None:
        runpy.run_path(path, run_name="__main__")

    for name in imports_of(Path(path)):
        with contextlib.suppress(Exception, SystemExit):  # the run itself will report it
            importlib.import_module(name)
    return run


def imports_of(script: Path) -> list[str]:
    """The modules that a script imports at its top level, except those beside it."""
    try:
        body = ast.parse(script.read_bytes()).body
    except (OSError, SyntaxError):  # the run itself will report it
        return []
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    beside = {path.stem for path in script.parent.iterdir()}
    return [name for name in names if name.partition(".")[0] not in beside]


def watched(package: str) -> list[str]:
    """The paths that change when the plugin, or a package beside it, is reinstalled or edited."""
    files = [
        module.__file__
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package and getattr(module, "__file__", None)
    ]
    return [*site.getsitepackages(), *(file for file in files if file)]


def exit_code_of(call: Callable[[], object]) -> int:
    """Call it as a console script does, and print what Python would print at its end.

    Returns:
        The exit code; negative for the signal with which Python would end itself.
    """
    try:
        sys.exit(call())  # type: ignore[arg-type]  # anything but a number is a message
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)  # noqa: T201
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
