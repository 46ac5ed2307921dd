"""DICOM in and out: series of synthetic CT images, in several directions, right and wrong."""

import json
import re
import shutil
import signal
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import nibabel as nib
import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from numpy.typing import NDArray
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

from pfms.commands.volumes import found
from pfms.local.dicom_seg import write_seg
from pfms.local.dicom_series import CannotConvert, Series, ct_series
from pfms.local.dicom_volume import Stack, stack_of
from tests import dicoms
from tests.command import finish, pfms, running
from tests.conftest import Server, StartServer, eventually, image_of, nifti_bytes
from tests.cutting import relay
from tests.dicoms import Phantom, hounsfield

DIRECTIONS = {
    "axial": dicoms.AXIAL,
    "prone": dicoms.HEAD_FIRST_PRONE,
    "feet first": dicoms.FEET_FIRST,
    "sagittal": dicoms.SAGITTAL,
    "coronal": dicoms.CORONAL,
    "oblique": dicoms.OBLIQUE,
}


def read(folder: Path, *wanted: str) -> list[Series]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return ct_series(files, wanted, lambda line: None)


def stack(folder: Path) -> Stack:
    (series,) = read(folder)
    return stack_of(series)


def expected(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.int32]:
    """What a NIfTI of a phantom has to hold, by where its affine says that each voxel is."""
    indices = np.moveaxis(np.indices(shape), 0, -1)
    ras = indices @ affine[:3, :3].T + affine[:3, 3]
    return hounsfield(ras * (-1, -1, 1))


# --- geometry and values -----------------------------------------------------------------------


@pytest.mark.parametrize("axes", DIRECTIONS.values(), ids=DIRECTIONS.keys())
def test_each_voxel_is_where_the_scanner_says(tmp_path: Path, axes: tuple[float, ...]) -> None:
    Phantom(axes).write(tmp_path)
    image = image_of(stack(tmp_path).nifti())
    voxels = np.asanyarray(image.dataobj)
    assert voxels.dtype == np.int16
    assert voxels.shape == dicoms.SIZE
    assert abs(voxels - expected(voxels.shape, image.affine)).max() <= 1  # it is rounded
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert (image.get_qform(coded=True)[1], image.get_sform(coded=True)[1]) == (1, 1)


def test_values_that_are_not_whole_or_large_are_floats(tmp_path: Path) -> None:
    Phantom(change={"RescaleSlope": "0.5"}).write(tmp_path / "half")
    large = {"BitsStored": 16, "HighBit": 15, "RescaleIntercept": "-2048"}
    Phantom(change=large).write(tmp_path / "large")
    half = np.asanyarray(image_of(stack(tmp_path / "half").nifti()).dataobj)
    image = image_of(stack(tmp_path / "large").nifti())
    voxels = np.asanyarray(image.dataobj)
    assert (half.dtype, voxels.dtype) == (np.float32, np.float32)
    assert abs(half - (expected(half.shape, image.affine) + 1024) / 2 + 1024).max() <= 0.5
    assert abs(voxels - expected(voxels.shape, image.affine) + 1024).max() <= 1


def test_a_series_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    Phantom().write(tmp_path)
    assert stack(tmp_path).nifti() == stack(tmp_path).nifti()


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_compressed_images_have_the_same_voxels(tmp_path: Path, syntax: uid.UID) -> None:
    phantom = Phantom(size=(18, 16, 2))
    for signed in (0, 1):
        phantom.change = {"PixelRepresentation": signed}
        plain, packed = tmp_path / f"plain{signed}", tmp_path / f"packed{signed}"
        for file in phantom.write(plain):
            compress(file, packed / file.name, syntax)
        assert stack(packed).nifti() == stack(plain).nifti()


def compress(source: Path, target: Path, syntax: uid.UID) -> None:
    """Write an image in another transfer syntax, with GDCM."""
    target.parent.mkdir(exist_ok=True)
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert dcmread(target).file_meta.TransferSyntaxUID == syntax


