"""An attacker's whole corpus, sent to one server over a real port."""

import contextlib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pfms import errors
from pfms.api.problems import STATUS
from tests.conftest import Server, eventually, nifti_bytes, seed_model, start
from tests.hostile.requests import REQUESTS, file_names, ranges, with_names
from tests.hostile.volumes import gibibyte, volumes
from tests.hostile.weights import pickles, weights
from tests.refused import TARGET, jobs_made
from tests.wire import FORM, Answer, Wire, form, part

WITHIN = 5  # seconds, in which every answer has to come
WITHIN_OPENED = 60  # when torch has to be started for it, on a machine that does other things too
GROWTH = 64 << 20
OUR_OWN = {(status, kind.code) for kind, status in STATUS.items() if kind is not errors.PfmsError}
ZIP_BOMB, HONEST_BOMB = "zip bomb: a gibibyte", "bomb: voxels as promised, too many"
OPEN_ALL = Path(__file__).parent / "hostile" / "open_all.py"
MODELPTH = "/api/v1/spleenseg/modelpth?modelID=hostile"


@dataclass(frozen=True)
class Attacked:
    """A server, and what it was like before the attack."""

    server: Server
    sentinel: Path
    memory: int
    processes: int
    files: frozenset[Path]


def memory_of(server: Server, field: str) -> int:
    """Of the web process, in bytes: `VmRSS` now, or `VmHWM`, the most it ever was."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


def processes_of(server: Server) -> int:
    return len(psutil.Process(server.process.pid).children(recursive=True))


def outside(server: Server) -> frozenset[Path]:
    """What is around the folders that the service may write to."""
    around = server.workspace.parent
    made = ("jobs", "uploads", "models")
    return frozenset(
        path
        for path in around.rglob("*")
        if not any(path.is_relative_to(server.workspace / name) for name in made)
    )


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """One server for all; at the end it is as it was, and still works."""
    workspace = tmp_path_factory.mktemp("hostile") / "workspace"
    seed_model(workspace)
    server = start(workspace, max_volume_bytes="2GiB")
    for _ in range(3):
        server.infer(nifti_bytes((64, 64, 64)))
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # VmHWM starts again
    one = Attacked(
        server,
        workspace.parent / "code-was-run",
        memory_of(server, "VmRSS"),
        processes_of(server),
        outside(server),
    )
    yield one
    server.stop()


@pytest.fixture(autouse=True)
def unharmed(attacked: Attacked) -> Iterator[None]:
    """What holds after every attack."""
    yield
    server = attacked.server
    assert memory_of(server, "VmHWM") - attacked.memory < GROWTH
    assert not attacked.sentinel.exists()
    jobs_made(server)  # waits until nothing is being received
    eventually(lambda: processes_of(server) == attacked.processes)
    assert outside(server) == attacked.files
    assert [path.name for path in (server.workspace / "models").iterdir()] == ["demo"]
    assert "Traceback" not in server.log.read_text()
    good = server.infer(nifti_bytes((24, 20, 24)))
    assert good.status_code == 200


def ask(server: Server, sent: bytes, method: str = "POST", seconds: float = WITHIN) -> Answer:
    with Wire(server.url, seconds=seconds) as wire:
        with contextlib.suppress(ConnectionError):  # it answered already, and hung up
            wire.send(sent)
        return wire.answer(method)


def post(server: Server, target: str, content: bytes, seconds: float = WITHIN) -> Answer:
    """Send a file; nothing but the contract's own answers may come back."""
    body = form(part(content))
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\n"
    head += f"Prefer: respond-async\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = ask(server, head.encode() + body, seconds=seconds)
    our_own(answer)
    return answer


def our_own(answer: Answer) -> None:
    if answer.status >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json", answer.body
        told = answer.json()
        assert told["code"] != "internal", told
        assert answer.status < 500 or (answer.status, told["code"]) in OUR_OWN, told
        assert len(told["detail"]) < 600, told


def _corpus(sentinel: Path) -> list[tuple[str, bytes]]:
    files = [(each.name, each.content) for each in volumes()]
    return files + [(each.name, each.content) for each in weights(sentinel)]


def test_the_corpus_is_large_and_each_time_the_same(tmp_path: Path) -> None:
    made, again = (_corpus(tmp_path) for _ in range(2))
    assert made == again
    names = [name for name, _ in made] + list(REQUESTS)
    assert len(names) == len(set(names)) >= 300
    assert len(gibibyte()) < 1_100_000


