"""What people send in place of a NIfTI volume is named as they would name it, with a way out."""

import gzip
import io
import json
import random
import tarfile
import time
import zipfile
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest

from pfms.errors import NotANifti, RequestError
from tests.conftest import Server
from tests.niftis import LIMITS, SECRET, admit, ct, nifti, put, refused
from tests.refused import INFER, check

VOLUME = nifti(ct((20, 20, 20)))
PACKED = gzip.compress(VOLUME)
NAME = SECRET.decode()


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
    length = len(value).to_bytes(2 if kind else 4, "little")
    return tag + kind + length + value


def dataset(explicit: bool = True) -> bytes:
    kinds = (b"UI", b"PN") if explicit else (b"", b"")
    uid = element(8, 0x16, kinds[0], b"1.2.840.10008.5.1.4.1.1.2\0")
    names = element(8, 0x90, kinds[1], b"REFERRER") + element(16, 16, kinds[1], SECRET)
    return uid + names + bytes(4000)


DICOM = bytes(128) + b"DICM" + element(2, 16, b"UI", b"1.2.840.10008.1.2.1\0") + dataset()


def zipped(*entries: tuple[str, bytes], streamed: bool = False, packed: bool = True) -> bytes:
    class Pipe(io.BytesIO):
        """A file that cannot be gone back in: zipfile then writes the sizes behind the entries."""

        def seekable(self) -> bool:
            return not streamed

        def tell(self) -> int:
            if streamed:
                raise OSError
            return super().tell()

    whole = Pipe()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(whole, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return whole.getvalue()


def tarred(*entries: tuple[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        folder = tarfile.TarInfo("CT")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


SLICES = [(f"CT/{NAME}/IM{number:04}", DICOM) for number in range(3)]
JUNK = ("CT/.DS_Store", bytes(6148))
MGH = np.array([1, 20, 20, 20, 1, 4, 0], ">i4").tobytes() + bytes(20_000)
HTML = f"<!DOCTYPE html>\n<html><body>Sign in, {NAME}</body></html>".encode()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 123\n"
META = f"ObjectType = Image\nNDims = 3\nComment = {NAME}\nElementDataFile = LOCAL\n".encode()
FORM = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + PACKED + b"\r\n--x--\r\n"

# What was sent, what it is called, and a word of the remedy.
OTHERS: dict[str, tuple[bytes, str, str]] = {
    "zip of DICOM": (zipped(JUNK, *SLICES), "a zip archive of DICOM files", "dcm2niix"),
    "zip of DICOM, streamed": (zipped(JUNK, *SLICES, streamed=True), "of DICOM files", "dcm2niix"),
    "zip of DICOM, stored": (zipped(*SLICES, packed=False), "of DICOM files", "dcm2niix"),
    "zip of DICOM by its names": (zipped(("a.dcm", b"")), "of DICOM files", "dcm2niix"),
    "zip of bare DICOM": (zipped(("IM0", dataset(False))), "of DICOM files", "dcm2niix"),
    "zip of NIfTI": (zipped((f"{NAME}.nii", VOLUME)), "a zip archive,", "Unzip it and send"),
    "zip of something": (zipped(("readme", b"text")), "a zip archive,", "Unzip it and send"),
    "zip cut off": (zipped(*SLICES)[:40], "a zip archive", "Unzip"),
    "zip of nothing known": (b"PK\x03\x04" + bytes(400), "a zip archive", "Unzip"),
    "weights": (zipped(("model/data.pkl", b"\x80\x02}.")), "weights", "/spleenseg/modelpth"),
    "weights of old": (b"\x80\x02\x8a\x0al\xfc\x9cF" + bytes(99), "weights", "/spleenseg/modelpth"),
    "npz": (zipped(("vol.npy", b"\x93NUMPY")), "NumPy", "nibabel"),
    "tar of DICOM": (tarred(*SLICES), "a tar archive of DICOM files", "dcm2niix"),
    "tar of NIfTI": (tarred((f"{NAME}.nii.gz", PACKED)), "a tar archive,", "send the NIfTI"),
    "DICOM": (DICOM, "a DICOM file,", "dcm2niix"),
    "DICOM without preamble": (dataset(), "a DICOM file without its preamble", "dcm2niix"),
    "DICOM, implicit": (dataset(False), "a DICOM file without its preamble", "dcm2niix"),
    "base64": (b64encode(PACKED), "base64 text", "base64 -d"),
    "base64 in lines": (b"\n".join([b64encode(PACKED)[:76]] * 40), "base64 text", "base64 -d"),
    "base64 of a plain volume": (b64encode(VOLUME), "base64 text", "base64 -d"),
    "data URL": (b"data:application/gzip;base64," + b64encode(PACKED), "base64", "base64 -d"),
    "base64 in quotes": (b'"' + b64encode(PACKED) + b'"', "base64", "base64 -d"),
    "printed bytes": (repr(PACKED).encode(), "bytes printed as text", "binary mode"),
    "printed array": (",".join(map(str, PACKED)).encode(), "bytes printed", "binary mode"),
    "hexadecimal": (PACKED.hex().encode(), "bytes printed as text", "binary mode"),
    "gzip as text": (PACKED.decode(errors="replace").encode(), "read as text", "binary mode"),
    "gzip as Latin-1": (PACKED.decode("latin-1").encode(), "read as text", "binary mode"),
    "NIfTI as text": (VOLUME.decode(errors="replace").encode(), "read as text", "binary mode"),
    "UTF-16": ("some text".encode("utf-16"), "UTF-16", "binary mode"),
    "name": (b"ct.nii.gz", "the name of a file", "-F file=@ct.nii.gz"),
    "name in capitals": (f"{NAME}.NII".encode(), "the name of a file", "@"),
    "name with an @": (b'"@ct.nii.gz"', "the name of a file", "--form-string"),
    "path": (b"/home/me/scan 1/ct\n", "the name of a file", "@"),
    "path of Windows": (rb"C:\scans\ct.nii.gz", "the name of a file", "@"),
    "address": (b"https://host.example/ct.nii.gz", "the address of a file", "Download"),
    "JavaScript object": (b"[object File]", "JavaScript", "FormData"),
    "HTML": (HTML, "a web page (HTML)", "login"),
    "HTML with a mark": (b"\xef\xbb\xbf\n" + HTML.lower(), "a web page (HTML)", "login"),
    "XML": (b'<?xml version="1.0"?><Error/>', "XML", "curl"),
    "JSON": (json.dumps({"file": b64encode(PACKED).decode()}).encode(), "JSON", "multipart"),
    "Git LFS": (LFS, "a Git LFS pointer", "git lfs pull"),
    "git-annex": (
        b"../../.git/annex/objects/xx/yy/SHA256E-s1--ab.nii.gz",
        "git-annex",
        "git annex",
    ),
    "text": (f"hello {NAME}\n".encode(), "text,", "-F file=@"),
    "text in German": ("Größe".encode(), "text,", "-F file=@"),
    "form in a form": (FORM, "a form inside the form's field", "library"),
    "HTTP answer": (b"HTTP/1.1 200 OK\r\n\r\n" + PACKED, "HTTP response", "omit -i"),
    "MGZ": (MGH, "FreeSurfer", "mri_convert"),
    "MetaImage": (META + bytes(9000), "a MetaImage file", "SimpleITK"),
    "MetaImage header": (META.replace(b"LOCAL", b"ct.raw"), "a MetaImage file", "SimpleITK"),
    "NRRD": (b"NRRD0004\n# by 3D Slicer\n" + bytes(400), "NRRD", "SimpleITK"),
    "MINC": (b"\x89HDF\r\n\x1a\n" + bytes(400), "MINC", "mnc2nii"),
    "Analyze": (nifti(ct(), magic=b"")[:348], "Analyze", "nibabel.load('NAME.hdr')"),
    "pair": (nifti(ct(), magic=b"ni1")[:352], "pair", "nibabel.load('NAME.hdr')"),
    "voxels of a pair": (ct((30, 30, 30)).tobytes(), "neither the signature", ".hdr and .img"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(500), "PNG", "NIfTI"),
    "bzip2": (b"BZh9" + bytes(500), "bzip2", "bunzip2"),
}


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("what", OTHERS)
def test_a_file_that_is_not_nifti_is_named_with_a_way_out(
    tmp_path: Path, what: str, packed: bool
) -> None:
    data, named, remedy = OTHERS[what]
    error = refused(put(tmp_path / "ct.nii.gz", data, packed=packed), NotANifti)
    assert named in error.detail
    assert remedy in error.remedy


def test_an_empty_gzip_file_says_so(tmp_path: Path) -> None:
    refused(put(tmp_path / "upload", b""), NotANifti, LIMITS, "empty")


def test_whatever_is_sent_is_refused_and_quickly(tmp_path: Path) -> None:
    """Patterns that look at a whole text must not take longer the longer it is, squared."""
    dice = random.Random(5)
    long = 4 << 20
    texts = ["'", "@", '"', ".nii", "A", "31,139,8,", "{", "/", "\\", " ", "<", "b'\\", "\n", "--"]
    starts = [b"PK\x03\x04", b"", b"x" * 257 + b"ustar", b"H4sI", b"\x08\0\x10\0", b"\0\0\0\1"]
    sent = [text.encode() * (long // len(text)) for text in texts]
    sent += [start + dice.randbytes(100_000) for start in starts]
    sent += [b"PK\x03\x04" * 30_000, b"PK\x03\x04" + bytes(4) + b"\x08\0" + bytes(18) + bytes(9)]
    upload = tmp_path / "upload"
    for data in sent:
        began = time.process_time()
        with pytest.raises(RequestError):
            admit(put(upload, data, packed=False))
        assert time.process_time() - began < 1


def test_a_file_name_sent_without_its_at_sign_is_recognised(server: Server) -> None:
    answer = server.http.post(
        INFER, params={"modelID": "demo"}, files={"file": ("upload", b"ct.nii.gz")}
    )
    problem = check(answer, 422, "not-a-nifti", server)
    assert "the name of a file" in problem["detail"]
    assert "file=@ct.nii.gz" in problem["remedy"]
