"""A separate program that opens an upload, compares it with the plugin's network and stores it.

It is started by its path with the interpreter that has the plugin, so it imports nothing of pfms::

    PYTHON weights_child.py UPLOAD TARGET NETWORK

UPLOAD comes from a stranger. It is opened once, by `torch.load(weights_only=True)`, under limits
on memory and time, without network, other programs and other files where the kernel can take those
away; nothing in it is executed. TARGET gets the weights as a plain state dict of
contiguous float32 tensors on the CPU, in the order of the plugin's network: the same numbers give
the same bytes. stdout gets one line of JSON, and nothing else::

    {"ok": true, "sha256": "…", "size": 19285000, "warnings": ["…"], "open": []}
    {"ok": false, "code": "not-a-model", "detail": "…", "open": []}

`code` is `not-a-model`; `disk-full` or `cannot-write` (about TARGET); or `no-plugin` (torch or the
plugin cannot be imported). `detail` is one sentence without any path. `open` names what could not
be taken away.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import io
import json
import operator
import os
import re
import resource
import sys
import sysconfig
import traceback
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pfms.programs import sandbox
    from pfms.programs.weights_bytes import ADVICE, CUT_OFF, problem_with
    from pfms.programs.weights_extras import stand_ins
    from pfms.programs.weights_search import (
        SearchResult,
        extra_layers,
        find_weights,
        left_out,
        listed,
        quoted,
    )
else:  # they are beside this file, where Python may have been told not to look
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    import sandbox
    from weights_bytes import ADVICE, CUT_OFF, problem_with
    from weights_extras import stand_ins
    from weights_search import SearchResult, extra_layers, find_weights, left_out, listed, quoted

MEMORY_BYTES = 8 << 30
CPU_SECONDS = 100


class Refused(Exception):
    """The upload cannot be stored: because of its content, or because of this machine."""

    def __init__(self, detail: str, code: str = "not-a-model") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code


def main(upload: str, target: str, network: str) -> None:
    """Check and store the upload, and print the verdict."""
    # Libraries may print things when they are imported: those go to stderr.
    answer = os.dup(1)
    os.dup2(2, 1)
    limit()
    still_open: list[str] = []
    try:
        verdict = {"ok": True, **convert(Path(upload), Path(target), network, still_open)}
    except Refused as refused:
        verdict = {"ok": False, "code": refused.code, "detail": refused.detail}
    except MemoryError:
        detail = "Opening the file takes far more memory than weights of this network ever do."
        verdict = {"ok": False, "code": "not-a-model", "detail": detail}
    except Exception as error:  # a crafted file may cause an error that nobody foresaw
        traceback.print_exc()
        detail = f"The file cannot be read as weights ({type(error).__name__})."
        verdict = {"ok": False, "code": "not-a-model", "detail": detail}
    os.write(answer, json.dumps({**verdict, "open": still_open}).encode() + b"\n")


def limit() -> None:
    """Limit the memory and the time that a hostile file could make this process take."""
    # A script's folder is first on the path, but the plugin must not find pfms's own files.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    warnings.simplefilter("ignore")
    os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        # Not RLIMIT_AS: torch maps far more than it ever uses.
        (resource.RLIMIT_DATA, MEMORY_BYTES),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))
    with contextlib.suppress(OSError):  # if memory does run out, this process is killed first
        Path("/proc/self/oom_score_adj").write_text("1000")


def convert(upload: Path, target: Path, where: str, still_open: list[str]) -> dict[str, Any]:
    """Check `upload` and write `target`; returns the fields of the verdict.

    What could not be taken away before torch opens the file is added to `still_open`.
    """
    with upload.open("rb") as file:
        if problem := problem_with(file):
            raise Refused(problem)
        network = plugin_network(where)
        into = open_to_write(target)
        still_open += sandbox.enter(readable())
        content, locations = load(file)
    state, notes = extract_weights(content, network)
    weights = {key: as_stored(key, state[key], like) for key, like in network.items()}
    others = {str(state[key].dtype) for key, like in network.items() if like.is_floating_point()}
    for dtype in sorted(others - {"torch.float32"}):
        notes.append(f"The weights were {dtype.removeprefix('torch.')}, and are stored as float32.")
    devices = sorted(name for name in locations if re.fullmatch(r"[a-z]{1,16}:\d{1,3}", name))
    if devices:
        notes.append(f"The weights were saved on {devices[0]}, and are stored for every device.")
    return {**store(weights, into), "warnings": notes}


def readable() -> list[str]:
    """What torch may still want to import: the folders of packages, never one with volumes."""
    import torch

    packages = str(Path(torch.__file__).parent.parent)
    ours = sysconfig.get_paths()
    return [ours["stdlib"], ours["platstdlib"], packages, "/usr/lib", "/lib64", "/dev/null"]


def load(file: IO[bytes]) -> tuple[Any, set[str]]:
    """The file's content, on the CPU, and the devices on which it was saved."""
    import torch

    locations: set[str] = set()

    def on_cpu(storage: Any, location: Any) -> Any:
        locations.add(str(location))
        return storage

    file.seek(0)
    try:
        with torch.serialization.safe_globals(stand_ins()):
            return torch.load(file, map_location=on_cpu, weights_only=True), locations
    except MemoryError:
        raise
    except Exception as error:
        if "allocate memory" in str(error) or "not enough memory" in str(error):
            raise MemoryError from None
        raise Refused(explain_load_error(error)) from None


