"""What identifies a patient, and what identifies a caller, stays where it has to be."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfms.storage.inside import unlink
from tests.conftest import Server, StartServer, eventually
from tests.niftis import nifti
from tests.wire import FORM, Wire, form, part

SECRET = b"DOE^JANE"
TOKEN = b"a-token-that-nobody-may-see"
HEADERS = {
    "Authorization": f"Bearer {TOKEN.decode()}",
    "Cookie": f"token={TOKEN.decode()}",
    "User-Agent": SECRET.decode(),
}


def volume(plain: bool) -> bytes:
    """A CT with the secret in every text that a NIfTI file has, and in its gzip header."""
    text = SECRET + b" 1970-01-01"
    size = -(-(8 + len(text)) // 16) * 16
    extension = b"\1\0\0\0" + struct.pack("<ii", size, 6) + text.ljust(size - 8, b"\0")
    voxels = np.full((24, 20, 24), -1000, "int16")
    voxels[8:16, 8:16, 8:16] = 50
    fields: dict[str, Any] = dict.fromkeys(
        ("descrip", "aux_file", "intent_name", "db_name"), SECRET
    )
    content = nifti(voxels, np.diag([3.0, 3, 3, 1]), **fields)
    if plain:
        return nifti(voxels, np.diag([3.0, 3, 3, 1]), between=extension, **fields)
    memory = io.BytesIO()
    with gzip.GzipFile(f"{SECRET.decode()}.nii", "wb", fileobj=memory) as file:
        file.write(content)
    return memory.getvalue()


def send(server: Server, content: bytes, target: str = "NIfTIinference?modelID=demo") -> int:
    """Upload a file whose name is the secret, too."""
    name = SECRET.decode()
    disposition = f'form-data; name="file"; filename="{name}.nii.gz"'
    body = form(part(content, disposition, f"X-Patient: {name}\r\n"))
    with Wire(server.url) as wire:
        target = f"/api/v1/spleenseg/{target}"
        wire.head("POST", target, Content_Type=FORM, Content_Length=len(body), **HEADERS)
        wire.send(body)
        return wire.answer().status


def unpacked(content: bytes) -> Iterator[bytes]:
    """The content as it is, and as it was before it was compressed, if it was."""
    yield content
    if content[:2] == b"\x1f\x8b":
        # Without the end, which a plugin that was stopped may not have written.
        yield zlib.decompressobj(31).decompress(content)
    elif content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from unpacked(archive.read(name))


def places_of(what: bytes, folder: Path) -> set[str]:
    """The files below a folder that hold it, compressed or not; by job-relative names."""
    found = set()
    for path in folder.rglob("*"):
        assert what.decode() not in str(path)
        if path.is_file() and any(what in each for each in unpacked(path.read_bytes())):
            relative = path.relative_to(folder)
            found.add(
                "/".join(relative.parts[2:] if relative.parts[0] == "jobs" else relative.parts)
            )
    return found


def answers_of(server: Server) -> Iterator[tuple[str, bytes]]:
    """Everything that a client can read of the jobs, but for their input."""
    jobs = server.http.get("/jobs", headers=HEADERS)
    yield "jobs", jobs.content
    for job in jobs.json()["jobs"]:
        for call in ("", "/log", "/events", "/bundle", "/preview.png", "/result"):
            yield call, server.http.get(f"/jobs/{job['id']}{call}", headers=HEADERS).content
        onehot = server.http.get(f"/jobs/{job['id']}/result", params={"resultant": "onehot"})
        yield "onehot", onehot.content
    yield "models", server.http.get("/spleenseg/modelpth", headers=HEADERS).content
    yield "metrics", server.http.get(f"{server.url}/metrics").content


def check_the_volumes_that_were_sent(server: Server, plain: bool) -> None:
    """They come back with the texts that they were sent with, but for the name of the file."""
    whole = volume(plain) if plain else gzip.decompress(volume(plain))
    for job in server.http.get("/jobs").json()["jobs"]:
        answer = server.http.get(f"/jobs/{job['id']}/volume", headers=HEADERS)
        assert SECRET.decode() not in str(answer.headers)
        packed = server.http.get(f"/jobs/{job['id']}/bundle?voxels=true").content
        with zipfile.ZipFile(io.BytesIO(packed)) as bundle:
            kept = bundle.read(f"{job['id']}/input/imagesTs/input.nii.gz")
        for content in (answer.content, kept):
            assert SECRET not in content
            unzipped = gzip.decompress(content)
            assert unzipped.count(SECRET) == 4
            assert unzipped[-24 * 20 * 24 * 2 :] == whole[-24 * 20 * 24 * 2 :]


@pytest.mark.parametrize("plugin", ["ok.py", "wrong_shape.py"])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "gzipped"])
def test_a_name_in_an_upload_reaches_nothing_but_its_own_input(
    start_server: StartServer, tmp_path: Path, plugin: str, plain: bool
) -> None:
    server = start_server(plugin, audit_log=tmp_path / "workspace" / "audit.jsonl")
    status = send(server, volume(plain))
    assert status == (200 if plugin == "ok.py" else 500)
    assert send(server, SECRET * 100) == 422
    assert send(server, volume(plain), "NIfTIinference?modelID=none") == 404
    assert send(server, SECRET * 100, "modelpth?modelID=demo") == 422
    for place, content in answers_of(server):
        for each in unpacked(content):
            assert SECRET not in each, place
            assert TOKEN not in each, place
    check_the_volumes_that_were_sent(server, plain)
    server.stop()
    # A volume with header extensions is written anew, its other texts stay in the input.
    assert places_of(SECRET, server.workspace) <= {"input/imagesTs/input.nii.gz"}
    assert places_of(TOKEN, server.workspace) == set()


def test_the_plugins_copy_goes_when_a_run_is_cancelled_too(start_server: StartServer) -> None:
    server = start_server("copies_then_hangs.py")
    job_id = server.submit(volume(plain=False))
    copy = server.workspace / "jobs" / job_id / "output" / "inference" / "orig.nii.gz"
    eventually(copy.exists)
    server.http.post(f"/jobs/{job_id}/cancel")
    assert server.ended(job_id)["state"] == "cancelled"
    server.stop()
    assert places_of(SECRET, server.workspace) == {"input/imagesTs/input.nii.gz"}


def test_a_link_in_place_of_the_copy_or_its_folder_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "inference").mkdir(parents=True)
    (other / "inference" / "orig").touch()
    job = tmp_path / "job"
    job.mkdir()
    (job / "output").symlink_to(other)
    unlink(job, "output/inference/orig")
    assert (other / "inference" / "orig").exists()
    (job / "output").unlink()
    (job / "output").mkdir()
    (job / "output" / "orig").symlink_to(other / "inference" / "orig")
    unlink(job, "output/orig")
    assert not (job / "output" / "orig").is_symlink()
    assert (other / "inference" / "orig").exists()
    unlink(job, "output/nothing/orig")
    unlink(tmp_path / "gone", "output/orig")
