"""Ray is an extra: what `PFMS_EXECUTOR=ray` says where it is not installed."""

import sys

import pytest

from pfms.errors import StartError
from pfms.executors.choice import need_ray


def test_without_ray_the_start_is_refused_in_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as importlib says that there is none
    with pytest.raises(StartError) as refused:
        need_ray()
    assert refused.value.line == (
        "pfms cannot start: PFMS_EXECUTOR=ray needs Ray, which is not installed. "
        "Install it: `make install-ray`, or pip install 'pfms[ray]'."
    )
