"""Segment a CT with pfms, from Python with only its standard library.

Usage:
    pfms_urllib.py SERVER upload MODEL WEIGHTS
    pfms_urllib.py SERVER infer  MODEL VOLUME OUTPUT        waits for the segmentation
    pfms_urllib.py SERVER submit MODEL VOLUME OUTPUT KEY    asks for it until it is there
"""

import json
import shutil
import sys
import time
import uuid
from http.client import HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import Request, urlopen


def main(server: str, command: str, model: str, file: str, output: str = "", key: str = "") -> None:
    """Call pfms as the command line says."""
    route = "modelpth" if command == "upload" else "NIfTIinference"
    boundary = uuid.uuid4().hex
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    if command == "submit":
        # The same key again finds the same job, so a call that broke off can be made again.
        headers |= {"Prefer": "respond-async", "Idempotency-Key": key}
    head = (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="file"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + Path(file).read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    url = f"{server}/api/v1/spleenseg/{route}?{urlencode({'modelID': model})}"
    answer = call(Request(url, body, headers))
    if command == "upload":
        print("stored with the checksum", json.load(answer)["sha256"])
        return
    print("job", answer.headers["X-Pfms-Job"])
    if answer.status == 202:
        answer = result_of(urljoin(url, answer.headers["Location"]))
    with Path(output).open("wb") as target:
        shutil.copyfileobj(answer, target)


def result_of(job: str) -> HTTPResponse:
    """Wait until a job has ended and fetch its result."""
    while json.load(call(Request(job)))["state"] in ("queued", "running"):
        time.sleep(1)
    return call(Request(f"{job}/result"))


def call(request: Request) -> HTTPResponse:
    """Return the answer, or exit with what is wrong and what to do about it."""
    try:
        answer: HTTPResponse = urlopen(request)
    except HTTPError as error:
        if error.headers["Content-Type"] != "application/problem+json":
            sys.exit(str(error))  # for example from a proxy
        problem = json.load(error)
        sys.exit(f"{problem['detail']} {problem['remedy']}")
    return answer


if __name__ == "__main__":
    if len(sys.argv) != {"upload": 5, "infer": 6, "submit": 7}.get("".join(sys.argv[2:3])):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
