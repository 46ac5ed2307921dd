"""`pfms compare`."""

import csv
import io
import json
import shutil
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pfms.local.compare import Comparison, Mask, compare, surface_distances
from pfms.local.compare_report import picture
from tests.command import pfms
from tests.conftest import Server, nifti_bytes, seed_model

SPACING = (2.0, 3.0, 4.0)


def mask(low: tuple[int, int, int], high: tuple[int, int, int]) -> Mask:
    voxels = np.zeros((20, 20, 20), np.bool_)
    voxels[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = True
    return voxels


def image(voxels: Mask, spacing: tuple[float, float, float] = SPACING) -> nib.Nifti1Image:
    return nib.Nifti1Image(voxels.astype(np.uint8), np.diag([*spacing, 1.0]))


def test_the_figures_of_two_boxes() -> None:
    one, other = mask((4, 4, 4), (10, 10, 10)), mask((5, 4, 4), (11, 10, 10))
    found = compare("boxes", image(one), image(other))
    assert found.dice == pytest.approx(5 / 6)
    assert (found.first_ml, found.second_ml) == pytest.approx((5.184, 5.184))
    assert found.max_mm == 2.0
    assert found.mean_mm is not None
    assert 0 < found.mean_mm < 2
    assert compare("same", image(one), image(one)).max_mm == 0


def test_what_is_empty_has_no_surface() -> None:
    empty, full = np.zeros((20, 20, 20), np.bool_), mask((4, 4, 4), (10, 10, 10))
    assert compare("x", image(empty), image(empty)) == Comparison("x", 1, 0, 0, None, None, None)
    assert compare("x", image(full), image(empty)).dice == 0


def test_distances_are_those_of_every_point_to_every_other() -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.random((7, 6, 5)) < 0.2 for _ in range(2))

    def surface(voxels: Mask) -> list[tuple[int, ...]]:
        padded = np.pad(voxels, 1)
        steps = [step for step in product((-1, 0, 1), repeat=3) if sum(map(abs, step)) == 1]
        return [
            tuple(at)
            for at in np.argwhere(voxels)
            if not all(padded[tuple(np.add(at, step) + 1)] for step in steps)
        ]

    ends = surface(a), surface(b)
    expected = [
        min(np.linalg.norm(np.subtract(at, other) * SPACING) for other in there)
        for here, there in (ends, ends[::-1])
        for at in here
    ]
    assert sorted(surface_distances(a, b, SPACING)) == pytest.approx(sorted(expected))


def colours(png: bytes) -> dict[tuple[int, ...], int]:
    """How often each colour is in the axial slice of a picture: its first 320 columns."""
    shown = np.asarray(Image.open(io.BytesIO(png)))[:, :320]
    found, count = np.unique(shown.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, colour)): int(n) for colour, n in zip(found, count, strict=True)}


def test_a_picture_shows_what_differs() -> None:
    a, b = image(mask((4, 4, 4), (10, 10, 10))), image(mask((5, 4, 4), (11, 10, 10)))
    shown = colours(picture(a, b))
    assert shown[235, 70, 60] == pytest.approx(shown[70, 140, 255], rel=0.1)
    assert shown[235, 235, 235] == pytest.approx(5 * shown[235, 70, 60], rel=0.1)


def test_a_picture_shows_the_ct_in_an_abdominal_window_below_the_outlines() -> None:
    a, b = mask((4, 4, 4), (10, 10, 10)), mask((5, 4, 4), (11, 10, 10))
    hu = np.where(np.arange(20) < 9, 40, 140)[:, None, None] * np.ones((20, 20, 20))
    hu[:, :8] = -1000
    ct = nib.Nifti1Image(hu[..., None].astype(np.int16), image(a).affine)
    shown = colours(picture(image(a), image(b), ct))
    for grey in (0, 127, 191):  # -1000, 40 and 140 HU
        assert shown[grey, grey, grey] > 1000
    without = colours(picture(image(a), image(b)))
    for colour in ((235, 70, 60), (70, 140, 255), (235, 235, 235)):
        assert 0 < shown[colour] < 1000, "a line, and no area"
    assert shown[235, 235, 235] < without[235, 235, 235] / 5


