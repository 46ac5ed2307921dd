"""Whatever comes in, it is refused with one of our own errors, or it is what it claims to be."""

import gzip
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfms.api.parts import Part, Splitter
from pfms.errors import InvalidParameter, RequestError
from pfms.programs.weights_bytes import problem_with
from pfms.volumes.admit import VolumeLimits, admit_volume
from pfms.volumes.gunzip import DamagedGzip, GzipStream
from pfms.volumes.not_nifti import not_a_nifti
from pfms.volumes.reader import NiftiReader
from tests.hostile.weights import archive
from tests.niftis import ct, nifti

LIMITS = VolumeLimits(max_volume_bytes=1 << 20, max_grid_voxels=1_000_000)
SEEDS = (
    nifti(ct()),
    nifti(ct(), order=">"),
    nifti(ct(), version=2),
    nifti(ct(dtype="float64"), between=b"\1\0\0\0" + bytes([16, 0, 0, 0, 6, 0, 0, 0]) + bytes(8)),
)
PACKED = tuple(gzip.compress(seed, 1, mtime=0) for seed in SEEDS)
ZIPPED = archive({"archive/data.pkl": b"}.", "archive/data/0": bytes(64)})
FORM = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ncontent\r\n--x--\r\n'


@st.composite
def changed(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """One of the seeds, with bytes replaced, removed, repeated or inserted, mostly at its start."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        far = draw(st.sampled_from((8, 64, 400, len(content))))
        at = draw(st.integers(0, max(0, min(far, len(content)) - 1)))
        piece = draw(st.binary(min_size=1, max_size=8))
        kind = draw(st.sampled_from(("replace", "insert", "remove", "cut", "repeat")))
        if kind == "replace":
            content[at : at + len(piece)] = piece
        elif kind == "insert":
            content[at:at] = piece
        elif kind == "remove":
            del content[at : at + len(piece)]
        elif kind == "cut":
            del content[at:]
        else:
            content += content[at : at + 1000]
    return bytes(content)


FILES = st.one_of(changed(SEEDS), changed(PACKED), st.binary(max_size=2000))


def check_volume(content: bytes) -> None:
    """It is refused in our words, or it can be read again as what was told of it."""
    with tempfile.TemporaryDirectory() as folder:
        upload, target = Path(folder, "upload"), Path(folder, "input.nii.gz")
        upload.write_bytes(content)
        try:
            facts = admit_volume(upload, target, LIMITS)
        except RequestError as error:
            said = error.detail
        else:
            said = ""
        if said:
            assert len(said) < 400
            assert folder not in said
            assert [path.name for path in Path(folder).iterdir()] == ["upload"]
            return
        with NiftiReader(target) as copy:
            assert copy.shape == facts.shape
            voxels = 1
            for length in facts.shape:
                voxels *= length
            assert sum(map(len, copy.values(voxels))) == voxels


def check_gzip(content: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"\x1f\x8b" + content)
        file.seek(0)
        stream = GzipStream(file)
        with suppress(DamagedGzip):
            while piece := stream.read1(1000):
                assert len(piece) <= 1000


def check_unknown(content: bytes) -> None:
    error = not_a_nifti(content)
    assert error.detail
    assert len(error.detail) < 400


def check_weights(content: bytes) -> None:
    told = problem_with(io.BytesIO(content))
    assert len(told) < 300


def split(body: bytes, cuts: list[int]) -> list[Part | bytes] | str:
    """What the reader of forms makes of a body that arrives in these pieces; contents joined."""
    ends = sorted({cut % (len(body) + 1) for cut in cuts} | {len(body)})
    splitter, found, start = Splitter(b"x"), list[Part | bytes](), 0
    try:
        for end in ends:
            for each in splitter.feed(body[start:end]):
                if isinstance(each, bytes) and found and isinstance(found[-1], bytes):
                    found[-1] += each
                elif each:
                    found.append(each)
            start = end
    except InvalidParameter as error:
        return error.detail
    return found


def check_form(body: bytes, cuts: list[int]) -> None:
    """It is the same form however the network cuts it."""
    whole, cut = split(body, []), split(body, cuts)
    assert (cut == whole) or (isinstance(cut, str) and isinstance(whole, str))


CHECKS: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]] = {
    "volume": (check_volume, (FILES,)),
    "gzip": (check_gzip, (st.one_of(changed(PACKED), st.binary(max_size=500)),)),
    "not NIfTI": (
        check_unknown,
        (st.one_of(FILES, changed((ZIPPED,)), st.text().map(str.encode)),),
    ),
    "weights": (check_weights, (st.one_of(changed((ZIPPED,)), st.binary(max_size=1000)),)),
    "form": (
        check_form,
        (changed((FORM, FORM * 2)), st.lists(st.integers(0, 10_000), max_size=20)),
    ),
}


def fuzz(name: str, examples: int, *, same_each_time: bool) -> None:
    check, strategies = CHECKS[name]
    run: Any = settings(
        max_examples=examples,
        derandomize=same_each_time,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(given(*strategies)(check))
    run()


@pytest.mark.parametrize("name", CHECKS)
def test_whatever_comes_in_is_refused_in_our_words_or_is_what_it_claims(name: str) -> None:
    fuzz(name, 300, same_each_time=True)


@pytest.mark.every
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CHECKS)
def test_the_same_with_many_more_examples(name: str) -> None:
    fuzz(name, 30_000, same_each_time=False)
