"""What a server answers to the example of each call, for the list of calls in the manual."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.manual import reference

# Of the machine on which the manual was made.
_PRIVATE = {"hostname": "pfms", "inet": "192.0.2.1"}


def record(url: str, folder: Path, instead: Mapping[str, str]) -> dict[str, Any]:
    """The JSON with which the calls answer, by the name of the call.

    Args:
        url: Of a server with the real plugin.
        folder: Where `ct.nii.gz` and `model.pth` are.
        instead: What to show instead of each path of this machine.
    """
    answers = {}
    job = ""
    # What removes something goes last.
    for method, path, call in sorted(reference.operations(), key=lambda each: each[0] == "DELETE"):
        line = reference.example(method, path, call).replace(reference.SERVER, url)
        done = subprocess.run(
            ["sh", "-c", f"{line} --silent --show-error -w '%{{stderr}}%header{{x-pfms-job}}'"],
            cwd=folder,
            env={**os.environ, "JOB": job},
            capture_output=True,
            check=True,
        )
        if call["operationId"] == "infer":
            job = done.stderr.decode()
        if done.stdout.startswith(b"{"):
            text = done.stdout.decode()
            for place in sorted(instead, key=len, reverse=True):
                text = text.replace(place, instead[place])
            for name, value in _PRIVATE.items():
                text = re.sub(rf'"{name}":\s*"[^"]*"', f'"{name}": "{value}"', text)
            answers[call["operationId"]] = json.loads(text)
    return answers
