"""The child program itself, on real uploads. Each one that torch opens takes seconds."""

import asyncio
import gzip
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pfms.models.check import CheckedWeights, check_weights
from pfms.plugin import PLUGIN
from pfms.programs import WEIGHTS_CHILD

MAKER = Path(__file__).with_name("make_weights.py")
Judge = Callable[[Path], dict[str, Any]]


def judge_into(upload: Path, target: Path, *options: str) -> dict[str, Any]:
    command = [
        sys.executable,
        *options,
        str(WEIGHTS_CHILD),
        str(upload),
        str(target),
        PLUGIN.network,
    ]
    run = subprocess.run(command, capture_output=True, check=True)
    assert run.stdout.count(b"\n") == 1
    verdict: dict[str, Any] = json.loads(run.stdout)
    return verdict


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Runs the child; its target is `tmp_path / "stored.pth"`."""
    return lambda upload: judge_into(upload, tmp_path / "stored.pth")


# name, a part of its warnings
ACCEPTED = [
    ("half", "float16"),
    ("module", "'module.'"),
    ("state_dict", "'state_dict'"),
    pytest.param("cuda", "cuda:0", marks=pytest.mark.every),
    pytest.param("lightning", "'_model.'", marks=pytest.mark.every),
    pytest.param("nnunet", "'network_weights'", marks=pytest.mark.every),
    pytest.param("averaged", "'n_averaged'", marks=pytest.mark.every),
    ("beside-its-average", "taken from 'state_dict'; weights that fit were also in 'ema'"),
    pytest.param("model", "'model'", marks=pytest.mark.every),
    pytest.param("nested", "'net'", marks=pytest.mark.every),
    pytest.param("net", "'net.'", marks=pytest.mark.every),
    pytest.param("average-in-one", "keys with 'net_ema.'", marks=pytest.mark.every),
    pytest.param("only-an-average", "'checkpoint' > 'model_ema'", marks=pytest.mark.every),
    pytest.param("deepspeed", "'module'", marks=pytest.mark.every),
    pytest.param("gan", "'discriminator'", marks=pytest.mark.every),
    pytest.param("pair", "Left out, since the network has no use", marks=pytest.mark.every),
    pytest.param("sharded", "", marks=pytest.mark.every),
    pytest.param("handler", "'optimizer'", marks=pytest.mark.every),
    pytest.param("more-keys", "'n_averaged'", marks=pytest.mark.every),
    pytest.param("compiled", "'module._orig_mod.'", marks=pytest.mark.every),
    pytest.param("bfloat16", "bfloat16", marks=pytest.mark.every),
    pytest.param("float64", "float64", marks=pytest.mark.every),
    pytest.param("backwards", "", marks=pytest.mark.every),
    pytest.param("one-buffer", "", marks=pytest.mark.every),
    pytest.param("strided", "", marks=pytest.mark.every),
    pytest.param("parameters", "", marks=pytest.mark.every),
    pytest.param("legacy", "", marks=pytest.mark.every),
]
# name, a part of the detail
REFUSED = [
    ("another-network", "another network: its keys are 'weight', 'bias'; the plugin's"),
    ("strange-class", "more than weights (mine.Loss; none of it was run)"),
    ("missing-key", "'model.0.conv.unit0.conv.bias' of the plugin's network is missing"),
    ("nan", "not finite"),
    ("runs-code", "none of it was run"),
    ("truncated", "cut off or damaged"),
    ("damaged", "cut off or damaged"),
    ("torchscript", "TorchScript"),
    pytest.param("another-unet", "another network", marks=pytest.mark.every),
    pytest.param("extra-key", "no key 'model.9.weight'", marks=pytest.mark.every),
    pytest.param("in-a-checkpoint", "its keys are 'net.model", marks=pytest.mark.every),
    pytest.param("partly", "unit0.conv.bias' of the plugin's", marks=pytest.mark.every),
    pytest.param("unnamed", "another network: its keys are", marks=pytest.mark.every),
    pytest.param("huge-view", "the shape 35184372088832 instead of 16", marks=pytest.mark.every),
    pytest.param("too-great", "not finite", marks=pytest.mark.every),
    pytest.param("integers", "int8", marks=pytest.mark.every),
    pytest.param("complex", "complex64", marks=pytest.mark.every),
    pytest.param("sparse", "not a plain tensor", marks=pytest.mark.every),
    pytest.param("quantised", "not a plain tensor", marks=pytest.mark.every),
    pytest.param("no-data", "not a plain tensor", marks=pytest.mark.every),
    pytest.param("a-list", "is a list", marks=pytest.mark.every),
    pytest.param("tensor", "holds a Tensor", marks=pytest.mark.every),
    pytest.param("no-weights", "weights (its keys are 'epoch', 'loss')", marks=pytest.mark.every),
    pytest.param("number-keys", "its keys are 0, 1, 2 and 145 more", marks=pytest.mark.every),
    pytest.param("whole-network", "whole pickled network", marks=pytest.mark.every),
    pytest.param("claims-a-tebibyte", "more memory", marks=pytest.mark.every),
    pytest.param("zip-bomb", "unpacks to far more", marks=pytest.mark.every),
]


@pytest.fixture(scope="module")
def uploads(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """All forms that the selected tests need, made with one start of torch."""
    folder = tmp_path_factory.mktemp("uploads")
    wanted = {
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.path == Path(__file__)
        and hasattr(item, "callspec")
        and "name" in item.callspec.params
    }
    make = [sys.executable, "-W", "ignore", str(MAKER), str(folder), "plain", *wanted]
    subprocess.run(make, check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def plain(uploads: Path) -> tuple[Path, CheckedWeights]:
    """A plain state dict, checked as the server does it: the stored file, and the facts."""
    stored = uploads / "stored-plain.pth"
    return stored, asyncio.run(check_weights((sys.executable,), uploads / "plain.pth", stored))


@pytest.mark.real
def test_a_plain_state_dict_is_stored_with_exactly_its_numbers(
    uploads: Path, plain: tuple[Path, CheckedWeights]
) -> None:
    stored, facts = plain
    look = """
