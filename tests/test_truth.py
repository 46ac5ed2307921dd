"""The labels are, voxel by voxel, what the plugin run by hand makes of the same volume.

`BY_HAND` is the bare command line, in the environment of a person's shell. It takes many volumes at
once, so those of a test's neighbours are made with its own: the import is its longest part.
"""

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from allpairspy import AllPairs
from numpy.typing import NDArray

from examples.phantoms import make_phantom
from pfms.plugin import PLUGIN
from tests.conftest import ROOT, SHARED_DATA, Server, image_of, start_real
from tests.niftis import nifti

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

DEMO = ROOT / "examples" / "demo_model.pth"
BY_HAND = Path(sys.executable).with_name("spleenseg")
Labels = NDArray[np.uint8]

# Where the array's axes point, degrees of tilt, and lean of the third axis.
ORIENTATIONS = {
    "RAS": ("RAS", 0.0, 0.0),
    "LPS": ("LPS", 0.0, 0.0),
    "PIR": ("PIR", 0.0, 0.0),
    "oblique": ("LAS", 12.0, 0.0),
    "sheared": ("RAS", 0.0, 0.25),
}
TYPES = ("int16", "uint16", "int32", "float32", "float64", "scaled")
FORMS = ("nii.gz", "nii", "NIfTI-2", "4-D", "qform-only")


@dataclass(frozen=True)
class Form:
    """One way to write a phantom down."""

    orientation: str
    dtype: str
    form: str

    @property
    def possible(self) -> bool:
        """A qform is a rotation: it cannot express a shear."""
        return (self.orientation, self.form) != ("sheared", "qform-only")

    def __str__(self) -> str:
        return f"{self.orientation}-{self.dtype}-{self.form}"

    def file(self, **header: Any) -> bytes:
        """The whole file, unpacked; `header` goes into its header's fields, however wrong."""
        axes, tilt, shear = ORIENTATIONS[self.orientation]
        phantom = make_phantom(
            7, (48, 40, 32), (5.0, 5.0, 6.0), axes, tilt, shear, dtype=np.float32
        )
        hounsfield = np.asanyarray(phantom.volume.dataobj)
        fields: dict[str, Any] = {}
        if self.dtype == "scaled":
            voxels = np.rint((hounsfield + 1200) / 0.5).astype(np.uint16)
            fields = {"scl_slope": 0.5, "scl_inter": -1200}
        elif self.dtype == "uint16":  # as some converters cut off everything below water
            voxels = np.rint(hounsfield.clip(0)).astype(np.uint16)
        elif self.dtype.startswith("float"):
            voxels = hounsfield.astype(self.dtype)
        else:
            voxels = np.rint(hounsfield).astype(self.dtype)
        if self.form == "4-D":
            voxels = voxels[..., np.newaxis]
        if self.form == "qform-only":
            fields |= {"sform_code": 0}
        if self.orientation == "sheared":
            fields |= {"qform_code": 0}
        version = 2 if self.form == "NIfTI-2" else 1
        return nifti(voxels, phantom.volume.affine, version=version, **fields | header)


BATCH = 8  # volumes that are run by hand together

