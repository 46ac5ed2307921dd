"""The adaptations of the steps around the network, one by one, against MONAI without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that uses torch, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    line = [sys.executable, "-W", "ignore", "-c", program]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)


SAMPLING = """
import itertools
import numpy as np, torch
import monai.transforms
from monai.data import MetaTensor
from monai.transforms.spatial import functional
from pfms.programs import warm_volumes

own = functional.AffineTransform
warm_volumes.sample_by_rows()
ours = functional.AffineTransform
assert ours is not own
by_torch = []
fallback = own.forward
own.forward = lambda *given, **named: (by_torch.append(1), fallback(*given, **named))[1]

def resampled(transform, volume, affine, wanted, size):
    functional.AffineTransform = transform
    image = MetaTensor(volume.clone(), affine=affine)
    resample = monai.transforms.SpatialResample(dtype=torch.float64, padding_mode="border")
    out = resample(image, dst_affine=wanted, spatial_size=size)
    back = resample.inverse(out)
    return [(each.as_tensor().contiguous().numpy(), each.affine.numpy()) for each in (out, back)]

generator = torch.Generator().manual_seed(3)
def numbers(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)

def affines():
    yield torch.diag(torch.tensor([0.8, 0.8, 3.0, 1.0], dtype=torch.float64))
    yield torch.diag(torch.tensor([-0.7, 1.1, -2.9, 1.0], dtype=torch.float64))
    moved = torch.diag(torch.tensor([1.5, 1.5, 2.0, 1.0], dtype=torch.float64))
    moved[:3, 3] = numbers(3) * 20
    yield moved
    for scale in (1e-17, 1e-3, 0.3):  # oblique, sheared
        yield moved + torch.nn.functional.pad(numbers(3, 3) * scale, (0, 1, 0, 1))

target = torch.diag(torch.tensor([1.5, 1.5, 2.0, 1.0], dtype=torch.float64))
for affine, shape, size in itertools.product(
    affines(), ((1, 9, 8, 7), (2, 40, 33, 21), (3, 5, 1, 30)), ((11, 6, 9), (1, 2, 70), (64, 5, 33))
):
    volume = numbers(*shape).float()
    volume[:, 0] = -0.0
    volume[0, -1, 0, 0], volume[0, 2, 0, 3], volume[0, 3, 0, 4] = np.nan, np.inf, -np.inf
    by_torch.clear()
    expected = resampled(own, volume, affine, target, size)
    assert by_torch
    by_torch.clear()
    found = resampled(ours, volume, affine, target, size)
    assert not by_torch
    for (one, its_affine), (other, its_other) in zip(expected, found):
        nan = np.isnan(one)
        assert one.dtype == other.dtype == np.float32
        assert np.array_equal(nan, np.isnan(other))
        assert np.array_equal(one.view(np.int32)[~nan], other.view(np.int32)[~nan])
        assert np.array_equal(its_affine, its_other)

# what it is not made for is left to torch
for given in ({"mode": "nearest"}, {"padding_mode": "zeros"}, {"dtype": torch.float32}):
    functional.AffineTransform = ours
    by_torch.clear()
    whole = {"dtype": torch.float64, "padding_mode": "border", **given}
    resample = monai.transforms.SpatialResample(**whole)
    resample(MetaTensor(numbers(1, 4, 5, 6).float()), dst_affine=target, spatial_size=(3, 4, 5))
    assert by_torch, given

# and everything, where torch rounds differently
sample = torch.nn.functional.grid_sample
torch.nn.functional.grid_sample = lambda *given, **named: sample(*given, **named) * (1 + 1e-6)
by_torch.clear()
resampled(ours, volume, affine, target, size)
assert by_torch
print("all")
"""


def test_a_volume_is_sampled_on_another_grid_to_the_bit_as_by_torch(tmp_path: Path) -> None:
    done = run(SAMPLING, tmp_path)
    assert done.stdout == "all\n", done.stderr
    assert done.stderr.count("this machine's torch rounds in another way") == 2  # there and back


READING = """
import nibabel as nib, numpy as np
from monai.transforms import LoadImage
from monai.data.image_reader import NibabelReader
from pfms.programs import warm_volumes

warm_kernels = warm_volumes.compiled_loops()

numbers = np.random.default_rng(1).normal(0, 3000, (37, 70, 33))
files = []
for name in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64", ">i2"):
    for shape in ((37, 70, 33), (37, 70, 33, 1), (70, 37 * 33)):
        kept = np.asfortranarray(numbers.astype(name)).reshape(shape, order="F")
        for slope in (None, 2.5):
            header = nib.Nifti1Header(endianness=">" if name == ">i2" else "<")
            image = nib.Nifti1Image(kept, np.eye(4), header, dtype=kept.dtype)
            if slope:
                image.header.set_slope_inter(slope, -7)
            files.append(f"{len(files)}.nii")
            nib.save(image, files[-1])