def enhanced(phantom: Phantom, file: Path) -> Path:
    """The images of a phantom in one file."""
    one = LegacyConvertedEnhancedCTImage(
        phantom.images(), phantom.uid, phantom.number or 0, generate_uid(), 1
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(file)
    return file


@pytest.mark.parametrize("axes", [dicoms.AXIAL, dicoms.OBLIQUE])
def test_an_enhanced_ct_is_the_same_volume(tmp_path: Path, axes: tuple[float, ...]) -> None:
    phantom = Phantom(axes)
    phantom.write(tmp_path / "many")
    enhanced(phantom, tmp_path / "one" / "ct.dcm")
    assert stack(tmp_path / "one").nifti() == stack(tmp_path / "many").nifti()


# --- what is no volume -------------------------------------------------------------------------


def without(*numbers: int) -> Callable[[list[Path]], None]:
    def remove(files: list[Path]) -> None:
        for number in numbers:
            files[number].unlink()

    return remove


def in_one(number: int, **attributes: Any) -> Callable[[list[Path]], None]:
    def change(files: list[Path]) -> None:
        image = dcmread(files[number])
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
        image.save_as(files[number])

    return change


def compressed(syntax: uid.UID) -> Callable[[list[Path]], None]:
    def change(files: list[Path]) -> None:
        image = dcmread(files[0])
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = encapsulate([b"pixels"])
        image.save_as(files[0])

    return change


def cut_off(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes()[:-40])


@pytest.mark.parametrize(
    ("phantom", "change", "problem"),
    [
        ({}, without(*range(1, 12)), "one slice only"),
        ({}, without(5), "about 1 slices are missing"),
        ({}, without(5, 6, 9), "about 3 slices are missing"),
        ({"shift": (0, 1.0, 0)}, None, "tilted by 14.0 degrees"),
        ({}, in_one(4, ImagePositionPatient=[0, 0, -5.0]), "unequal distances"),
        ({}, in_one(4, ImageOrientationPatient=list(dicoms.SAGITTAL)), "different directions"),
        ({}, in_one(4, PixelSpacing=[2.0, 2.0]), "distance between pixels"),
        ({}, in_one(4, Rows=8, Columns=36), "differ in size"),
        ({}, in_one(4, FrameOfReferenceUID="1.2.3"), "frames of reference"),
        ({"change": {"LossyImageCompression": "01"}}, None, "compressed with loss"),
        ({}, compressed(uid.JPEGExtended12Bit), "compressed with loss"),
        ({}, compressed(uid.HTJ2KLossless), "not supported: High-Throughput JPEG 2000"),
        ({}, compressed(uid.JPEG2000Lossless), "cannot be read"),
        ({}, cut_off, "cannot be read"),
        ({"change": {"RescaleSlope": None}}, None, "no RescaleSlope"),
        ({"change": {"ImagePositionPatient": None}}, None, "no ImagePositionPatient"),
        ({"change": {"BitsStored": None}}, None, "header of .* is damaged"),
        ({}, in_one(4, ImagePositionPatient=[0, 0]), "header of .* is damaged"),
        ({"change": {"RescaleType": "HU_MOD"}}, None, "no Hounsfield units, but HU_MOD"),
    ],
)
def test_what_is_no_volume_is_refused(
    tmp_path: Path,
    phantom: dict[str, Any],
    change: Callable[[list[Path]], None] | None,
    problem: str,
) -> None:
    files = Phantom(**phantom).write(tmp_path)
    if change is not None:
        change(files)
    with pytest.raises(CannotConvert, match=problem) as raised:
        stack(tmp_path).nifti()
    assert raised.value.remedy


def test_two_phases_in_one_series_are_refused(tmp_path: Path) -> None:
    phantom = Phantom()
    phantom.write(tmp_path / "early")
    phantom.write(tmp_path / "late")
    with pytest.raises(CannotConvert, match="12 of its 24 slices lie where another one does"):
        stack(tmp_path)


def test_copies_of_an_image_count_once(tmp_path: Path) -> None:
    files = Phantom().write(tmp_path)
    for file in files[:3]:
        shutil.copy(file, file.with_suffix(".copy"))
    assert stack(tmp_path).shape == dicoms.SIZE


def test_localizers_and_what_is_no_ct_are_skipped_with_a_line(tmp_path: Path) -> None:
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    Phantom(number=1, description="Topogram", size=(18, 16, 1), change=scout).write(tmp_path / "1")
    Phantom(number=2, description="T1", change={"SOPClassUID": uid.MRImageStorage}).write(
        tmp_path / "2"
    )
    phantom = Phantom(number=3)
    phantom.write(tmp_path / "3")
    Phantom(size=(18, 16, 1), change=scout, uid=phantom.uid).write(tmp_path / "3", name="scout{}")
    (tmp_path / "3" / "broken").write_bytes(bytes(128) + b"DICM" + b"\x08")
    said: list[str] = []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    (series,) = ct_series(files, (), said.append)
    assert (series.number, len(series.files)) == (3, 12)
    assert len(said) == 3
    for words in ("Topogram", "is a localizer"), ("T1", "is no CT"), ("broken", "left out"):
        assert any(all(word in line for word in words) for line in said), words


@pytest.mark.parametrize("word", ["uid", "abdomen VENOUS", "*venous*"])
def test_a_series_is_chosen_by_its_uid_or_description(tmp_path: Path, word: str) -> None:
    venous, arterial = Phantom(), Phantom(number=4, description="Abdomen arterial")
    venous.write(tmp_path / "a")
    arterial.write(tmp_path / "b")
    (series,) = read(tmp_path, venous.uid if word == "uid" else word)
    assert series.uid == venous.uid
    with pytest.raises(ValueError, match="but there are: series 3, Abdomen venous"):
        read(tmp_path, "thorax")


# --- DICOM SEG ---------------------------------------------------------------------------------


def labels_of(made_of: Stack, path: Path) -> NDArray[np.bool_]:
    """Write labels on the grid of a series; they are returned, too. Some slices have none."""
    voxels = np.random.default_rng(1).random(made_of.shape) < 0.3
    voxels[..., :2] = voxels[..., 6] = False
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), made_of.affine), path)
    return voxels


