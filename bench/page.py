"""The page in a browser without a graphics card: when it can be used, when a large CT is seen."""

import io
import shutil
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, expect

from bench.figures import Figure, Skipped, Task
from bench.load import serving
from bench.volumes import body
from tests.browser import a_browser, a_tab
from tests.conftest import Server, seed_model

_PATIENCE_MS = 300_000


def measure(task: Task) -> list[Figure]:
    """Open the page, and look at a run of 512 x 512 x 400 voxels that has ended."""
    if shutil.which("chromium") is None:
        raise Skipped("there is no Chromium here")
    seed_model(task.folder / "workspace", "demo", b"ok")
    slices = task.either(400, 50)
    with serving(task.folder / "workspace", "ok.py") as server, a_browser() as browser:
        usable = [_usable(browser, server, task.folder) for _ in range(task.either(7, 3))]
        job_id = _ended(server, body(slices))
        shown = [_shown(browser, server, job_id, task.folder) for _ in range(task.either(3, 1))]
    name = f"512 x 512 x {slices} seen, from the call of the page"
    return [
        Figure("first usable paint, median", median(usable), "s", at_most=1),
        Figure(name, median(shown), "s", at_most=10, note="drawn by the processor"),
    ]


def _ended(server: Server, volume: bytes) -> str:
    """The ID of a run of the volume that has succeeded."""
    answer = server.http.post(
        "/spleenseg/NIfTIinference/",
        params={"modelID": "demo"},
        files={"file": volume},
        headers={"Prefer": "respond-async"},
        timeout=600,
    )
    job_id = answer.raise_for_status().json()["id"]
    while (state := server.http.get(f"/jobs/{job_id}").json()["state"]) != "succeeded":
        assert state in ("queued", "running"), state
        time.sleep(0.2)
    return str(job_id)


def _usable(browser: Browser, server: Server, folder: Path) -> float:
    """Seconds until a volume can be dropped on the page, in a browser that has not seen it."""
    with a_tab(browser, server, folder) as tab:
        started = time.perf_counter()
        tab.open()
        expect(tab.page.locator("#model option")).to_have_text("demo")
        return time.perf_counter() - started


def _shown(browser: Browser, server: Server, job_id: str, folder: Path) -> float:
    """Seconds until the spleen is seen in its colour."""
    with a_tab(browser, server, folder) as tab:
        tab.page.set_default_timeout(_PATIENCE_MS)
        started = time.perf_counter()
        tab.open(f"/#job={job_id}")
        expect(tab.page.locator("#viewer-volume")).to_contain_text("Spleen", timeout=_PATIENCE_MS)
        expect(tab.page.locator("#viewer-state")).to_be_empty(timeout=_PATIENCE_MS)
        picture = tab.page.locator("#viewer-canvas").screenshot()
        taken = time.perf_counter() - started
    red, green, blue = np.moveaxis(
        np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int), -1, 0
    )
    assert ((green - red > 25) & (green > blue)).sum() > 500, "the spleen is not seen"
    return taken