import sys, torch
from spleenseg.models.data import ModelParams
sent, stored = (torch.load(path, weights_only=True) for path in sys.argv[1:])
ModelParams.model.load_state_dict(stored)
assert list(stored) == list(ModelParams.model.state_dict())
for key, value in ModelParams.model.state_dict().items():
    assert torch.equal(stored[key], sent[key]) and torch.equal(value, sent[key]), key
    assert stored[key].dtype == value.dtype and stored[key].is_contiguous(), key
    assert stored[key].untyped_storage().nbytes() == stored[key].nbytes, key
"""
    content = stored.read_bytes()

    assert facts == CheckedWeights(hashlib.sha256(content).hexdigest(), len(content), ())
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", look, uploads / "plain.pth", stored], check=True
    )


@pytest.mark.real
@pytest.mark.parametrize(("name", "warning"), ACCEPTED)
def test_the_same_numbers_in_another_form_are_stored_as_the_same_bytes(
    name: str, warning: str, uploads: Path, plain: tuple[Path, CheckedWeights], judge: Judge
) -> None:
    verdict = judge(uploads / f"{name}.pth")

    assert verdict["ok"], verdict
    assert verdict["sha256"] == plain[1].sha256
    assert bool(verdict["warnings"]) == bool(warning)
    assert warning in " ".join(verdict["warnings"])
    assert all(len(each) < 300 and each.isprintable() for each in verdict["warnings"])


@pytest.mark.real
@pytest.mark.parametrize(("name", "words"), REFUSED)
def test_what_is_not_a_state_dict_of_the_network_is_refused_with_the_first_difference(
    name: str, words: str, uploads: Path, judge: Judge, tmp_path: Path
) -> None:
    verdict = judge(uploads / f"{name}.pth")

    assert (verdict["ok"], verdict["code"]) == (False, "not-a-model")
    assert words in verdict["detail"]
    assert len(verdict["detail"]) < 250
    target = tmp_path / "stored.pth"
    assert not target.exists() or target.stat().st_size == 0
    assert not (uploads / "code-was-run").exists()


@pytest.mark.real
def test_a_full_disk_is_distinguished_from_a_bad_file(uploads: Path) -> None:
    verdict = judge_into(uploads / "plain.pth", Path("/dev/full"))

    assert (verdict["ok"], verdict["code"]) == (False, "disk-full")


def nifti() -> bytes:
    return bytes(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes())


def zip_of(folder: Path, name: str) -> bytes:
    with zipfile.ZipFile(folder / "made.zip", "w") as archive:
        archive.writestr(name, b"x")
    return (folder / "made.zip").read_bytes()


FOREIGN: list[tuple[str, Callable[[Path], bytes], str]] = [
    ("nothing", lambda _: b"", "empty"),
    ("text", lambda _: "Gewichte für die Milz\n".encode() * 100, "is text"),
    ("a web page", lambda _: b"<!DOCTYPE html><html>Sign in</html>", "is text"),
    ("an LFS pointer", lambda _: b"version https://git-lfs.github.com/spec/v1\noid", "git lfs"),
    ("gzip", lambda _: gzip.compress(b"x"), "gzipped"),
    ("a volume", lambda _: nifti(), "NIfTI"),
    ("safetensors", lambda _: (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}', "safetensors"),
    ("ONNX", lambda _: b"\x08\x08\x12\x07pytorch\x1a\x032.0", "ONNX"),
    ("a plain pickle", lambda _: pickle.dumps({"a": 1}), "pickle"),
    ("random bytes", lambda _: bytes(range(1, 250)), "not written by torch.save"),
    ("a zip of a table", lambda at: zip_of(at, "a/table.csv"), "no weights"),
    ("a zipped bundle", lambda at: zip_of(at, "bundle/models/model.pt"), "upload the .pt or .pth"),
    ("a zip cut off", lambda at: zip_of(at, "a/data.pkl")[:-9], "cut off"),
]


@pytest.mark.parametrize(("what", "make", "words"), FOREIGN, ids=[row[0] for row in FOREIGN])
def test_what_its_bytes_show_to_be_something_else_is_refused_without_torch(
    what: str, make: Callable[[Path], bytes], words: str, tmp_path: Path
) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(make(tmp_path))

    # -S leaves out site-packages: importing torch would give `no-plugin`.
    verdict = judge_into(upload, tmp_path / "stored.pth", "-S")

    assert (verdict["ok"], verdict["code"]) == (False, "not-a-model")
    assert words in verdict["detail"]
    assert str(tmp_path) not in verdict["detail"]
    target = tmp_path / "stored.pth"
    assert not target.exists() or target.stat().st_size == 0


def test_a_python_without_the_plugin_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    with zipfile.ZipFile(upload, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")

    assert judge_into(upload, tmp_path / "stored.pth", "-S")["code"] == "no-plugin"