def test_the_pickles_do_run_code_where_they_are_trusted(tmp_path: Path) -> None:
    bite = {name: data for name, data in pickles(tmp_path / "run").items() if "os.system" in name}
    ran = set()
    for name, data in bite.items():
        (tmp_path / "run").unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            pickle.loads(data)
        if (tmp_path / "run").exists():
            ran.add(name.split()[-1])
    assert ran >= {"GLOBAL", "STACK_GLOBAL", "INST", "BUILD"}


def test_no_volume_gets_in_that_is_not_one(attacked: Attacked) -> None:
    server = attacked.server
    before, accepted = len(server.job_folders()), []
    for each in volumes():
        answer = post(server, TARGET, each.content)
        assert answer.status in each.statuses, (each.name, answer.status, answer.body)
        if answer.status == 202:
            accepted.append(answer.json()["id"])
    assert len(jobs_made(server)) == before + len(accepted)
    for job_id in accepted:  # whether the plugin can use them is not the question here
        assert server.http.post(f"/jobs/{job_id}/cancel").status_code in (200, 202)
    for job_id in accepted:
        server.ended(job_id)


def test_no_weights_get_in_and_none_of_their_code_is_run(attacked: Attacked) -> None:
    """A part of them, since each starts a process; the next test opens all in one."""
    made = list(weights(attacked.sentinel))
    shown, opened = ([each for each in made if each.opened is kind] for kind in (False, True))
    for each in (*shown[::3], *opened[::18]):
        seconds = WITHIN_OPENED if each.opened else WITHIN
        answer = post(attacked.server, MODELPTH, each.content, seconds)
        assert (answer.status, answer.json()["code"]) == (422, "not-a-model"), each.name


@pytest.mark.real
def test_no_pickle_runs_when_torch_itself_opens_it(tmp_path: Path) -> None:
    folder, sentinel = tmp_path / "weights", tmp_path / "code-was-run"
    folder.mkdir()
    for number, each in enumerate(weights(sentinel)):
        (folder / f"{number:03} {'opened' if each.opened else 'looked at'}").write_bytes(
            each.content
        )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(OPEN_ALL), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    told = dict(json.loads(line) for line in run.stdout.splitlines())
    assert told.keys() == {path.name for path in folder.iterdir()}
    for name, words in told.items():
        assert words not in ("accepted", "no-plugin"), name
        assert not words.startswith("unforeseen"), (name, words)
    assert not sentinel.exists()


def test_no_request_is_read_in_two_ways(attacked: Attacked) -> None:
    for name, sent in REQUESTS.items():
        with Wire(attacked.server.url, seconds=WITHIN) as wire:
            with contextlib.suppress(ConnectionError):  # it answered already, and hung up
                wire.send(sent)
                wire.say_no_more()
            said = b""
            with contextlib.suppress(ConnectionError):
                said = wire.ends()
        statuses = [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]
        assert len(statuses) <= 1, (name, said)
        assert all(status < 500 for status in statuses), (name, said)
        assert (attacked.server.workspace / "models" / "demo").exists(), (name, said)


def test_no_name_leads_out_of_its_folder(attacked: Attacked) -> None:
    for name, sent in with_names():
        answer = ask(attacked.server, sent, name.split()[0])
        assert 400 <= answer.status < 500, (name, answer.status)
        our_own(answer)


def test_the_name_of_a_file_is_of_no_importance(attacked: Attacked) -> None:
    server = attacked.server
    for name, sent in file_names():
        answer = ask(server, sent)
        assert answer.status == 202, (name, answer.body)
        assert server.ended(answer.json()["id"])["state"] == "succeeded"


def test_a_thousand_ranges_get_no_more_than_the_file(attacked: Attacked) -> None:
    server = attacked.server
    job = server.ended(server.submit())["id"]
    target = f"/api/v1/jobs/{job}/result"
    whole = ask(server, _get(target), "GET")
    for name, value in ranges():
        answer = ask(server, _get(target, value), "GET")
        assert answer.status in (200, 206, 416), (name, answer.status, answer.body)
        assert len(answer.body) <= max(len(whole.body), 1000), name


def _get(target: str, value: str = "bytes=0-") -> bytes:
    head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nRange: {value}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode()


def test_a_gibibyte_of_zeros_is_refused_for_what_it_unpacks_to(attacked: Attacked) -> None:
    zipped = next(each for each in weights(attacked.sentinel) if each.name == ZIP_BOMB)
    promised = next(each for each in volumes() if each.name == HONEST_BOMB)
    cases = ((TARGET, gibibyte()), (TARGET, promised.content), (MODELPTH, zipped.content))
    for target, content in (*cases, (MODELPTH, gibibyte())):
        assert post(attacked.server, target, content).status in (413, 422)
