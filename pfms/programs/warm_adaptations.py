"""The adaptations that the warm parent makes when it has imported the plugin.

Part of the program `warm_parent.py`: imports nothing of pfms. `docs/adaptations.md` has what each
brings.
"""

import contextlib
import functools
import gzip
import importlib
import inspect
import io
import sys
import types
import zlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:  # the tests and benches import it
    from pfms.programs import warm_volumes
else:
    import warm_volumes

_READ_BYTES = 1 << 17
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


def adapt(names: Collection[str]) -> list[str]:
    """Make the adaptations of these names; those that only set the environment have no function.

    Returns:
        For each that needs a library which the plugin's environment lacks: its name, and the error.
    """
    lacking = []
    for name in names:
        if name in ADAPTATIONS:
            try:
                ADAPTATIONS[name]()
            except ImportError as error:
                lacking.append(f"{name} ({error})")
    return lacking


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
    from isal import isal_zlib

    def compressobj(level: int = -1, *rest: Any) -> Any:
        return (isal_zlib if level == 1 else zlib).compressobj(level, *rest)

    own = {"decompressobj": isal_zlib.decompressobj, "crc32": isal_zlib.crc32}
    library: Any = gzip
    library.zlib = types.SimpleNamespace(**{**vars(zlib), **own, "compressobj": compressobj})
    # Python 3.11 reads 8 KiB at a time, which takes longer than unpacking it.
    library.io = types.SimpleNamespace(**{**vars(io), "DEFAULT_BUFFER_SIZE": _READ_BYTES})


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
    **warm_volumes.ADAPTATIONS,
}
