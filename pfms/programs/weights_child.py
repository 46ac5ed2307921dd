"""A program of its own: opens an upload, compares it with the plugin's network, stores it.

It is started by its path with the interpreter that has the plugin, so it imports nothing of pfms::

    PYTHON weights_child.py UPLOAD TARGET

UPLOAD comes from a stranger. It is opened once, by `torch.load(weights_only=True)`, under limits
on memory and time; nothing in it is executed. TARGET gets the weights as a plain state dict of
contiguous float32 tensors on the CPU, in the order of the plugin's network: the same numbers give
the same bytes. One line of JSON goes to stdout, and nothing else::

    {"ok": true, "sha256": "…", "size": 19285000, "warnings": ["…"]}
    {"ok": false, "code": "not-a-model", "detail": "…"}

`code` is `not-a-model`; `disk-full` or `cannot-write` (TARGET); `no-plugin` (torch or the plugin
cannot be imported). `detail` is one sentence, and carries no path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import resource
import sys
import traceback
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

MEMORY_BYTES = 8 << 30
CPU_SECONDS = 100
UNPACKED_BYTES = 1 << 30
HEAD_BYTES = 512

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")

ADVICE = "save the network's state_dict() with torch.save, and upload that"
CUT_OFF = "The file is cut off or damaged: send it again."
# What torch.save pickled first before it wrote zip archives, and still does when told to.
LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
FOREIGN = (
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file itself: `git lfs pull`"),
    (rb"\x1f\x8b", "is gzipped: unpack it first, if there are weights in it"),
    (rb".{344}n\+1\0|.{4}n\+2\0", "is a NIfTI volume, not weights"),
    (rb".{128}DICM", "is a DICOM image, not weights"),
    (rb".{257}ustar", "is a tar archive: upload the .pth in it"),
    (rb"\x89HDF", f"is HDF5, not PyTorch: {ADVICE}"),
    (rb"\x93NUMPY", f"is a NumPy array, not PyTorch weights: {ADVICE}"),
    (rb".{5}\0{3}\{", f"is safetensors, not PyTorch's own format: {ADVICE}"),
    (rb"\x08.\x12", f"is ONNX, not PyTorch: {ADVICE}"),
    (rb"\x80", f"is a pickle that torch.save did not write: {ADVICE}"),
    (rb"[^\0-\x08\x0e-\x1f]+\Z", "is text, not weights"),
)


class Refused(Exception):
    """The upload, or this machine, does not allow it."""

    def __init__(self, detail: str, code: str = "not-a-model") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code


def main(upload: str, target: str) -> None:
    """Print the verdict."""
    # Libraries print what they like when they are imported: that goes to stderr.
    answer = os.dup(1)
    os.dup2(2, 1)
    confine()
    try:
        verdict = {"ok": True, **convert(Path(upload), Path(target))}
    except Refused as refused:
        verdict = {"ok": False, "code": refused.code, "detail": refused.detail}
    except MemoryError:
        detail = "Opening the file takes more memory than weights of this network ever do."
        verdict = {"ok": False, "code": "not-a-model", "detail": detail}
    except Exception as error:  # a crafted file may find a way that nobody thought of
        traceback.print_exc()
        detail = f"The file cannot be read as weights ({type(error).__name__})."
        verdict = {"ok": False, "code": "not-a-model", "detail": detail}
    os.write(answer, json.dumps(verdict).encode() + b"\n")


def confine() -> None:
    """Take away from this process what a hostile file could make it use."""
    # A script's folder is the first on the path, and pfms' own files are no modules of the plugin.
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
    with contextlib.suppress(OSError):  # where memory does run out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")


def convert(upload: Path, target: Path) -> dict[str, Any]:
    """Check `upload` and write `target`; what the verdict says of it."""
    with upload.open("rb") as file:
        look_at_the_bytes(file)
        content, locations = load(file)
    state, notes = unwrap(content)
    network = network_of_the_plugin()
    state, prefix = without_prefix(state, network)
    compare(state, network)
    weights = {key: as_stored(key, state[key], like) for key, like in network.items()}
    if prefix:
        notes.append(f"The keys began with {prefix!r}, which was removed.")
    others = {str(state[key].dtype) for key, like in network.items() if like.is_floating_point()}
    for dtype in sorted(others - {"torch.float32"}):
        notes.append(f"The weights were {dtype.removeprefix('torch.')}, and are stored as float32.")
    devices = sorted(name for name in locations if re.fullmatch(r"[a-z]{1,16}:\d{1,3}", name))
    if devices:
        notes.append(f"The weights were saved on {devices[0]}, and are stored for every device.")
    return {**store(weights, target), "warnings": notes}


def look_at_the_bytes(file: IO[bytes]) -> None:
    """Refuse, before torch is imported, what its bytes tell to be something else."""
    head = file.read(HEAD_BYTES)
    if not head:
        raise Refused("The file is empty.")
    if head.startswith(b"PK\x03\x04"):
        return look_into_zip(file)
    if LEGACY_MAGIC in head[:32]:
        return None
    for pattern, words in FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise Refused(f"The file {words}.")
    raise Refused("The file is none that torch.save writes.")


def look_into_zip(file: IO[bytes]) -> None:
    """Refuse an archive that is not torch.save's, is damaged, or unpacks to very much."""
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "data.pkl" not in names:
            inside = any(name.endswith((".pt", ".pth")) for name in archive.namelist())
            what = "upload the .pt or .pth in it" if inside else "there are no weights in it"
            raise Refused(f"The file is a zip archive that torch.save did not write: {what}.")
        if "constants.pkl" in names:
            raise Refused(f"The file is a TorchScript archive, not a state dict: {ADVICE}.")
        size = file.seek(0, os.SEEK_END)
        if sum(entry.file_size for entry in entries) > max(UNPACKED_BYTES, 2 * size):
            raise Refused("The file unpacks to far more than its own size.")
        for entry in entries:
            # torch itself checks no checksum; it writes 0 where it was told to make none.
            if entry.CRC:
                with archive.open(entry) as record:
                    while record.read(1 << 20):
                        pass
    except (Refused, MemoryError):
        raise
    except Exception:
        raise Refused(CUT_OFF) from None


