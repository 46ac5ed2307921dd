"""A request minus the plugin's own time: receive, check, record, start, labels, check, send."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np

from bench.figures import Figure, Task
from bench.load import FAKES, Caller, executors, expect, serving
from bench.volumes import clinical, content, real_ct, there_is_a_real_ct
from examples.phantoms import Phantom
from pfms.settings import Settings
from pfms.storage.files import size_and_sha256
from pfms.storage.upload import UploadWriter
from pfms.volumes.admit import VolumeLimits, admit_volume
from pfms.volumes.labels import write_labels
from tests.conftest import Server, seed_model


def measure(task: Task) -> list[Figure]:
    """Measure over HTTP, with prepared output of the plugin; then each stage by direct calls."""
    times = task.either(11, 3)
    figures = []
    for name, case, target in _cases():
        folder = task.folder / name
        folder.mkdir(parents=True)
        onehot = _as_the_plugin_writes_it(case.truth, folder / "onehot.nii.gz")
        volume = content(case.volume)
        for executor in executors():
            with _prepared(folder / executor, executor, onehot) as server:
                requests = [_request(server, volume) for _ in range(times + 1)][1:]
            whole, process = (median(each) for each in zip(*requests, strict=True))
            judged = target if executor == executors()[-1] else None
            note = f"{process:.3f} s of it start and end the process"
            figures.append(Figure(f"{name}, {executor}", whole, "s", at_most=judged, note=note))
        for stage, seconds in own_stages(folder, volume, onehot, times).items():
            figures.append(Figure(f"{name}, {stage}", seconds, "s"))
    return figures


def _cases() -> Iterator[tuple[str, Phantom, float]]:
    if there_is_a_real_ct():
        yield "real CT", real_ct(), 0.3
    yield "512x512x100", clinical(), 1.5


def _as_the_plugin_writes_it(truth: nib.Nifti1Image, path: Path) -> Path:
    spleen = np.asanyarray(truth.dataobj) > 0
    channels = np.stack([~spleen, spleen], axis=-1).astype(np.float32)
    nib.save(nib.Nifti1Image(channels, truth.affine), path)
    return path


@contextmanager
def _prepared(workspace: Path, executor: str, onehot: Path) -> Iterator[Server]:
    seed_model(workspace, content=bytes(onehot))
    with serving(workspace, FAKES / "prepared.py", executor=executor) as server:
        yield server


def _request(server: Server, volume: bytes) -> tuple[float, float]:
    """Seconds that a blocking call and its process took, both minus the plugin's main()."""
    with Caller(server.url) as caller:
        seconds = expect(200, caller.infer(volume)).seconds
        job = json.loads(caller.get("/api/v1/jobs?limit=1").body)["jobs"][0]
        said = caller.get(f"/api/v1/jobs/{job['id']}/log").body.split()
    main = float(said[said.index(b"main") + 1])
    return seconds - main, job["seconds"] - main


def own_stages(folder: Path, volume: bytes, onehot: Path, times: int) -> dict[str, float]:
    """Median seconds of each of the server's own stages by itself, over so many times.

    Args:
        folder: Where to put files; it exists.
        volume: The bytes of a `.nii.gz`.
        onehot: What the plugin makes of it.
        times: How often.
    """
    upload, admitted, labels = (folder / name for name in ("upload", "in.nii.gz", "out.nii.gz"))
    bounds = Settings.model_fields
    limits = VolumeLimits(bounds["max_volume_bytes"].default, bounds["max_grid_voxels"].default)

    async def receive() -> None:
        writer = UploadWriter(upload, len(volume))
        async with writer:
            for start in range(0, len(volume), 1 << 16):  # as uvicorn passes them on
                await writer.feed(volume[start : start + (1 << 16)])
            (await writer.finish()).path.rename(folder / "received")

    def look() -> None:
        upload.write_bytes(volume)
        admit_volume(upload, admitted, limits)

    def hash_results() -> None:
        for path in (labels, onehot):
            with path.open("rb") as file:
                size_and_sha256(file)

    stages: dict[str, Callable[[], object]] = {
        "write and hash the upload": lambda: asyncio.run(receive()),
        "look at the volume": look,
        "labels, checked and compressed": lambda: write_labels(onehot, admitted, labels),
        "hash the results": hash_results,
    }
    took = {name: median([_seconds(call) for _ in range(times)]) for name, call in stages.items()}
    with (
        _prepared(folder / "server", executors()[-1], onehot) as server,
        Caller(server.url) as caller,
    ):
        expect(200, caller.infer(volume))
        job = json.loads(caller.get("/api/v1/jobs?limit=1").body)["jobs"][0]
        sent = [expect(200, caller.get(f"/api/v1/jobs/{job['id']}/result")) for _ in range(times)]
    return {**took, "send the labels": median(answer.seconds for answer in sent)}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
