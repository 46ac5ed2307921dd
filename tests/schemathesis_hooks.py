"""What schemathesis.toml cannot say: which files to send, and what no response may be."""

import re
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.transport.serialization import Binary

from tests.conftest import nifti_bytes

VOLUMES = [
    nifti_bytes((6, 5, 4)),
    nifti_bytes((6, 5, 4), gzipped=False),
    nifti_bytes((6, 5, 24)),
]

schemathesis.openapi.format(
    "binary", (st.sampled_from(VOLUMES) | st.binary(max_size=400)).map(Binary)
)


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case[Any]) -> bool:
    """Keep the jobs and models that the other calls are to find."""
    named = " ".join(map(str, case.path_parameters.values()))
    return case.method != "DELETE" or not re.search(r"2026-01-31-12-00|\bdemo\b|\bexit3\b", named)


@schemathesis.check
def never_internal(
    context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    """No fault of pfms itself."""
    if response.headers["content-type"] == ["application/problem+json"]:
        assert response.json()["code"] != "internal", response.text