wanted = (np.float32, np.float64, np.int16)
expected = [[LoadImage(dtype=dtype)(file) for dtype in wanted] for file in files]
calls = []
compiled = warm_kernels.as_float32
warm_kernels.as_float32 = lambda *given: (calls.append(1), compiled(*given))[1]
warm_volumes.read_as_float32()
for file, ones in zip(files, expected):
    for dtype, one in zip(wanted, ones):
        before = len(calls)
        other = LoadImage(dtype=dtype)(file)
        assert dtype is np.float32 or len(calls) == before
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.numpy().tobytes() == other.numpy().tobytes(), (file, dtype)
        assert str(one.meta) == str(other.meta)
assert len(calls) >= 2 * (9 + 4)  # two slabs of all that is scaled, and of four types as they are
print("all")
"""


def test_a_volume_of_any_type_is_read_as_by_monai(tmp_path: Path) -> None:
    done = run(READING, tmp_path)
    assert done.stdout == "all\n", done.stderr


LABELS = """
import nibabel as nib, numpy as np, torch
from monai.data import MetaTensor
from monai.transforms import AsDiscrete, SaveImage
from pfms.programs import warm_volumes

warm_kernels = warm_volumes.compiled_loops()

calls = []
compiled = warm_kernels.one_hot_of_largest
warm_kernels.one_hot_of_largest = lambda *given: (calls.append(1), compiled(*given))[1]
generator = torch.Generator().manual_seed(5)

def scores(*shape):
    made = torch.randint(-2, 3, shape, generator=generator).float()  # with many equal values
    made[0, 0, 0], made[-1, -1, 0], made[:, 1, 1, 0] = np.nan, np.nan, np.nan
    made[0, 1, 0, 0], made[1, 1, 0, 0] = 0.0, -0.0
    return MetaTensor(made, affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))

given = [scores(2, 41, 33, 70), scores(2, 2, 2, 1), scores(3, 33, 2, 64), scores(5, 4, 40, 9)]
def made(folder):
    found = []
    for number, each in enumerate(given):
        count = each.shape[0]
        labels = AsDiscrete(argmax=True, to_onehot=count)(each)
        save = SaveImage(output_dir=folder, output_postfix=str(number), separate_folder=False,
                         resample=False, print_log=False)
        labels.meta["filename_or_obj"] = "scores.nii.gz"
        save(labels)
        file = nib.load(f"{folder}/scores_{number}.nii.gz")
        voxels = np.asanyarray(file.dataobj)
        found.append((labels.shape, labels.dtype, labels.numpy().tobytes(), str(labels.affine),
                      voxels.tobytes(), file.header.binaryblock))
        found += [AsDiscrete(argmax=True)(each), AsDiscrete(threshold=0.5)(each),
                  AsDiscrete(argmax=True, to_onehot=count + 1)(each),
                  AsDiscrete()(each, argmax=True, to_onehot=count),
                  AsDiscrete(argmax=True, to_onehot=count, dtype=torch.uint8)(each)]
    return found

expected = made("own")
warm_volumes.one_hot_in_one_pass()
found = made("ours")
assert len(calls) >= 2 * len(given), calls
for one, other in zip(expected, found, strict=True):
    if isinstance(one, tuple):
        assert one == other
    else:
        assert one.dtype == other.dtype and torch.equal(one, other)
print("all")
"""


def test_a_label_map_and_its_file_are_made_as_by_monai(tmp_path: Path) -> None:
    done = run(LABELS, tmp_path)
    assert done.stdout == "all\n", done.stderr


SAVING = """
import os, sys, threading
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage
from monai.transforms.io import array
from spleenseg.plotting import plotting
from pfms.programs import warm_volumes

threads = []
own = array.SaveImage.__call__
def noted(*given):
    threads.append(threading.current_thread())
    return own(*given)
array.SaveImage.__call__ = noted
warm_volumes.save_beside_picture()
labels = MetaTensor(torch.zeros(2, 30, 30, int(sys.argv[1])))
labels.meta["filename_or_obj"] = "ct.nii.gz"
saved = SaveImage(output_dir=sys.argv[2], separate_folder=False, resample=False)(labels)
assert saved is labels
try:
    plotting.plot_infer(labels[1], labels, "1", "picture.png")
finally:
    assert threads == [thread for thread in threads if thread is not threading.main_thread()] != []
print("all")
"""


@pytest.mark.parametrize(
    ("slices", "folder", "fault"),
    [("25", "out", ""), ("5", "out", "IndexError"), ("25", "file", "FileExistsError")],
    ids=["well", "too few slices for the picture", "the folder cannot be made"],
)
def test_a_label_map_is_written_beside_the_picture_and_no_fault_is_lost(
    tmp_path: Path, slices: str, folder: str, fault: str
) -> None:
    (tmp_path / "file").write_text("")
    program = SAVING.replace("sys.argv[1]", repr(slices)).replace("sys.argv[2]", repr(folder))
    done = run(program, tmp_path)
    assert (done.returncode == 0) == (not fault), done.stderr
    assert fault in done.stderr
    assert (tmp_path / "out" / "ct_trans.nii.gz").is_file() == (folder == "out")
    assert (tmp_path / "picture.png").is_file() == (slices == "25")
