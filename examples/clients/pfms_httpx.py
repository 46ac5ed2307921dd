"""Segment a CT with pfms, from Python with httpx, which sends large volumes piece by piece.

Usage:
    pfms_httpx.py SERVER upload MODEL WEIGHTS
    pfms_httpx.py SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
    pfms_httpx.py SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there
"""

import sys
import time
from pathlib import Path
from urllib.parse import urljoin

import httpx


def main(server: str, command: str, model: str, file: str, output: str = "", key: str = "") -> None:
    """Call pfms as the command line says."""
    route = "modelpth" if command == "upload" else "NIfTIinference"
    headers, seconds = {}, None  # without a timeout, since httpx would wait for only 5 seconds
    if command == "submit":
        # The same key again finds the same job, so a call that broke off can be made again.
        headers, seconds = {"Prefer": "respond-async", "Idempotency-Key": key}, 60
    with httpx.Client() as client, Path(file).open("rb") as content:
        answer = checked(
            client.post(
                f"{server}/api/v1/spleenseg/{route}",
                params={"modelID": model},
                headers=headers,
                files={"file": content},
                timeout=seconds,
            )
        )
        if command == "upload":
            print("stored with the checksum", answer.json()["sha256"])
            return
        print("job", answer.headers["X-Pfms-Job"])
        if answer.status_code == 202:
            answer = result_of(urljoin(str(answer.url), answer.headers["Location"]), client)
        Path(output).write_bytes(answer.content)


def result_of(job: str, client: httpx.Client) -> httpx.Response:
    """Wait until a job has ended and fetch its result."""
    while checked(client.get(job)).json()["state"] in ("queued", "running"):
        time.sleep(1)
    return checked(client.get(f"{job}/result"))


def checked(answer: httpx.Response) -> httpx.Response:
    """Return the answer, or exit with what is wrong and what to do about it."""
    if answer.is_success:
        return answer
    if answer.headers["Content-Type"] == "application/problem+json":
        problem = answer.json()
        sys.exit(f"{problem['detail']} {problem['remedy']}")
    sys.exit(f"{answer.status_code} {answer.reason_phrase}")  # for example from a proxy


if __name__ == "__main__":
    if len(sys.argv) != {"upload": 5, "infer": 6, "submit": 7}.get("".join(sys.argv[2:3])):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
