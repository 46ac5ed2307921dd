"""Segment a CT with pfms, from Python with requests.

Usage:
    pfms_requests.py SERVER upload MODEL WEIGHTS
    pfms_requests.py SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
    pfms_requests.py SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there
"""

import sys
import time
from pathlib import Path
from urllib.parse import urljoin

import requests


def main(server: str, command: str, model: str, file: str, output: str = "", key: str = "") -> None:
    """Call pfms as the command line says."""
    route = "modelpth" if command == "upload" else "NIfTIinference"
    headers = {}
    if command == "submit":
        # The same key again finds the same job, so a call that broke off can be made again.
        headers = {"Prefer": "respond-async", "Idempotency-Key": key}
    with Path(file).open("rb") as content:
        answer = checked(
            requests.post(
                f"{server}/api/v1/spleenseg/{route}",
                params={"modelID": model},
                headers=headers,
                files={"file": content},
            )
        )
    if command == "upload":
        print("stored with the checksum", answer.json()["sha256"])
        return
    print("job", answer.headers["X-Pfms-Job"])
    if answer.status_code == 202:
        answer = result_of(urljoin(answer.url, answer.headers["Location"]))
    Path(output).write_bytes(answer.content)


def result_of(job: str) -> requests.Response:
    """Wait until a job has ended and fetch its result."""
    while checked(requests.get(job)).json()["state"] in ("queued", "running"):
        time.sleep(1)
    return checked(requests.get(f"{job}/result"))


def checked(answer: requests.Response) -> requests.Response:
    """Return the answer, or exit with what is wrong and what to do about it."""
    if answer.ok:
        return answer
    if answer.headers["Content-Type"] == "application/problem+json":
        problem = answer.json()
        sys.exit(f"{problem['detail']} {problem['remedy']}")
    sys.exit(f"{answer.status_code} {answer.reason}")  # for example from a proxy


if __name__ == "__main__":
    if len(sys.argv) != {"upload": 5, "infer": 6, "submit": 7}.get("".join(sys.argv[2:3])):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