def load(file: IO[bytes]) -> tuple[Any, set[str]]:
    """What the file holds, on the CPU, and where it says that it was saved."""
    try:
        import torch
    except Exception as error:
        raise Refused(f"torch cannot be imported ({type(error).__name__}).", "no-plugin") from error
    locations: set[str] = set()

    def on_cpu(storage: Any, location: Any) -> Any:
        locations.add(str(location))
        return storage

    file.seek(0)
    try:
        return torch.load(file, map_location=on_cpu, weights_only=True), locations
    except MemoryError:
        raise
    except Exception as error:
        if "allocate memory" in str(error) or "not enough memory" in str(error):
            raise MemoryError from None
        raise Refused(why_not_loaded(error)) from None


def why_not_loaded(error: Exception) -> str:
    """What torch's own words mean to the one who sent the file."""
    # "… Unsupported global: GLOBAL posix.system was not an allowed global by default …"
    found = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
    name = found[1] if found else ""
    if name.startswith(("torch.nn.", "monai.networks.", "spleenseg.")):
        return f"The file is a whole pickled network ({name}), not its weights: {ADVICE}."
    if name:
        return f"The file holds more than weights ({name}; nothing of it was run): {ADVICE}."
    if type(error).__name__ == "UnpicklingError":
        return f"The file holds what is no plain state dict, or is damaged: {ADVICE}."
    return CUT_OFF


def unwrap(content: Any) -> tuple[dict[str, Any], list[str]]:
    """The state dict in a checkpoint, and what was taken off around it."""
    notes: list[str] = []
    for _ in range(4):  # a pickle can hold a dictionary that holds itself
        inner = content if isinstance(content, dict) else {}
        name = next((name for name in WRAPPERS if isinstance(inner.get(name), dict)), None)
        if name is None:
            break
        notes.append(f"The state dict was wrapped in {name!r}; only it is stored.")
        content = content[name]
    if not isinstance(content, dict):
        raise Refused(f"The file holds a {type(content).__name__}, not a state dict: {ADVICE}.")
    if not any(hasattr(value, "is_floating_point") for value in content.values()):
        raise Refused(f"The file holds a dictionary without weights: {ADVICE}.")
    for key in content:
        if not isinstance(key, str):
            raise Refused(f"A key is of the type {type(key).__name__}, not a name.")
    return content, notes


