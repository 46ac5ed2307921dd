"""A valid volume of 1 GiB: the server's memory while it receives and checks it."""

import gzip
import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np

from bench.figures import Figure, Task
from bench.load import INFER, MIB, forget_peak, form, form_headers, peak, resident, serving
from tests.conftest import Server

_SLICE = 2 * MIB  # bytes of a slice


def measure(task: Task) -> list[Figure]:
    """Send it plain, gzipped (a mebibyte unpacks to a gibibyte), and gzipped uncompressed."""
    slices = task.either(512, 64)
    file = task.folder / "volume"
    figures = []
    with serving(task.folder / "workspace", "hangs.py") as server:
        _write(file, 2, None)
        _send(server, file)  # what the first upload imports does not count as growth
        for name, level in ((".nii", None), (".nii.gz", 1), (".nii.gz, stored", 0)):
            _write(file, slices, level)
            before = resident(server.process.pid)
            forget_peak(server.process.pid)
            seconds = _send(server, file)
            grown = (peak(server.process.pid) - before) / MIB
            size = f"{file.stat().st_size / MIB:,.0f} MiB sent, {2 * slices:,} MiB unpacked"
            figures += [
                Figure(f"growth, {name}", grown, "MB", at_most=64, note=size),
                Figure(f"accepted after, {name}", seconds, "s"),
                Figure(f"rate, {name}", 2 * slices / seconds, "MB/s", note="of unpacked bytes"),
            ]
    return figures


def _write(file: Path, slices: int, level: int | None) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((1024, 1024, slices))
    header.set_data_dtype(np.int16)
    header.set_zooms((0.5, 0.5, 0.5))
    header.set_sform(np.diag([0.5, 0.5, 0.5, 1.0]), 1)
    header["vox_offset"] = header.single_vox_offset
    with (
        file.open("wb") as raw,
        raw if level is None else gzip.GzipFile("", "wb", level, raw, 0) as out,
    ):
        out.write(header.binaryblock + bytes(4))
        for _ in range(slices):
            out.write(bytes(_SLICE))


def _send(server: Server, file: Path) -> float:
    """Seconds until the response; the job is removed again."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)
    started = time.perf_counter()
    headers = form_headers("respond-async")
    connection.request("POST", INFER, _body(file), headers, encode_chunked=True)
    answer = connection.getresponse()
    accepted = answer.read()
    seconds = time.perf_counter() - started
    connection.close()
    if answer.status != 202:
        raise AssertionError(accepted)
    job = answer.headers["X-Pfms-Job"]
    server.http.post(f"/jobs/{job}/cancel").raise_for_status()
    server.ended(job)
    server.http.delete(f"/jobs/{job}").raise_for_status()
    return seconds


def _body(file: Path) -> Iterator[bytes]:
    head, tail = form()
    yield head
    with file.open("rb") as source:
        while piece := source.read(MIB):
            yield piece
    yield tail