# Eight that hold each orientation, type and form; then what a pairwise choice lacks; then the rest.
# CI runs the first by both executors and the second by the warm one, `make test-all` every one by
# both.
FEW = [Form(list(ORIENTATIONS)[n % 5], TYPES[n % 6], FORMS[(2 * n + n // 5) % 5]) for n in range(8)]
PAIRS = [
    Form(*each)
    for each in AllPairs(
        [list(ORIENTATIONS), list(TYPES), list(FORMS)],
        filter_func=lambda row: len(row) < 3 or Form(*row).possible,
        previously_tested=[[form.orientation, form.dtype, form.form] for form in FEW],
    )
]
EVERY = [form for each in product(ORIENTATIONS, TYPES, FORMS) if (form := Form(*each)).possible]
ORDER = list(dict.fromkeys([*FEW, *PAIRS, *EVERY]))
IN_CI = {"warm": FEW, "fresh": FEW[:2]}


def run_by_hand(folder: Path, volumes: dict[str, bytes]) -> dict[str, Labels]:
    """Let a person's command line segment these volumes (files, unpacked), and read its results."""
    images = folder / "in" / "imagesTs"
    images.mkdir(parents=True)
    shutil.copy(DEMO, folder / "in" / "model.pth")
    for name, content in volumes.items():
        (images / f"{name}.nii.gz").write_bytes(gzip.compress(content, 1))
    bare = {k: v for k, v in os.environ.items() if not k.startswith("PFMS_")}
    ended = subprocess.run(
        [
            BY_HAND,
            *["--mode", "inference", "--device", "cpu", "--useModel", "model.pth", "in", "out"],
        ],
        cwd=folder,
        env={**bare, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0 or "index 20 is out of bounds" in ended.stderr, ended.stderr
    made = folder / "out" / "inference"
    return {name: spleen_channel(made / name / f"{name}_seg.nii.gz") for name in volumes}


def spleen_channel(onehot: Path) -> Labels:
    labels: Labels = np.asanyarray(nib.load(onehot).dataobj)[..., 1].astype(np.uint8)
    return labels


def labels_of(content: bytes) -> Labels:
    image = (
        nib.Nifti2Image if gzip.decompress(content)[:4] == b"\x1c\x02\0\0" else nib.Nifti1Image
    ).from_bytes(gzip.decompress(content))
    assert image.get_data_dtype() == np.uint8
    labels: Labels = np.asanyarray(image.dataobj)
    return labels


def same_place(content: bytes, sent: bytes) -> None:
    """The labels' header places them as the volume's places it."""
    got, was = gzip.decompress(content), sent
    assert got[:4] == was[:4]
    version = nib.Nifti2Header if was[:4] == b"\x1c\x02\0\0" else nib.Nifti1Header
    labels, volume = (version(each[: version.sizeof_hdr]) for each in (got, was))
    assert labels.get_data_shape() == volume.get_data_shape()[:3]
    for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(labels[name], volume[name], name)
    for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        np.testing.assert_array_equal(labels[name], volume[name], name)
    np.testing.assert_array_equal(labels["pixdim"][:4], volume["pixdim"][:4])
    np.testing.assert_array_equal(labels.get_best_affine(), volume.get_best_affine())


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> "ByHand":
    return ByHand(tmp_path_factory)


class ByHand:
    """What the plugin makes of each form, in batches."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._made: dict[str, Labels] = {}

    def labels(self, form: Form) -> Labels:
        if str(form) not in self._made:
            first = ORDER.index(form) // BATCH * BATCH
            batch = {str(each): each.file() for each in ORDER[first : first + BATCH]}
            self._made |= run_by_hand(self._folders.mktemp("by-hand"), batch)
        return self._made[str(form)]


@pytest.fixture(scope="module")
def servers(
    real_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """One of each executor."""
    fresh = start_real(tmp_path_factory.mktemp("fresh-server") / "workspace", "fresh")
    yield {"warm": real_server, "fresh": fresh}
    fresh.stop()


@pytest.mark.parametrize(
    ("form", "executor"),
    [
        pytest.param(
            form,
            executor,
            marks=[] if form in in_ci else pytest.mark.every,
            id=f"{form}-{executor}",
        )
        for executor, in_ci in IN_CI.items()
        for form in ORDER
    ],
)
def test_the_labels_are_the_spleen_channel_of_the_plugin_run_by_hand(
    servers: dict[str, Server], by_hand: ByHand, form: Form, executor: str
) -> None:
    sent = form.file()
    packed = sent if form.form == "nii" else gzip.compress(sent, 1)

    answer = servers[executor].infer(packed)

    assert answer.status_code == 200, answer.text
    assert servers[executor].job(answer.headers["x-pfms-job"])["executor"] == executor
    wanted = by_hand.labels(form)
    labels = labels_of(answer.content)
    assert labels.shape == wanted.shape == (48, 40, 32)
    np.testing.assert_array_equal(labels, wanted)
    same_place(answer.content, sent)
    if form.dtype != "uint16":  # which the network has not been shown
        assert wanted.sum() > 200


SHEARED = Form("sheared", "int16", "nii.gz")
OBLIQUE = Form("oblique", "int16", "nii.gz")
NO_QFORM: dict[str, Any] = {"qform_code": 0, "quatern_b": 0, "quatern_c": 0, "quatern_d": 0}
NO_QFORM |= {"qoffset_x": 0, "qoffset_y": 0, "qoffset_z": 0}
OTHER_PIXDIM = {"pixdim": [1, 5, 5, 6.5, 1, 1, 1, 1]}

# What is sent; what a person runs the plugin on, who would put the header right if it needs that.
ODD: dict[str, tuple[bytes, bytes]] = {
    "an sform that is not a number": (both := OBLIQUE.file(srow_y=[np.nan] * 4), both),
    "a tilted sform and no qform": (SHEARED.file(**NO_QFORM, **OTHER_PIXDIM), SHEARED.file()),
    "an oblique sform and no qform": (OBLIQUE.file(**NO_QFORM, **OTHER_PIXDIM), OBLIQUE.file()),
    "a qform of another spacing": (both := OBLIQUE.file(**OTHER_PIXDIM), both),
    "four axes and a qform of another spacing": (
        both := Form("oblique", "int16", "4-D").file(**OTHER_PIXDIM),
        both,
    ),
}


@pytest.mark.parametrize(
    "batch",
    [list(ODD)[:2], pytest.param(list(ODD)[2:], marks=pytest.mark.every)],
    ids=["two", "the others"],
)
def test_odd_headers_give_the_voxels_of_the_plugin_run_by_hand(
    real_server: Server, tmp_path: Path, batch: list[str]
) -> None:
    names = {what: f"odd-{number}" for number, what in enumerate(batch)}
    wanted = run_by_hand(tmp_path, {names[what]: ODD[what][1] for what in batch})
    for what in batch:
        sent = ODD[what][0]
        answer = real_server.infer(gzip.compress(sent, 1) + b"a tail")

        assert answer.status_code == 200, answer.text
        assert "last voxel" in answer.headers["x-pfms-warning"]
        np.testing.assert_array_equal(labels_of(answer.content), wanted[names[what]], what)
        assert wanted[names[what]].sum() > 200
        if what != "an sform that is not a number":
            same_place(answer.content, sent)


def test_what_runs_in_ci_has_each_orientation_type_and_form() -> None:
    assert {form.orientation for form in FEW} == set(ORIENTATIONS)
    assert {form.dtype for form in FEW} == set(TYPES)
    assert {form.form for form in FEW} == set(FORMS)
    assert all(form.possible for form in FEW)
    assert sorted(map(str, ORDER)) == sorted(map(str, EVERY))


PHANTOM: bytes = make_phantom(3, (48, 40, 32), (5.0, 5.0, 6.0)).volume.to_bytes()


@pytest.fixture(scope="module")
def segmented(real_server: Server) -> httpx.Response:
    """The answer to `PHANTOM`."""
    answer: httpx.Response = real_server.infer(PHANTOM)
    assert answer.status_code == 200, answer.text
    assert labels_of(answer.content).any()
    return answer


def test_a_volume_without_a_spleen_gives_an_empty_mask(real_server: Server) -> None:
    air = nifti(np.full((40, 40, 30), -1000, np.int16), np.diag([3, 3, 3, 1]))

    answer = real_server.infer(air)

    assert answer.status_code == 200, answer.text
    assert not labels_of(answer.content).any()
    job = real_server.job(answer.headers["x-pfms-job"])
    assert (job["state"], job["segmentation"]["spleen_voxels"]) == ("succeeded", 0)


def test_fewer_than_21_slices_succeed_with_a_warning_and_the_right_labels(
    real_server: Server, tmp_path: Path
) -> None:
    thin = make_phantom(3, (48, 40, 20), (5.0, 5.0, 9.0)).volume.to_bytes()

    answer = real_server.infer(thin)

    assert answer.status_code == 200, answer.text
    assert "fewer than 21 slices" in answer.headers["x-pfms-warning"]
    assert real_server.job(answer.headers["x-pfms-job"])["warnings"]
    labels = labels_of(answer.content)
    assert labels.any()
    np.testing.assert_array_equal(labels, run_by_hand(tmp_path, {"thin": thin})["thin"])


def test_command_sh_in_a_copy_of_the_folder_gives_the_same_voxels(
    real_server: Server, segmented: httpx.Response, tmp_path: Path
) -> None:
    folder = real_server.workspace / "jobs" / segmented.headers["x-pfms-job"]
    copy = tmp_path / "a copy elsewhere"
    shutil.copytree(folder, copy)
    for gone in ("output", "result"):
        shutil.rmtree(copy / gone)

    subprocess.run([copy / "command.sh", "again"], cwd=tmp_path, check=True, capture_output=True)

    again = spleen_channel(tmp_path / "again" / PLUGIN.outputs["onehot"].removeprefix("output/"))
    np.testing.assert_array_equal(again, labels_of(segmented.content))


WRAPS = """
import sys, torch
state = torch.load(sys.argv[1], weights_only=True)
state = {"module." + name: value.half() if value.is_floating_point() else value
         for name, value in state.items()}
torch.serialization.register_package(1, lambda storage: "cuda:0", lambda storage, at: None)
torch.save({"epoch": 7, "state_dict": state}, sys.argv[2])
"""


def test_weights_wrapped_halved_and_saved_on_a_gpu_segment_as_the_plain_ones(
    real_server: Server, segmented: httpx.Response, tmp_path: Path
) -> None:
    wrapped = tmp_path / "wrapped.pth"
    subprocess.run([sys.executable, "-W", "ignore", "-c", WRAPS, DEMO, wrapped], check=True)
    with wrapped.open("rb") as file:
        stored = real_server.http.post(
            "/spleenseg/modelpth", params={"modelID": "wrapped"}, files={"file": file}, timeout=120
        )
    assert stored.status_code == 200, stored.text

    answer = real_server.infer(PHANTOM, "wrapped")

    assert answer.status_code == 200, answer.text
    assert answer.content == segmented.content


def test_a_run_that_makes_logits_makes_the_same_labels(
    real_server: Server, segmented: httpx.Response
) -> None:
    answer = real_server.infer(PHANTOM, params={"resultant": "logits"})

    assert answer.status_code == 200, answer.text
    logits = image_of(answer.content)
    np.testing.assert_array_equal(logits.affine, np.eye(4))
    assert np.isfinite(logits.get_fdata()).all()
    job = real_server.job(answer.headers["x-pfms-job"])
    labels = real_server.http.get(f"/jobs/{job['id']}/result", params={"resultant": "labels"})
    assert labels.content == segmented.content


@pytest.mark.every
@pytest.mark.skipif(
    not (SHARED_DATA / "ct_abdomen_3mm.nii.gz").is_file(), reason="there is no ../shared/data"
)
def test_a_real_ct_is_segmented_as_by_hand(real_server: Server, tmp_path: Path) -> None:
    volume = (SHARED_DATA / "ct_abdomen_3mm.nii.gz").read_bytes()

    answer = real_server.infer(volume, timeout=300)

    assert answer.status_code == 200, answer.text
    wanted = run_by_hand(tmp_path, {"ct": gzip.decompress(volume)})["ct"]
    np.testing.assert_array_equal(labels_of(answer.content), wanted)