def explain_load_error(error: Exception) -> str:
    """What torch's error means for the person who sent the file."""
    # "… Unsupported global: GLOBAL posix.system was not an allowed global by default …"
    found = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
    name = found[1] if found else ""
    if name.startswith(("torch.nn.", "monai.networks.", "spleenseg.")):
        return f"The file holds a whole pickled network ({name}), not only weights: {ADVICE}."
    if name:
        return f"The file holds more than weights ({name}; none of it was run): {ADVICE}."
    if type(error).__name__ == "UnpicklingError":
        return f"The file is not a plain state dict, or is damaged: {ADVICE}."
    return CUT_OFF


def plugin_network(where: str) -> dict[str, Any]:
    """The keys and tensors of the installed plugin's network, which is at `module:attribute`."""
    try:
        import torch  # noqa: F401
    except Exception as error:
        raise Refused(f"torch cannot be imported ({type(error).__name__}).", "no-plugin") from error
    try:
        module, _, path = where.partition(":")
        network = operator.attrgetter(path)(importlib.import_module(module))
        return dict(network.state_dict())
    except MemoryError:
        raise
    except Exception as error:
        words = f"The plugin cannot be imported ({type(error).__name__})."
        raise Refused(words, "no-plugin") from error


def extract_weights(content: Any, network: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Find the network's weights in the file's content; also returns notes about the rest."""
    if not isinstance(content, dict | list | tuple):
        raise Refused(f"The file holds a {type(content).__name__}, not a state dict: {ADVICE}.")
    found = find_weights(content, network)
    candidate = found.candidate
    if candidate is None or 2 * len(candidate.state) < len(network):
        raise Refused(describe_mismatch(found, content, network))
    state = dict(candidate.state)
    compare(state, network)
    if more := extra_layers(candidate):
        raise Refused(f"The plugin's network has no key {quoted(more[0])}.")
    notes = []
    if candidate.path:
        where = " > ".join(quoted(name, 40) for name in candidate.path)
        notes.append(f"The state dict was wrapped in {where}; only it is stored.")
    if candidate.prefix:
        notes.append(f"The keys began with {quoted(candidate.prefix)}, which was removed.")
    if found.others:
        others = ", ".join(other.name for other in found.others[:3])
        notes.append(f"It was taken from {candidate.name}; weights that fit were also in {others}.")
    if beside := left_out(content, candidate):
        notes.append(f"Left out, since the network has no use for it: {listed(beside)}.")
    return state, notes


def describe_mismatch(found: SearchResult, content: Any, network: dict[str, Any]) -> str:
    """Why the content is not the plugin's network, with the keys that were found."""
    if not found.keys:
        keys = f" (its keys are {listed(content)})" if isinstance(content, dict) and content else ""
        return f"The file holds a {type(content).__name__} without weights{keys}: {ADVICE}."
    ours = quoted(next(iter(network)))
    return (
        f"It is another network: its keys are {listed(found.keys)}; the plugin's begin with {ours}."
    )


def compare(state: dict[str, Any], network: dict[str, Any]) -> None:
    """Refuse weights that differ; names the first difference, in the network's order."""
    import torch

    for key, like in network.items():
        if key not in state:
            raise Refused(f"The key {quoted(key)} of the plugin's network is missing.")
        value = state[key]
        if not isinstance(value, torch.Tensor):
            raise Refused(f"{quoted(key)} is a {type(value).__name__}, not a tensor.")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise Refused(f"{quoted(key)} is not a plain tensor: it is sparse, quantised or empty.")
        if value.shape != like.shape:
            has, wants = size_of(value), size_of(like)
            raise Refused(f"{quoted(key)} has the shape {has} instead of {wants}.")
        if value.is_complex() or (like.is_floating_point() and not value.is_floating_point()):
            kind = str(value.dtype).removeprefix("torch.")
            raise Refused(f"{quoted(key)} holds {kind} numbers, not floating-point ones.")


def as_stored(key: str, value: Any, like: Any) -> Any:
    """A contiguous copy, as float32 (counters: int64)."""
    import torch

    if like.is_floating_point():
        stored = torch.empty(like.shape, dtype=torch.float32).copy_(value.detach())
        if not torch.isfinite(stored).all():
            raise Refused(f"{quoted(key)} holds numbers that are not finite (NaN or infinite).")
        return stored
    # A counter of training batches: inference does not use it, and in half precision it overflows.
    if value.is_floating_point() and not torch.isfinite(value).all():
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.empty(like.shape, dtype=like.dtype).copy_(value)


def open_to_write(target: Path) -> BinaryIO:
    """TARGET, opened."""
    try:
        return target.open("wb")
    except OSError as error:
        raise cannot_write(error) from error


def cannot_write(error: OSError) -> Refused:
    """Why TARGET could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    words = "The disk is full." if full else "The weights could not be written."
    return Refused(words, "disk-full" if full else "cannot-write")


def store(weights: dict[str, Any], target: BinaryIO) -> dict[str, Any]:
    """Write TARGET; returns its checksum and its size in bytes. The store makes it durable."""
    import torch

    memory = io.BytesIO()
    torch.save(weights, memory)
    content = memory.getbuffer()
    try:
        with target:
            target.write(content)
    except OSError as error:
        raise cannot_write(error) from error
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def size_of(tensor: Any) -> str:
    """`16×1×3×3×3`."""
    return "×".join(map(str, tensor.shape)) or "of a single number"


if __name__ == "__main__":
    main(*sys.argv[1:])
