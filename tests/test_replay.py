"""A job that is run again: the same voxels, or what differs."""

import io
import json
import shutil
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pfms.processes.marks import find_marked
from tests import examples
from tests.command import finish, pfms, running
from tests.conftest import Server, StartServer, eventually, image_of, nifti_bytes

JOB_MARK = "PFMS_JOB"


def job_of(server: Server, **request: Any) -> Path:
    """The folder of a new job that has ended."""
    job_id = server.submit(**request)
    server.ended(job_id)
    return server.workspace / "jobs" / job_id


@pytest.fixture(scope="module")
def done(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder, to be copied."""
    return Path(shutil.copytree(job_of(server), tmp_path_factory.mktemp("replay") / "job"))


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "a job's copy"))


def alter(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "job.json").read_bytes())
    change(record)
    (folder / "job.json").write_text(json.dumps(record))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_copied_job_gives_the_same_voxels_and_nothing_is_left(folder: Path) -> None:
    before = names(folder)
    told = pfms("replay", folder, cwd=folder.parent)
    record = json.loads((folder / "job.json").read_bytes())
    assert told.stdout.startswith(f"same voxels: sha256 {record['segmentation']['voxels_sha256']}")
    assert names(folder) == before


def test_the_output_is_kept_on_demand(folder: Path) -> None:
    told = json.loads(pfms("replay", folder, "--keep", "--json", cwd=folder.parent).stdout)
    assert told["same"]
    rerun = Path(told["rerun"])
    assert (rerun / "output/inference/input/input_seg.nii.gz").is_file()
    assert (rerun / "plugin.log").is_file()


def test_an_unpacked_bundle_is_enough(server: Server, tmp_path: Path) -> None:
    job_id = job_of(server).name
    packed = server.http.get(f"/jobs/{job_id}/bundle", params={"voxels": "true"})
    with zipfile.ZipFile(io.BytesIO(packed.content)) as bundle:
        bundle.extractall(tmp_path)
    told = json.loads(pfms("replay", job_id, "--json", cwd=tmp_path).stdout)
    assert (told["job"], told["same"]) == (job_id, True)


def test_a_job_of_few_slices_is_judged_as_the_service_does(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server("short_stack.py")
    folder = job_of(server, content=nifti_bytes((24, 20, 12)))
    assert "same voxels" in pfms("replay", folder, cwd=tmp_path).stdout


def test_a_server_may_run_meanwhile_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    folder = job_of(server)
    pfms("replay", folder, cwd=tmp_path)
    assert server.job(folder.name)["state"] == "succeeded"


def test_different_voxels_are_reported_with_their_number_and_the_versions(folder: Path) -> None:
    volume = folder / "input" / "imagesTs" / "input.nii.gz"
    image = image_of(volume.read_bytes())
    voxels = np.array(image.dataobj)
    spleen = int(np.count_nonzero(voxels > 0))
    voxels[0, 0, :7] = 100  # the fake plugin takes it for spleen, as it does all above 0
    nib.save(nib.Nifti1Image(voxels, image.affine), volume)
    alter(folder, lambda record: record["versions"].update(torch="1.0.0"))
    done = pfms("replay", folder, "--json", cwd=folder.parent, code=1)
    told = json.loads(done.stdout)
    assert not told["same"]
    assert told["voxels_sha256"] != told["recorded_sha256"]
    assert told["changed"]["torch"][0] == "1.0.0"
    assert set(told["changed"]) == {"torch"}
    dice = 2 * spleen / (2 * spleen + 7)
    assert told["difference"] == {"differing": 7, "voxels": 24 * 20 * 24, "dice": dice}
    assert Path(told["rerun"]).is_dir()


def test_weights_that_were_exchanged_are_reported(folder: Path) -> None:
    (folder / "input" / "model.pth").write_bytes(b"others")
    alter(folder, lambda record: record["segmentation"].update(voxels_sha256="0" * 64))
    told = pfms("replay", folder, cwd=folder.parent, code=1).stdout
    assert "different voxels" in told
    assert "0 of 11520 voxels differ, Dice 1.000000" in told
    assert "weights: " in told


def test_a_rerun_that_fails_is_1_with_its_cause(folder: Path) -> None:
    script = folder / "command.sh"
    text = script.read_text()
    script.write_text(text.replace("ok.py", "exit3.py"))
    told = pfms("replay", folder, cwd=folder.parent, code=1).stdout
    assert "the rerun failed" in told
    assert "plugin-failed: The plugin ended with exit code 3" in told
    script.write_text(text.replace("ok.py", "gone.py"))
    told = pfms("replay", folder, cwd=folder.parent, code=1).stdout
    assert "gone.py, which was not found" in told


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda folder: shutil.rmtree(folder / "input"), "input.nii.gz"),
        (lambda folder: (folder / "command.sh").unlink(), "command.sh"),
        (lambda folder: (folder / "job.json").unlink(), "not a job's folder"),
        (lambda folder: (folder / "job.json").write_text("{"), "damaged"),
        (lambda folder: alter(folder, lambda job: job.update(segmentation=None)), "no result"),
    ],
)
def test_what_cannot_be_run_again_is_2_and_says_why(
    folder: Path, spoil: Callable[[Path], None], word: str
) -> None:
    spoil(folder)
    done = pfms("replay", folder, cwd=folder.parent, code=2)
    assert word in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(folder.glob("rerun*")) == []


def test_a_purged_job_says_that_it_was_purged(server: Server, tmp_path: Path) -> None:
    folder = job_of(server)
    server.http.delete(f"/jobs/{folder.name}", params={"purge": "voxels"})
    assert "purged" in pfms("replay", folder, cwd=tmp_path, code=2).stderr


def test_ctrl_c_ends_the_plugin_and_leaves_nothing(folder: Path) -> None:
    script = folder / "command.sh"
    script.write_text(script.read_text().replace("ok.py", "ignores_term.py"))
    before = names(folder)

    def reruns() -> set[str]:
        return {each.value for each in find_marked(JOB_MARK) if each.value.startswith("replay-")}

    others = reruns()
    with running("replay", folder, cwd=folder.parent) as process:
        eventually(lambda: reruns() - others)
        process.send_signal(signal.SIGINT)
        _, err = finish(process, 130)
    assert "interrupted" in err
    assert reruns() == others
    assert names(folder) == before


@pytest.mark.real
def test_the_real_plugin_gives_the_same_voxels_again(real_server: Server, tmp_path: Path) -> None:
    folder = job_of(real_server, content=nifti_bytes((40, 40, 30)))
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert json.loads(pfms("replay", copy, "--json", cwd=tmp_path).stdout)["same"]


@pytest.mark.real
def test_the_examples_of_debugging_a_run_work(real_server: Server, tmp_path: Path) -> None:
    done = examples.run(examples.script(examples.blocks(examples.REAL)), real_server, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