def test_two_files_are_compared(tmp_path: Path) -> None:
    nib.save(image(mask((4, 4, 4), (10, 10, 10))), tmp_path / "a.nii.gz")
    nib.save(image(mask((5, 4, 4), (11, 10, 10))), tmp_path / "b.nii.gz")
    done = pfms("compare", "a.nii.gz", "b.nii.gz", cwd=tmp_path)
    assert done.stdout.splitlines()[1].split()[:4] == ["a.nii.gz", "0.8333", "5.2", "5.2"]


def test_a_folder_is_compared_with_the_truth(tmp_path: Path) -> None:
    for name, shift in (("p1/CT", 0), ("p2/CT", 3)):
        for folder, by, end in (("seg", shift, "-spleen.nii.gz"), ("truth", 0, ".nii.gz")):
            path = tmp_path / folder / f"{name}{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image(mask((4 + by, 4, 4), (10 + by, 10, 10))), path)
    shutil.copytree(tmp_path / "truth", tmp_path / "cts")
    options = ("--report", "report.html", "--ct", "cts", "--csv", "t.csv", "--json")
    done = pfms("compare", "seg", "truth", *options, cwd=tmp_path)
    found = {one["name"]: one["dice"] for one in json.loads(done.stdout)["comparisons"]}
    assert found == {"p1/CT": 1.0, "p2/CT": 0.5}
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "0.5000 at worst (p2/CT)" in page
    assert page.index("<td>p2/CT") < page.index("<td>p1/CT")
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["p1/CT", "p2/CT"]


def test_two_models_are_compared_on_a_volume(server: Server, tmp_path: Path) -> None:
    seed_model(server.workspace, "other", b"others")
    (tmp_path / "ct.nii.gz").write_bytes(nifti_bytes())
    line = ("compare", "ct.nii.gz", "--model", "demo", "--model", "other", "--json")
    (found,) = json.loads(pfms(*line, cwd=tmp_path, server=server.url).stdout)["comparisons"]
    assert (found["name"], found["dice"], found["max_mm"]) == ("demo and other", 1.0, 0.0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (["a.nii.gz"], "two things"),
        (["a.nii.gz", "--model", "one"], "two things"),
        (["a.nii.gz", "coarse.nii.gz"], "different grids"),
        (["a.nii.gz", "four.nii.gz"], "3 axes"),
        (["a.nii.gz", "text.nii.gz"], "cannot be read"),
        (["a.nii.gz", "seg"], "a folder is compared"),
        (["seg", "empty"], "has no file for 1"),
        (["empty", "seg"], "has no NIfTI files"),
        (["a.nii.gz", "a.nii.gz", "--ct", "a.nii.gz"], "Add --report"),
        (["seg", "seg", "--report", "r.html", "--ct", "empty"], "has no file for 1"),
        (["a.nii.gz", "a.nii.gz", "--report", "r.html", "--ct", "coarse.nii.gz"], "another grid"),
    ],
)
def test_what_cannot_be_compared_is_2(tmp_path: Path, line: list[str], problem: str) -> None:
    one = mask((4, 4, 4), (10, 10, 10))
    (tmp_path / "seg").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("a.nii.gz", "seg/a.nii.gz"):
        nib.save(image(one), tmp_path / name)
    nib.save(image(one, (1, 1, 1)), tmp_path / "coarse.nii.gz")
    nib.save(image(np.stack([one, one], -1)), tmp_path / "four.nii.gz")
    (tmp_path / "text.nii.gz").write_text("text")
    assert problem in pfms("compare", *line, cwd=tmp_path, code=2).stderr
