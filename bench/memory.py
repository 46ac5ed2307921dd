"""The most memory that a run holds, against what was estimated before it, by size and type."""

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike

from bench.figures import Figure, Task
from bench.load import MIB, serving
from bench.volumes import body, clinical, content, there_is_a_real_ct
from tests.conftest import Server

_TOLERANCE = 0.25  # of the measured peak
_AIR_HU = -1024  # what a scaled type stores as 0


@dataclass(frozen=True)
class _Type:
    """How voxels are stored."""

    name: str
    dtype: DTypeLike
    intercept: int = 0


_TYPES = (
    _Type("int16", np.int16),
    _Type("uint16, scaled", np.uint16, _AIR_HU),
    _Type("float32", np.float32),
    _Type("float64", np.float64),
)


def measure(task: Task) -> list[Figure]:
    """Each size in each type, by one warm server after the other runs."""
    figures = []
    off = ",".join(task.off or ())
    with serving(task.folder, "spleenseg", executor="warm", adaptations_off=off) as server:
        for name, volume in _cases(task):
            figures += _figures(name, server, volume)
    return figures


def _cases(task: Task) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each volume, the largest last."""
    for slices in (100, 400, 800)[: 1 if task.quick else 3]:
        volume = body(slices) if there_is_a_real_ct() else content(clinical(slices).volume)
        for kind in _TYPES[: 1 if task.quick else None]:
            yield f"512x512x{slices}, {kind.name}", _stored_as(volume, kind)


def _stored_as(volume: bytes, kind: _Type) -> bytes:
    """A volume of int16, stored as another type; slice by slice, since it may be large."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=io.BytesIO(volume)) as source:
        header = nib.Nifti1Header(source.read(nib.Nifti1Header.sizeof_hdr))
        source.read(4)
        header.set_data_dtype(kind.dtype)
        header["scl_slope"], header["scl_inter"] = (1, kind.intercept) if kind.intercept else (0, 0)
        x, y, z = header.get_data_shape()
        with gzip.GzipFile("", "wb", 1, packed, 0) as target:
            target.write(header.binaryblock + bytes(4))
            for _ in range(z):
                voxels = np.frombuffer(source.read(2 * x * y), np.int16)
                target.write(
                    np.maximum(voxels - kind.intercept, 0 if kind.intercept else -32768)
                    .astype(kind.dtype)
                    .tobytes()
                )
    return packed.getvalue()


def _figures(name: str, server: Server, volume: bytes) -> list[Figure]:
    answer = server.infer(volume, timeout=1800)
    answer.raise_for_status()
    job = server.job(answer.headers["x-pfms-job"])
    server.http.delete(f"/jobs/{job['id']}").raise_for_status()
    peak, estimate = job["peak_memory_bytes"], job["estimated_memory_bytes"]
    return [
        Figure(f"{name}, peak", peak / MIB, "MB"),
        Figure(f"{name}, estimate", estimate / MIB, "MB"),
        Figure(
            f"{name}, estimate off by",
            abs(estimate / peak - 1),
            "x",
            at_most=_TOLERANCE,
            note=f"{estimate / peak:.2f} of the peak",
        ),
    ]