def check_with_dciodvfy(path: Path) -> None:
    """Let another program judge a file, if it is there."""
    if program := shutil.which("dciodvfy"):
        said = subprocess.run([program, path], capture_output=True, text=True, check=False)
        assert "Error" not in said.stdout + said.stderr, said


@pytest.mark.parametrize("axes", DIRECTIONS.values(), ids=DIRECTIONS.keys())
@pytest.mark.parametrize("kind", ["single", pytest.param("enhanced", marks=pytest.mark.every)])
def test_a_seg_has_each_voxel_on_its_image(
    tmp_path: Path, axes: tuple[float, ...], kind: str
) -> None:
    phantom = Phantom(axes)
    if kind == "single":
        phantom.write(tmp_path / "ct")
    else:
        enhanced(phantom, tmp_path / "ct" / "one")
    made_of = stack(tmp_path / "ct")
    mask = labels_of(made_of, tmp_path / "labels.nii.gz")
    target = tmp_path / "seg.dcm"
    assert write_seg(made_of, tmp_path / "labels.nii.gz", target, "demo", None) == mask.sum()
    seg = dcmread(target)
    planes = {
        (dcmread(plane.file).SOPInstanceUID, plane.frame + 1): n
        for n, plane in enumerate(made_of.planes)
    }
    seen = np.zeros(made_of.shape, np.bool_)
    for pixels, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        number = planes[source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber", 1)]
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(position, made_of.planes[number].position, atol=1e-4)
        seen[..., number] = pixels.T
    assert (seen == mask).all()
    assert [path.name for path in tmp_path.glob("*.dcm*")] == ["seg.dcm"]
    check_with_dciodvfy(target)


def test_a_seg_says_what_it_is_and_how_it_was_made(tmp_path: Path) -> None:
    phantom = Phantom(change={"PatientBirthDate": None, "AccessionNumber": None})
    phantom.write(tmp_path / "ct")
    made_of = stack(tmp_path / "ct")
    labels_of(made_of, tmp_path / "labels.nii.gz")
    versions = {"spleenseg": "1.2.44"}
    job = {"id": "the-job", "model": {"sha256": "ab" * 32}, "versions": versions}
    write_seg(made_of, tmp_path / "labels.nii.gz", tmp_path / "seg.dcm", "liver-9", job)
    seg = dcmread(tmp_path / "seg.dcm")
    (segment,) = seg.SegmentSequence
    (kind,), (category,) = (
        segment.SegmentedPropertyTypeCodeSequence,
        segment.SegmentedPropertyCategoryCodeSequence,
    )
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("78961009", "SCT")
    assert (category.CodeValue, category.CodingSchemeDesignator) == ("91723000", "SCT")
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("spleenseg", "1.2.44")
    for word in ("liver-9", "ab" * 32, "the-job"):
        assert word in algorithm.AlgorithmParameters
    assert (seg.SegmentationType, seg.Modality, seg.SeriesNumber) == ("BINARY", "SEG", 1003)
    assert (seg.StudyInstanceUID, seg.PatientName) == (phantom.study, dicoms.NAME)
    assert seg.SeriesInstanceUID != phantom.uid
    assert seg.FrameOfReferenceUID == phantom.space
    check_with_dciodvfy(tmp_path / "seg.dcm")


def test_labels_on_another_grid_are_no_seg(tmp_path: Path) -> None:
    Phantom().write(tmp_path / "ct")
    nib.save(nib.Nifti1Image(np.ones(dicoms.SIZE, np.uint8), np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(CannotConvert, match="not on the grid"):
        write_seg(stack(tmp_path / "ct"), tmp_path / "x.nii.gz", tmp_path / "x.dcm", "demo", None)
    assert not (tmp_path / "x.dcm").exists()


# --- the command -------------------------------------------------------------------------------

LINE = ("infer", "doe_jane", "--model", "demo", "--out", "seg")


def infer(server: Server, folder: Path, *options: str, code: int = 0) -> list[dict[str, Any]]:
    """The rows of the table."""
    done = pfms(*LINE, "--json", *options, cwd=folder, code=code, server=server.url)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return rows


def check_labels(path: Path) -> None:
    """Check that what the fake plugin takes for the spleen is where it is in the phantom."""
    labels = image_of(path.read_bytes())
    spleen = expected(labels.shape, labels.affine) > 0
    assert (spleen != (labels.get_fdata() == 1)).mean() < 0.01  # where rounding decides


def test_series_are_segmented_with_the_files_beside_them_and_those_that_are_none(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "doe_jane"
    Phantom(number=3).write(folder / "scan", name="3-{}")
    Phantom(dicoms.SAGITTAL, number=4).write(folder / "scan", name="4-{}")
    Phantom(number=5, shift=(0, 2, 0)).write(folder / "tilted")
    (folder / "ct.nii.gz").write_bytes(nifti_bytes())
    rows = infer(server, tmp_path, code=1)
    outputs = {row["file"]: row["output"] for row in rows}
    assert outputs == {
        "doe_jane/ct.nii.gz": "seg/ct-spleen.nii.gz",
        "doe_jane/scan, series 3": "seg/scan-series3-spleen.nii.gz",
        "doe_jane/scan, series 4": "seg/scan-series4-spleen.nii.gz",
        "doe_jane/tilted, series 5": "seg/tilted-series5-spleen.nii.gz",
    }
    for series in (3, 4):
        check_labels(tmp_path / f"seg/scan-series{series}-spleen.nii.gz")
    assert [row["error"].partition(":")[0] for row in rows] == ["", "", "", "dicom"]
    assert "dcm2niix" in rows[3]["error"]


def test_a_series_is_never_run_twice_and_its_seg_is_made_later(
    server: Server, tmp_path: Path
) -> None:
    Phantom().write(tmp_path / "doe_jane")
    (first,) = infer(server, tmp_path, "--skip-existing")
    (again,) = infer(server, tmp_path, "--skip-existing", "--dicom-seg")
    (skipped,) = infer(server, tmp_path, "--skip-existing", "--dicom-seg")
    assert (again["job"], skipped["job"]) == (first["job"], "")
    results = tmp_path / "seg"
    assert sorted(path.name for path in results.iterdir()) == [
        "doe_jane-series3-spleen.dcm",
        "doe_jane-series3-spleen.nii.gz",
    ]
    check_labels(results / "doe_jane-series3-spleen.nii.gz")
    check_with_dciodvfy(results / "doe_jane-series3-spleen.dcm")


def test_nothing_but_voxels_and_their_place_is_sent(server: Server, tmp_path: Path) -> None:
    phantom = Phantom()
    phantom.write(tmp_path / "doe_jane")
    with relay(server.url) as between:
        pfms(*LINE, "--skip-existing", "--dicom-seg", cwd=tmp_path, server=between.url)
        sent = bytes(between.sent)
    (volume,) = (
        zlib.decompressobj(31).decompress(sent[start.start() :])
        for start in re.finditer(rb"\x1f\x8b\x08", sent)
    )
    header, everything = volume[:352], (sent + volume).lower()
    assert b'filename="upload"' in everything
    secrets = (dicoms.NAME, "doe", "jane", dicoms.PATIENT_ID, dicoms.ACCESSION, "19700101")
    for secret in (*secrets, phantom.uid, phantom.study, phantom.space, "venous", "series"):
        assert secret.lower().encode() not in everything, secret
    texts = {"data_type": (4, 14), "db_name": (14, 32), "descrip and aux_file": (148, 252)}
    for name, (first, end) in {**texts, "intent_name": (328, 344)}.items():
        assert header[first:end].strip(b"\0") == b"", name
    assert header[348:352] == bytes(4), "there is an extension"


@pytest.mark.every  # seconds: processes of its own
def test_one_series_goes_to_the_file_that_is_named(server: Server, tmp_path: Path) -> None:
    Phantom().write(tmp_path / "doe_jane")
    enhanced(Phantom(), tmp_path / "one.dcm")
    line = ("--model", "demo", "--dicom-seg", "-o")
    for source, target in (("doe_jane", "spleen.nii.gz"), ("one.dcm", "other.nii.gz")):
        done = pfms("infer", source, *line, target, cwd=tmp_path, server=server.url)
        assert done.stdout.startswith(f"{target}: spleen ")
        assert done.stderr == ""
        check_labels(tmp_path / target)
        assert (tmp_path / target).with_suffix("").with_suffix(".dcm").exists()


@pytest.mark.every  # seconds: processes of its own
def test_an_empty_seg_is_valid_and_said_to_be_empty(
    start_server: StartServer, tmp_path: Path
) -> None:
    Phantom().write(tmp_path / "doe_jane")
    (row,) = infer(start_server("empty.py"), tmp_path, "--dicom-seg")
    assert "the DICOM SEG is empty" in row["warnings"]
    path = tmp_path / "seg" / "doe_jane-series3-spleen.dcm"
    assert not dcmread(path).pixel_array.any()
    check_with_dciodvfy(path)


@pytest.mark.every  # seconds: processes of its own
def test_ctrl_c_leaves_nothing_behind(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("hangs.py")
    Phantom().write(tmp_path / "doe_jane")
    with running(*LINE, "--dicom-seg", cwd=tmp_path, server=server.url) as process:
        eventually(lambda: server.http.get("/jobs?state=running").json()["jobs"])
        process.send_signal(signal.SIGINT)
        finish(process, 130)
    assert list((tmp_path / "seg").iterdir()) == []
    eventually(lambda: server.http.get("/jobs?state=cancelled").json()["jobs"])


@pytest.mark.every  # seconds: a process for each
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["doe_jane", "ct.nii.gz", "--dicom-seg"], "ct.nii.gz is not DICOM"),
        (["doe_jane", "--dicom-seg", "--resultant", "logits"], "--dicom-seg takes labels"),
        (["ct.nii.gz", "--series", "x"], "there are no DICOM files"),
        (["doe_jane", "--series", "x"], "no DICOM series is x, but there are: series 3, Abdomen"),
        (["doe_jane", "ct.nii.gz", "-o", "x.nii.gz"], "x.nii.gz is one file for 2 results"),
        (["scout"], "no CT series among these"),
    ],
)
def test_what_makes_no_sense_is_2(tmp_path: Path, options: list[str], problem: str) -> None:
    Phantom(size=(18, 16, 2)).write(tmp_path / "doe_jane")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    Phantom(size=(18, 16, 1), change=scout).write(tmp_path / "scout")
    (tmp_path / "ct.nii.gz").write_bytes(nifti_bytes())
    line = ("infer", *options, "--model", "demo")
    said = pfms(*line, cwd=tmp_path, code=2, server="http://127.0.0.1:1").stderr
    assert problem in said.splitlines()[-1]


def test_series_that_would_share_a_result_are_told_apart(tmp_path: Path) -> None:
    for n in range(2):
        Phantom(size=(18, 16, 2)).write(tmp_path / "ct", name=f"{n}-{{}}")
    targets = [task.target for task in found([str(tmp_path)], Path("seg"), "labels")]
    assert len(set(targets)) == 2
    assert all(path.name.endswith("ct-series3-spleen.nii.gz") for path in targets)


def test_results_beside_the_images_are_no_volumes(tmp_path: Path) -> None:
    Phantom(size=(18, 16, 2)).write(tmp_path / "ct")
    (task,) = found([str(tmp_path)], tmp_path, "labels")
    for name in (task.target.name, "ct-series3-onehot.nii.gz"):
        (tmp_path / name).write_bytes(nifti_bytes())
    assert found([str(tmp_path)], tmp_path, "labels") == [task]