def network_of_the_plugin() -> dict[str, Any]:
    """Keys and tensors of the installed plugin's own network."""
    try:
        from spleenseg.models.data import ModelParams

        return dict(ModelParams.model.state_dict())
    except MemoryError:
        raise
    except Exception as error:
        words = f"The plugin cannot be imported ({type(error).__name__})."
        raise Refused(words, "no-plugin") from error


def without_prefix(state: dict[str, Any], network: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """`state` without what wrappers of a network put before every key, and what that was.

    The plugin's own keys begin with one of these prefixes: the form that fits best is taken.
    """
    best, best_prefix, removed = state, "", ""
    for _ in range(8):
        prefix = next((each for each in PREFIXES if all(key.startswith(each) for key in state)), "")
        if not prefix:
            break
        removed += prefix
        state = {key[len(prefix) :]: value for key, value in state.items()}
        if len(network.keys() & state.keys()) > len(network.keys() & best.keys()):
            best, best_prefix = state, removed
    return best, best_prefix


def compare(state: dict[str, Any], network: dict[str, Any]) -> None:
    """Refuse at the first difference, in the order of the plugin's network."""
    import torch

    if not network.keys() & state.keys():
        theirs, ours = shown(next(iter(state))), shown(next(iter(network)))
        raise Refused(f"It is another network: its keys begin with {theirs}, not with {ours}.")
    for key, like in network.items():
        if key not in state:
            raise Refused(f"The key {shown(key)} of the plugin's network is missing.")
        value = state[key]
        if not isinstance(value, torch.Tensor):
            raise Refused(f"{shown(key)} is a {type(value).__name__}, not a tensor.")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise Refused(f"{shown(key)} is not a plain tensor: it is sparse, quantised or empty.")
        if value.shape != like.shape:
            has, wants = size_of(value), size_of(like)
            raise Refused(f"{shown(key)} has the shape {has} instead of {wants}.")
        if value.is_complex() or (like.is_floating_point() and not value.is_floating_point()):
            kind = str(value.dtype).removeprefix("torch.")
            raise Refused(f"{shown(key)} holds {kind} numbers, not floating-point ones.")
    for key in state:
        if key not in network:
            raise Refused(f"The plugin's network has no key {shown(key)}.")


def as_stored(key: str, value: Any, like: Any) -> Any:
    """A tensor of its own, contiguous, float32 (counters: int64)."""
    import torch

    if like.is_floating_point():
        stored = torch.empty(like.shape, dtype=torch.float32).copy_(value.detach())
        if not torch.isfinite(stored).all():
            raise Refused(f"{shown(key)} holds numbers that are not finite (NaN or infinite).")
        return stored
    # Batches counted in training: of no use to inference, and in half precision soon infinite.
    if value.is_floating_point() and not torch.isfinite(value).all():
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.empty(like.shape, dtype=like.dtype).copy_(value)


def store(weights: dict[str, Any], target: Path) -> dict[str, Any]:
    """Write TARGET, durably; its checksum and size in bytes."""
    import torch

    memory = io.BytesIO()
    torch.save(weights, memory)
    content = memory.getbuffer()
    try:
        with target.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        words = "The disk is full." if full else "The weights could not be written."
        raise Refused(words, "disk-full" if full else "cannot-write") from error
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def shown(key: str) -> str:
    """A key, quoted; shortened, for a stranger chose it."""
    return repr(key if len(key) <= 100 else key[:100] + "…")


def size_of(tensor: Any) -> str:
    """`16×1×3×3×3`."""
    return "×".join(map(str, tensor.shape)) or "of a single number"


if __name__ == "__main__":
    main(*sys.argv[1:])
