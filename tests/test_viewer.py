"""The viewer of the page: NiiVue, fetched with npm, in a real browser."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests import tokens
from tests.browser import Tab, a_browser, a_tab
from tests.conftest import ROOT, Server, nifti_bytes, seed_model, start
from tests.test_page import Row, check_accessible

VOLUME = nifti_bytes((60, 60, 40))  # what the fake plugin takes for a spleen has 486 ml
BUILT = ROOT / "pfms" / "page" / "vendor" / "niivue.js"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not BUILT.exists():
        assert "CI" not in os.environ, "CI needs npm"
        pytest.skip("needs `make viewer`")
    with a_browser() as one:
        yield one


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a token."""
    folder = tmp_path_factory.mktemp("viewer")
    token = tokens.add(folder / "tokens.json", "viewer", "infer")
    for name, plugin in (("demo", "ok"), ("half", "half"), ("empty", "empty")):
        seed_model(folder / "workspace", name, plugin.encode())
    one = start(folder / "workspace", "as_the_model_says.py", tokens_file=folder / "tokens.json")
    one.http.headers["Authorization"] = f"Bearer {token}"
    yield one
    one.stop()


def sign_in(tab: Tab) -> Tab:
    field = tab.page.get_by_role("textbox", name="Token")
    field.fill(tab.server.http.headers["Authorization"].removeprefix("Bearer "))
    field.press("Enter")
    expect(field).to_be_hidden()
    return tab


@pytest.fixture
def tab(browser: Browser, served: Server, tmp_path: Path) -> Iterator[Tab]:
    with a_tab(browser, served, tmp_path) as one:
        yield sign_in(one.open())


def shown(page: Page, keep: Path) -> NDArray[np.int_]:
    """The pixels of the canvas: (height, width, 3). The picture is kept."""
    keep.write_bytes(page.locator("#viewer-canvas").screenshot())
    return np.asarray(Image.open(keep).convert("RGB")).astype(int)


def coloured(pixels: NDArray[np.int_]) -> int:
    """How many pixels have the colour of the spleen, more or less."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return int(((green - red > 25) & (green > blue)).sum())  # the crosshair is blue


def warm(pixels: NDArray[np.int_]) -> tuple[int, int]:
    """How many pixels are yellow, where the spleens of two runs overlap, and orange."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    mixed = np.abs(red - green) < 30
    return int((mixed & (green - blue > 40)).sum()), int((~mixed & (red - blue > 40)).sum())


def see(tab: Tab, name: str, content: bytes) -> None:
    tab.drop(**{name: content})
    expect(tab.page.locator("#viewer-volume")).to_contain_text("Spleen")
    expect(tab.page.locator("#viewer-state")).to_be_empty()


def test_the_spleen_is_seen_on_the_ct_in_three_planes_and_in_3d(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    see(tab, "seen__nii__gz", VOLUME)
    # The 3-D view is left out at first where there is no graphics card, as here.
    planes = coloured(shown(page, tmp_path / "planes.png"))
    assert planes > 5000
    page.locator("#viewer-view").select_option("Three planes and 3-D")
    assert coloured(shown(page, tmp_path / "all.png")) > planes + 1000
    expect(page.locator("#viewer-volume")).to_have_text("Spleen 486 ml")
    for view in ("Axial", "Coronal", "Sagittal", "3-D"):
        page.locator("#viewer-view").select_option(view)
        assert coloured(shown(page, tmp_path / f"{view}.png")) > 3000, view
    check_accessible(page)


def test_a_spleen_within_a_body_is_seen_in_3d(tab: Tab, tmp_path: Path) -> None:
    voxels = np.full((60, 60, 40), -1000, np.int16)
    voxels[8:52, 8:52, 4:36] = -20  # fat and muscle, which the window does not hide
    voxels[34:44, 20:32, 15:25] = 50
    body = gzip.compress(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])).to_bytes())
    see(tab, "body__nii__gz", body)
    tab.page.locator("#viewer-view").select_option("3-D")
    assert coloured(shown(tab.page, tmp_path / "body.png")) > 500


