"""The plugin inside the warm parent: what is imported and patched before forking; how it is called.

Part of the program `warm_parent.py`: imports nothing of pfms.
"""

import ast
import contextlib
import functools
import gzip
import importlib
import inspect
import runpy
import signal
import site
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]

_IMPORTED_BY_A_RUN = (
    "torch._dynamo",  # by the first optimizer: two seconds
    "torch.utils.serialization.config",
    "torch.profiler._cupti_monitor",
    "matplotlib.backends.backend_agg",
    "multiprocessing.dummy",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "pyfiglet.fonts",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
)


def load(order: Message) -> Callable[[], object]:
    """Import the plugin and what its runs will import; returns the function that a run calls."""
    call = entry_point(order["entry_point"]) if order["entry_point"] else script(order["script"])
    for name in order["adaptations"]:
        if name in ADAPTATIONS:  # the others only set the environment
            ADAPTATIONS[name]()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("importing the plugin starts CUDA: only PFMS_EXECUTOR=fresh can run it")
    return call


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


def preload() -> None:
    """Import what a run of the plugin would import later."""
    for name in _IMPORTED_BY_A_RUN:
        if name.partition(".")[0] in sys.modules:
            with contextlib.suppress(ImportError):  # another version may not have it
                importlib.import_module(name)
    if "monai" in sys.modules:
        # The plugin prints the versions of what it finds, which is slow in a full installation.
        importlib.import_module("monai.config.deviceconfig").get_optional_config_values()


def no_workers() -> None:
    """Make DataLoaders load in their own process: the one image is already in memory."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    loader: Any = torch.utils.data.DataLoader
    initialise = loader.__init__
    signature = inspect.signature(initialise)

    @functools.wraps(initialise)
    def without_workers(*args: Any, **named: Any) -> None:
        bound = signature.bind(*args, **named)
        bound.arguments["num_workers"] = 0
        initialise(*bound.args, **bound.kwargs)

    loader.__init__ = without_workers


def igzip() -> None:
    """Make gzip use ISA-L to unpack, and to pack at the level that nibabel asks for."""
    try:
        from isal import isal_zlib
    except ImportError:
        return

    def compressobj(level: int = -1, *rest: Any) -> Any:
        return (isal_zlib if level == 1 else zlib).compressobj(level, *rest)

    own = {"decompressobj": isal_zlib.decompressobj, "crc32": isal_zlib.crc32}
    library: Any = gzip
    library.zlib = types.SimpleNamespace(**{**vars(zlib), **own, "compressobj": compressobj})


def argmax_layout() -> None:
    """Give torch.argmax its tensor with the reduced dimension innermost in memory.

    Otherwise, for a volume's two classes, it goes voxel by voxel: 3 seconds of a run for 26 million
    voxels. They are on the CPU, whatever the device.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    library: Any = torch
    own = torch.argmax

    @functools.wraps(own)
    def argmax(input: Any, dim: int | None = None, *rest: Any, **named: Any) -> Any:
        if dim is not None and input.ndim > 1 and input.device.type == "cpu":
            input = input.movedim(dim, -1).contiguous().movedim(-1, dim)
        return own(input, dim, *rest, **named)

    library.argmax = argmax


ADAPTATIONS: dict[str, Callable[[], None]] = {
    "preload": preload,
    "no-workers": no_workers,
    "igzip": igzip,
    "argmax-layout": argmax_layout,
}


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
