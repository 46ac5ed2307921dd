"""One complete run on a phantom: the real plugin behind a real server that the demo starts."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pfms.client.client import Client
from pfms.client.problems import Json, PfmsProblem
from pfms.client.updates import OnUpdate, Update, tell
from pfms.processes.parent import end_with_parent

SEED = 271_828  # a patient that the demo weights were not trained on
DICE_AT_LEAST = 0.8
MODEL_ID = "demo"
# Not resolved: in the image the package is /srv/pfms, a link to /app, and /srv has the examples.
EXAMPLES = Path(__file__).absolute().parents[2] / "examples"

_WEIGHTS, _PHANTOMS = "demo_model.pth", "phantoms.py"
_LISTEN_SECONDS = 60
_STOP_SECONDS = 15
_MIN_FREE_BYTES = 100 << 20  # a phantom is small, and a newcomer's disk may be nearly full


class DemoFailed(Exception):
    """The demo did not succeed.

    Attributes:
        detail: Why, in one sentence.
        remedy: What to do about it, in one sentence.
    """

    def __init__(self, detail: str, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


@dataclass(frozen=True)
class DemoResult:
    """What came out.

    Attributes:
        job: As the server shows it.
        dice: Overlap of the segmentation and the truth, 0 to 1.
        folder: The job's.
    """

    job: Json
    dice: float
    folder: Path


@dataclass
class Steps:
    """Announces each step, and says how long it took."""

    say: Callable[[str], None]
    count: int = 0
    begun: float = field(default_factory=time.monotonic)
    since: float = 0.0

    def begin(self, title: str) -> None:
        """Announce a step."""
        self.count += 1
        self.since = time.monotonic()
        self.say(f"{self.count}. {title}")

    def done(self, words: str) -> None:
        """Say how the step went."""
        self.say(f"   {words} ({time.monotonic() - self.since:.1f} s)")


@contextmanager
def demo(
    out: Path,
    say: Callable[[str], None],
    *,
    examples: Path = EXAMPLES,
    seed: int = SEED,
    device: str = "auto",
    watching: Callable[[], AbstractContextManager[OnUpdate | None]] = nullcontext,
) -> Iterator[tuple[DemoResult, str]]:
    """Yield the outcome, and the URL of the server, which is stopped at the end of the `with`.

    Args:
        out: The folder for the results, and for the workspace of the server.
        say: Called with each line.
        examples: The folder of the demo weights and of `phantoms.py`.
        seed: Of the phantom.
        device: `auto`, `cpu` or `cuda:N`.
        watching: A context around the run, whose value is called with the progress.

    Raises:
        DemoFailed: It did not finish, or the Dice is below `DICE_AT_LEAST`.
        ClientError: The server refused something, or the run failed.
    """
    for name in (_WEIGHTS, _PHANTOMS):
        if not (examples / name).is_file():
            raise DemoFailed(
                f"there is no {name} in {examples}",
                "It is part of a clone of pfms: name its folder with pfms demo --examples DIR.",
            )
    out.mkdir(parents=True, exist_ok=True)
    steps = Steps(say)
    steps.begin("Start a pfms server on a free port")
    with _server(out, device) as url, Client(url) as client:
        steps.done(url)
        steps.begin(f"Upload the demo weights as the model '{MODEL_ID}'")
        steps.done(_upload(client, examples / _WEIGHTS))
        steps.begin("Make a phantom: a synthetic CT whose true spleen is known")
        steps.done(_make_phantom(out, examples / _PHANTOMS, seed))
        steps.begin("Send it over HTTP, and wait for its segmentation")
        with watching() as show:
            job = _infer(client, out, show)
        steps.done(f"the plugin took {job['seconds']:.1f} s of it, on {job['device']}")
        steps.begin("Compare it with the truth, and fetch the picture")
        found = DemoResult(job, dice_of(out), out / "workspace" / job["folder"])
        (out / "segmentation.png").write_bytes(client.preview(job["id"]))
        steps.done(f"spleen {job['segmentation']['spleen_ml']:.0f} ml, Dice {found.dice:.3f}")
        say(f"The whole demo took {time.monotonic() - steps.begun:.1f} s.")
        if found.dice < DICE_AT_LEAST:
            raise DemoFailed(
                f"the Dice is {found.dice:.3f}, less than the expected {DICE_AT_LEAST}",
                f"Look at {out / 'segmentation.png'} and {found.folder / 'plugin.log'}.",
            )
        yield found, url


def _infer(client: Client, out: Path, show: OnUpdate | None) -> Json:
    job_id: str | None = None

    def watch(update: Update) -> None:
        nonlocal job_id
        job_id = update.job
        tell(show, update)

    try:
        job = client.infer(
            out / "ct.nii.gz", MODEL_ID, out / "segmentation.nii.gz", on_update=watch
        )
    except (KeyboardInterrupt, SystemExit):
        if job_id is not None:  # or the next demo would have to run it first
            client.cancel(job_id)
        raise
    if job is None:
        raise DemoFailed("the server answered without a job")
    return job


def dice_of(out: Path) -> float:
    """The overlap of segmentation and truth, 0 to 1."""
    import nibabel as nib
    import numpy as np

    found, truth = (
        np.asarray(nib.load(out / name).dataobj) != 0
        for name in ("segmentation.nii.gz", "truth.nii.gz")
    )
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 1.0


def _upload(client: Client, weights: Path) -> str:
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if client.model(MODEL_ID)["upload_sha256"] == digest:
            return "already there from last time"
    except PfmsProblem as problem:
        if problem.code != "model-not-found":
            raise
    model = client.upload_model(weights, MODEL_ID)
    return f"checked against the plugin's network, {model['size'] / 1e6:.1f} MB"


def _make_phantom(out: Path, program: Path, seed: int) -> str:
    made = subprocess.run(
        [sys.executable, str(program), str(out), "--seed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise DemoFailed(f"{program} failed: {_last_line(made.stderr)}")
    for name, final in ((f"phantom-{seed}", "ct"), (f"phantom-{seed}-spleen", "truth")):
        (out / f"{name}.nii.gz").replace(out / f"{final}.nii.gz")
    return f"{out / 'ct.nii.gz'}: {made.stdout.strip().rpartition('  ')[2]}"


@contextmanager
def _server(out: Path, device: str) -> Iterator[str]:
    """Run a server whose workspace is in `out`; yield its URL."""
    argv = [sys.executable, "-m", "pfms", "serve", "--host", "127.0.0.1", "--port", "0"]
    argv += ["--workspace", str(out / "workspace"), "--device", device]
    # Whoever stops the demo should not have to wait for a run.
    settings = {"PFMS_MIN_FREE_BYTES": str(_MIN_FREE_BYTES), "PFMS_DRAIN_SECONDS": "0"}
    settings["PFMS_TOKENS_FILE"] = ""  # the demo has no token, and only this machine reaches it
    # A certificate is for another name than this machine's loopback.
    settings |= {"PFMS_TLS_CERTIFICATE": "", "PFMS_TLS_KEY": ""}
    settings |= {"PFMS_OIDC_ISSUER": "", "PFMS_OIDC_AUDIENCE": ""}
    log = out / "server.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only us, and we stop the server
            preexec_fn=end_with_parent,
        )
    try:
        yield _url_of(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _url_of(process: subprocess.Popen[str], log: Path) -> str:
    """The URL that a server prints when it listens."""
    if process.stdout is None:
        raise ValueError("the server's stdout is not read")
    timer = threading.Timer(_LISTEN_SECONDS, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    if not line.startswith("pfms listens on "):
        process.wait()
        raise DemoFailed(
            f"the server did not start: {_last_line(log.read_text(errors='replace'))}",
            f"Run `pfms doctor` for a closer look; the server's log is {log}.",
        )
    return line.split()[3]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def this_command() -> str:
    """How to type `pfms` here, even if its environment is not active."""
    own = Path(sys.executable).with_name("pfms")
    found = shutil.which("pfms")
    if (found and Path(found) == own) or not own.exists():
        return "pfms"
    here = Path.cwd()
    return str(own.relative_to(here) if own.is_relative_to(here) else own)


def what_next(out: Path, found: DemoResult, pfms: str) -> str:
    """The files that the demo wrote, and what to try next; `pfms` is how to type it."""
    api = "http://127.0.0.1:2024/api/v1/spleenseg"
    return f"""
In {out}:
  segmentation.png      slices through the spleen with the mask drawn on them: have a look
  segmentation.nii.gz   0 background, 1 spleen, on the grid of ct.nii.gz
  ct.nii.gz             the phantom; truth.nii.gz is its true spleen
The run is kept, with its log and record, and can be run again:
  {found.folder}
  {found.folder / "command.sh"}

With weights and a CT of your own:
  {pfms} serve
and in another terminal:
  {pfms} models add model.pth --id mine
  {pfms} infer CT.nii.gz --model mine
or without pfms on that machine:
  curl --fail-with-body -F file=@model.pth '{api}/modelpth/?modelID=mine'
  curl --fail-with-body -F file=@CT.nii.gz -o CT-spleen.nii.gz \\
       '{api}/NIfTIinference/?modelID=mine'

The demo weights know phantoms, not patients: on a real CT they mean nothing."""