def test_opacity_and_window_change_what_is_seen(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    see(tab, "windowed__nii__gz", VOLUME)
    page.locator("#viewer-view").select_option("Axial")
    half = shown(page, tmp_path / "half.png")
    page.get_by_label("Opacity of the spleen").fill("0")
    none = shown(page, tmp_path / "none.png")
    assert coloured(none) == 0 < coloured(half)
    brightness = {}
    for window in (
        "Abdomen (40/400)",
        "Soft tissue (50/350)",
        "Bone (400/1800)",
        "Lung (-600/1500)",
    ):
        page.locator("#viewer-window").select_option(window)
        pixels = shown(page, tmp_path / f"{window.partition(' ')[0]}.png")
        height, width, _ = pixels.shape
        spot = pixels[height // 2 + 20 : height // 2 + 40, width // 2 + 20 : width // 2 + 40]
        brightness[window] = spot.mean()
    # The middle is of 50 HU: what a window makes of it is a matter of arithmetic.
    expected = {
        "Abdomen (40/400)": (50 - -160) / 400,
        "Soft tissue (50/350)": (50 - -125) / 350,
        "Bone (400/1800)": (50 - -500) / 1800,
        "Lung (-600/1500)": (50 - -1350) / 1500,
    }
    assert brightness == pytest.approx({w: 255 * part for w, part in expected.items()}, abs=8)


def height_of(place: Locator) -> float:
    """In mm above the origin."""
    return float((place.text_content() or "").rpartition("S ")[2].split()[0])


def test_the_crosshair_tells_the_value_under_it_by_mouse_and_by_keyboard(tab: Tab) -> None:
    page = tab.page
    see(tab, "crossed__nii__gz", VOLUME)
    place = page.locator("#viewer-place")
    expect(place).to_contain_text("HU, in the spleen at R ")
    page.locator("#viewer-view").select_option("Axial")
    canvas = page.locator("#viewer-canvas")
    canvas.click(position={"x": 200, "y": 60})
    expect(place).to_contain_text("-1000 HU at R ")
    page.locator("#viewer-view").select_option("Sagittal")
    canvas.focus()
    before = height_of(place)
    for _ in range(3):
        page.keyboard.press("PageUp")
    # It goes from the middle of a voxel to the middle of another; slices are 3 mm apart.
    assert 7 < height_of(place) - before < 11


def test_the_values_in_the_spleen_are_shown_as_a_histogram(tab: Tab) -> None:
    see(tab, "counted__nii__gz", VOLUME)
    voxels = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(VOLUME)).dataobj)
    spleen = voxels[voxels > 0]
    name = (
        f"Histogram of the values in the spleen: mean {spleen.mean():.0f} HU, "
        f"standard deviation {spleen.std():.0f}, median {np.median(spleen):.0f}"
    )
    histogram = tab.page.get_by_role("img", name=name)
    expect(histogram).to_be_visible()
    heights = [float(bar.get_attribute("height") or 0) for bar in histogram.locator("rect").all()]
    # One for every HU or two of the 99 % in the middle of a normal distribution.
    assert 20 <= len(heights) <= 40
    third = len(heights) // 3
    assert max(heights) == max(heights[third:-third]) > 4 * max(heights[0], heights[-1])


def test_two_runs_of_a_volume_are_compared(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    content = nifti_bytes((48, 48, 40), seed=7)
    see(tab, "first__nii__gz", content)
    expect(page.locator("#viewer-compare")).to_be_hidden()
    page.get_by_label("Model").first.select_option("half")
    tab.drop(second__nii__gz=content)
    expect(Row(tab, "second.nii.gz").badge).to_have_text("Done")
    Row(tab, "second.nii.gz").link.click()
    expect(page.locator("#viewer-volume")).to_have_text("Spleen 156 ml")
    page.get_by_label("Compare with").select_option(index=1)
    expect(page.locator("#viewer-difference")).to_contain_text(
        "Dice 0.6667. The other run has 311 ml, 156 ml more than this one."
    )
    expect(page.locator("#viewer-place")).to_contain_text("in the spleen of both runs")
    pixels = shown(page, tmp_path / "both.png")
    yellow, orange = warm(pixels)
    assert yellow > 3000 < orange
    check_accessible(page)
    page.get_by_label("Compare with").select_option("No other run")
    expect(page.locator("#viewer-difference")).to_be_empty()
    alone = shown(page, tmp_path / "alone.png")
    assert warm(alone) == (0, 0)
    assert coloured(alone) > 3000


def test_where_no_spleen_was_found_the_page_says_so(tab: Tab) -> None:
    page = tab.page
    page.get_by_label("Model").first.select_option("empty")
    content = nifti_bytes((40, 40, 30), seed=5)
    see(tab, "none__nii__gz", content)
    expect(page.locator("#viewer-volume")).to_have_text("Spleen 0.00 ml")
    expect(page.locator("#viewer-histogram")).to_contain_text("No voxel is labelled as spleen")
    Row(tab, "none.nii.gz").press("Rerun")
    expect(Row(tab, "none.nii.gz").badge).to_have_text(["Done", "Done"])
    page.get_by_label("Compare with").select_option(index=1)
    expect(page.locator("#viewer-difference")).to_contain_text("there is no Dice coefficient")
    check_accessible(page)


def test_a_large_volume_is_drawn_with_fewer_voxels_and_with_all_on_demand(
    tab: Tab, tmp_path: Path
) -> None:
    page = tab.page
    voxels = np.full((256, 256, 260), -1000, np.int16)  # a few more than are drawn at once
    voxels[101:161, 101:161, 101:161] = 50
    large = gzip.compress(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 1.0, 1.0])).to_bytes(), 1)
    see(tab, "large__nii__gz", large)
    expect(page.locator("#viewer-drawn")).to_contain_text("one voxel of 2 × 1 × 1")
    expect(page.locator("#viewer-place")).to_contain_text(
        "50 HU, in the spleen at R 130.5, A 130.5"
    )
    assert coloured(shown(page, tmp_path / "thinned.png")) > 5000
    check_accessible(page)
    page.get_by_role("button", name="Show every voxel").click()
    expect(page.locator("#viewer-thinned")).to_be_hidden()
    expect(page.locator("#viewer-state")).to_be_empty()
    assert coloured(shown(page, tmp_path / "whole.png")) > 5000
    expect(page.locator("#viewer-histogram")).to_contain_text("mean 50 HU")


def test_a_thinned_volume_has_some_of_the_voxels_where_they_were(tab: Tab) -> None:
    voxels = np.arange(9 * 7 * 5).reshape(9, 7, 5, order="F") % 251
    affine = nib.affines.from_matvec(rotation(0.3) @ np.diag([0.7, -0.8, 2.5]), [10, -20, 30])
    module = next(url for url in tab.asked if url.endswith("/nifti.js"))
    steps = [4, 2, 1]
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    for kind, order, dtype in product(kinds, "<>", ("u1", "i2", "f4", "f8")):
        header = kind.header_class(endianness=order)
        image = kind(voxels.astype(f"{order}{dtype}"), affine, header)
        image.set_qform(affine, 1)
        image.header.set_slope_inter(2, -5)
        thin, values, hu = tab.page.evaluate(
            """async ([module, bytes, steps]) => {
                const { Nifti } = await import(module);
                const nifti = new Nifti(new Uint8Array(bytes).buffer);
                const thin = nifti.thinned(steps);
                const { slope, intercept, voxels } = nifti;
                return [[...new Uint8Array(thin.buffer)], [...voxels], [slope, intercept]];
            }""",
            [module, list(image.to_bytes()), steps],
        )
        assert np.array_equal(values, voxels.ravel(order="F"))
        assert hu == [2, -5]
        thinned = kind.from_bytes(bytes(thin))
        kept = voxels[::4, ::2, ::1]
        assert np.array_equal(thinned.dataobj, 2.0 * kept - 5)
        ends = np.array([[0, 0, 0], [n - 1 for n in kept.shape]])
        expected = nib.affines.apply_affine(affine, ends * steps)
        for found in (thinned.get_sform(), thinned.get_qform()):
            assert np.allclose(nib.affines.apply_affine(found, ends), expected, atol=1e-4)


def rotation(angle: float) -> NDArray[np.float64]:
    """About two axes: an oblique volume."""
    c, s = np.cos(angle), np.sin(angle)
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    both: NDArray[np.float64] = about_z @ about_x
    return both


def test_an_oblique_volume_is_seen_where_it_is(tab: Tab, tmp_path: Path) -> None:
    voxels = np.full((50, 40, 30), -1000, np.int16)
    voxels[5:16, 20:37, 4:13] = 50
    affine = nib.affines.from_matvec(rotation(0.3) @ np.diag([2.0, 3.0, 4.0]), [-40, -70, 15])
    see(tab, "oblique__nii__gz", gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes()))
    x, y, z = nib.affines.apply_affine(affine, [10, 28, 8])
    place = tab.page.locator("#viewer-place")
    expect(place).to_contain_text("50 HU, in the spleen at ")
    text = (place.text_content() or "").partition(" at ")[2].removesuffix(" mm")
    at = [float(part[2:]) * (-1 if part[0] in "LPI" else 1) for part in text.split(", ")]
    assert at == pytest.approx([x, y, z], abs=0.2)
    assert coloured(shown(tab.page, tmp_path / "oblique.png")) > 2000


@pytest.mark.parametrize("orientation", ["LPS", "PIR"])
def test_in_any_orientation_the_crosshair_begins_in_the_spleen(
    tab: Tab, tmp_path: Path, orientation: str
) -> None:
    voxels = np.full((50, 40, 30), -1000, np.int16)
    voxels[5:15, 24:36, 4:12] = 50
    image = nib.Nifti1Image(voxels, np.diag([2.0, 3.0, 4.0, 1.0]))
    codes = nib.orientations.axcodes2ornt(orientation)
    turned = image.as_reoriented(nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], codes))
    see(tab, f"{orientation}__nii__gz", gzip.compress(turned.to_bytes()))
    expect(tab.page.locator("#viewer-place")).to_contain_text("50 HU, in the spleen at R 19")
    expect(tab.page.locator("#viewer-place")).to_contain_text("A 88.5, S 30")
    # No plane through the middle of the volume has any of it.
    assert coloured(shown(tab.page, tmp_path / "begins.png")) > 2000


def test_a_volume_of_many_gzip_members_is_shown(tab: Tab, tmp_path: Path) -> None:
    raw = gzip.decompress(VOLUME)
    half = len(raw) // 2
    see(tab, "members__nii__gz", gzip.compress(raw[:half]) + gzip.compress(raw[half:]))
    assert coloured(shown(tab.page, tmp_path / "members.png")) > 5000


def test_without_the_viewer_the_page_shows_the_picture_and_says_why(tab: Tab) -> None:
    def without(content: str) -> Callable[..., None]:
        return lambda route: route.fulfill(response=route.fetch(), body=content)

    page = tab.page
    built = httpx.get(tab.server.url).text
    assert 'data-viewer="yes"' in built
    page.route(
        f"{tab.server.url}/", without(built.replace('data-viewer="yes"', 'data-viewer="no"'))
    )
    page.reload()
    tab.drop(plain__nii__gz=VOLUME)
    expect(page.locator("#viewer-trouble")).to_contain_text("It is built with npm")
    expect(page.locator("#viewer-trouble")).to_contain_text("What to do: ")
    expect(page.get_by_role("img", name="outline of the spleen")).to_be_visible()
    expect(page.locator("#viewer")).to_be_hidden()
    check_accessible(page)


def test_runs_are_looked_at_one_after_the_other(tab: Tab) -> None:
    see(tab, "one__nii__gz", VOLUME)
    tab.drop(two__nii__gz=nifti_bytes((40, 40, 40)))
    expect(Row(tab, "two.nii.gz").badge).to_have_text("Done")
    for name, volume in (("two", "216 ml"), ("one", "486 ml"), ("two", "216 ml")):
        Row(tab, f"{name}.nii.gz").link.click()
        expect(tab.page.locator("#viewer-volume")).to_have_text(f"Spleen {volume}")


# --- how it is built ---------------------------------------------------------------------------


def test_the_lock_names_no_registry() -> None:
    lock = json.loads((ROOT / "tools" / "viewer" / "package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert {"node_modules/@niivue/niivue", "node_modules/fflate"} <= packages.keys()
    assert all("integrity" in package for package in packages.values())
    assert not any("resolved" in package for package in packages.values())


def test_without_npm_the_build_says_so_and_goes_on(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "tools.viewer", "--out", str(tmp_path / "vendor")]
    done = subprocess.run(build, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0
    assert "npm was not found" in done.stderr
    assert "make viewer" in done.stderr
    assert not (tmp_path / "vendor").exists()
