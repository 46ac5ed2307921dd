"""Weights that would run code, unpack without end, or name files that are not theirs.

The pickles are written by hand, opcode by opcode, as no library would write them.
"""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.volumes import GIB, checksum_of_zeros, deflated_zeros, gibibyte, packed

_STOP = b"."
_DATA = "archive/data.pkl"


@dataclass(frozen=True)
class Weights:
    """An upload; `opened` says whether only torch's own reader can find out what it is."""

    name: str
    content: bytes
    opened: bool = False


def weights(sentinel: Path) -> Iterator[Weights]:
    """Every upload; the code in them, were it run, would make the file `sentinel`."""
    for name, data in pickles(sentinel).items():
        yield Weights(f"pickle: {name}", archive({_DATA: data}), opened=True)
        if name.startswith("os.system"):
            yield Weights(f"bare pickle: {name}", b"\x80\x02" + data)
    yield from _legacy(sentinel)
    yield from _bombs()
    yield from _names()
    yield from _damaged_archives()


def pickles(sentinel: Path) -> dict[str, bytes]:
    """Pickles that reach for more than tensors, by each opcode that can."""
    command = f"touch '{sentinel}'"
    program = f"open({str(sentinel)!r}, 'w')"
    said, python = _text(command), _text(program)
    run = b"cposix\nsystem\n"
    lazy = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + _text("os") + b"tR"
    stacked = _text("posix") + _text("system") + b"\x93"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return {
        "os.system by GLOBAL": run + b"(" + said + b"tR" + _STOP,
        "os.system by STACK_GLOBAL": b"\x80\x04" + stacked + said + b"\x85R" + _STOP,
        "os.system by INST": b"(" + said + b"iposix\nsystem\n" + _STOP,
        "os.system by OBJ": b"(" + run + said + b"o" + _STOP,
        "os.system by NEWOBJ": run + said + b"\x85\x81" + _STOP,
        "os.system by NEWOBJ_EX": b"\x80\x04" + run + said + b"\x85}\x92" + _STOP,
        "os.system by BUILD": b"ccollections\nOrderedDict\n)R" + run + b"(" + said + b"tRb" + _STOP,
        "builtins.eval": b"cbuiltins\neval\n(" + python + b"tR" + _STOP,
        "builtins.exec": b"cbuiltins\nexec\n(" + python + b"tR" + _STOP,
        "builtins.open": b"cbuiltins\nopen\n(" + _text(str(sentinel)) + _text("w") + b"tR" + _STOP,
        "builtins.getattr": lazy + _text("system") + b"tR(" + said + b"tR" + _STOP,
        "subprocess.Popen": b"csubprocess\nPopen\n(("
        + _text("touch")
        + _text(str(sentinel))
        + b"ltR"
        + _STOP,
        "runpy": b"crunpy\n_run_code\n(" + python + b"}tR" + _STOP,
        "pickle in a pickle": b"c_pickle\nloads\n("
        + _bytes(run + b"(" + said + b"tR.")
        + b"tR"
        + _STOP,
        "torch.load again": b"ctorch.serialization\nload\n(" + _text("/etc/passwd") + b"tR" + _STOP,
        "torch.hub": b"ctorch.hub\nload_state_dict_from_url\n("
        + _text("http://127.0.0.1:9/")
        + b"tR"
        + _STOP,
        "torch.ops": b"ctorch._ops\nops\n" + _STOP,
        "numpy from a file": b"cnumpy\nfromfile\n(" + _text("/etc/passwd") + b"tR" + _STOP,
        "dotted name": b"\x80\x04"
        + _text("torch")
        + _text("os.system")
        + b"\x93"
        + said
        + b"\x85R"
        + _STOP,
        "a class of the plugin": b"cspleenseg.spleenseg\nmain\n)R" + _STOP,
        "a tensor's class, called": b"ctorch\nTensor\n(K\x01K\x01tR" + _STOP,
        "a storage without end": tensor
        + b"(("
        + _storage(1 << 60)
        + b"QK\0(K\x01t(K\x01t\x89NtR"
        + _STOP,
        "a negative shape": tensor
        + b"(("
        + _storage(4)
        + b"QK\0(J\xff\xff\xff\xfft(K\x01t\x89NtR"
        + _STOP,
        "an offset beyond the end": tensor
        + b"(("
        + _storage(4)
        + b"QJ\xff\xff\xff\x7f(K\x04t(K\x01t\x89NtR"
        + _STOP,
        "a persistent ID": _text("../../../../etc/passwd") + b"Q" + _STOP,
        "a storage named ..": b"("
        + _text("storage")
        + b"ctorch\nFloatStorage\n"
        + _text("../data.pkl")
        + _text("cpu")
        + b"K\x01tQ"
        + _STOP,
        "an extension of copyreg": b"\x82\x01" + _STOP,
        "memo without end": b"h\xff" + _STOP,
        "a tuple in itself": b"](h\0tq\0" + _STOP,
        "lists in lists": b"]" * 100_000 + b"a" * 99_999 + _STOP,
        "nothing on the stack": b"R" + _STOP,
        "no STOP": b"}" * 1000,
        "a string of 4 GiB": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 32) + b"x" + _STOP,
        "a string of 2**63": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 63) + b"x" + _STOP,
        "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n" + _STOP,
        "a frame without end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}" + _STOP,
        "protocol 255": b"\x80\xff}" + _STOP,
        "a dict of a list": b"}]K\x01s" + _STOP,
        "billion laughs": b"]" + b"(" + b"".join(b"2" for _ in range(64)) + b"l" * 60 + _STOP,
    }


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive like torch.save's."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as made:
        for name, content in entries.items():
            made.writestr(zipfile.ZipInfo(name), content, method)
        if "archive/version" not in entries:
            made.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
    return memory.getvalue()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _bytes(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def _storage(count: int) -> bytes:
    number = b"\x8a\x09" + count.to_bytes(9, "little", signed=True)
    return _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + number + b"t"


def _legacy(sentinel: Path) -> Iterator[Weights]:
    """The format from before torch wrote zip archives: pickles one after the other."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    evil = b"cposix\nsystem\n(" + _text(f"touch '{sentinel}'") + b"tR."
    head = magic + pickle.dumps(1001, 2)
    yield Weights("legacy: code instead of its protocol", magic + evil, opened=True)
    yield Weights("legacy: code as its content", head + pickle.dumps({}, 2) + evil, opened=True)
    yield Weights("legacy: cut off", head, opened=True)
    yield Weights("legacy: noise", magic + bytes(range(256)) * 40, opened=True)


def _bombs() -> Iterator[Weights]:
    head = {_DATA: b"}."}
    bomb = _zip_of_zeros(GIB)
    yield Weights("zip bomb: a gibibyte", bomb)
    yield Weights("gzip bomb as .pth", gibibyte())
    yield Weights(
        "gzip bomb in a .pth", archive(head | {"archive/data/0": gibibyte()}), opened=True
    )
    yield Weights(
        "zip bomb in a zip",
        archive(head | {"archive/data/0": bomb}, zipfile.ZIP_DEFLATED),
        opened=True,
    )
    yield Weights("overlapping entries", _overlapping())
    yield Weights(
        "60,000 entries",
        archive(head | {f"archive/data/{n}": b"" for n in range(60_000)}),
        opened=True,
    )
    for name, at, value in (
        ("unpacked size 0", 22, 0),
        ("unpacked size 1", 22, 1),
        ("unpacked size 2**32-2", 22, 0xFFFFFFFE),
        ("packed size 2**32-2", 18, 0xFFFFFFFE),
        ("packed size 0", 18, 0),
    ):
        yield Weights(f"zip lies: {name}", _with_field(archive(head), at, value), opened=True)
    yield Weights(
        "bzip2 in a zip",
        archive(head | {"archive/data/0": bytes(9 << 20)}, zipfile.ZIP_BZIP2),
        opened=True,
    )
    yield Weights(
        "LZMA in a zip",
        archive(head | {"archive/data/0": bytes(9 << 20)}, zipfile.ZIP_LZMA),
        opened=True,
    )


def _zip_of_zeros(size: int) -> bytes:
    whole = bytearray(archive({_DATA: b"}.", "archive/data/0": deflated_zeros(size)}))
    first = whole.index(b"archive/data/0") - 30
    listed = whole.rindex(b"archive/data/0") - 46
    for method, checksum in ((first + 8, first + 14), (listed + 10, listed + 16)):
        whole[method : method + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        whole[checksum : checksum + 4] = struct.pack("<I", checksum_of_zeros(size))
        whole[checksum + 8 : checksum + 12] = struct.pack("<I", size)
    return bytes(whole)


def _overlapping() -> bytes:
    """Thousands of entries in the archive's list that are all the same mebibytes."""
    whole = archive({_DATA: b"}.", "archive/data/0": bytes(32 << 20)}, zipfile.ZIP_DEFLATED)
    end = whole.rindex(b"PK\5\6")
    start = struct.unpack("<I", whole[end + 16 : end + 20])[0]
    listed = whole[start:end]
    second = listed.index(b"PK\1\2", 4)
    third = listed.index(b"PK\1\2", second + 4)
    entry = listed[second:third]
    many = listed[:second] + b"".join(
        entry[:46] + f"archive/data/{n}".encode()[:14].ljust(14, b"_") for n in range(5000)
    )
    counts = struct.pack("<HHII", 5001, 5001, len(many), start)
    return whole[:start] + many + b"PK\5\6\0\0\0\0" + counts + b"\0\0"


def _with_field(whole: bytes, at: int, value: int) -> bytes:
    """Put a 32-bit field into the first entry of the list (`at` as in the local header)."""
    listed = whole.index(b"PK\1\2") + at + 2
    return whole[:listed] + struct.pack("<I", value) + whole[listed + 4 :]


def _names() -> Iterator[Weights]:
    for name in (
        *("../../../pfms-was-here", "/tmp/pfms-was-here", "archive/../../data/0", "C:\\data\\0"),
        *("archive/data/" + "../" * 50 + "etc/passwd", "archive/" + "a" * 60_000, "archive/\0x"),
        *("archive/\N{RIGHT-TO-LEFT OVERRIDE}htp.0", "\\\\host\\share\\0", "archive//data/0"),
    ):
        yield Weights(f"named {name[:30]!r}", archive({_DATA: b"}.", name: b"x"}), opened=True)
    yield Weights("only ..", archive({"../data.pkl": b"}."}), opened=True)
    for place in ("/data.pkl", "archive/a/data.pkl", "data.pkl"):
        yield Weights(f"its pickle at {place}", archive({place: b"}."}), opened=True)
    twice = archive({_DATA: b"}.", "archive/dbta.pkl": b"]."})
    yield Weights("two pickles of one name", twice.replace(b"dbta", b"data"), opened=True)
    yield Weights(
        "an archive of two roots", archive({_DATA: b"}.", "other/data.pkl": b"]."}), opened=True
    )


def _damaged_archives() -> Iterator[Weights]:
    plain = archive({_DATA: b"}.", "archive/data/0": bytes(64)})
    first, end = plain.index(b"PK\1\2"), plain.rindex(b"PK\5\6")
    encrypted = bytearray(plain)
    encrypted[first + 8] |= 1
    encrypted[6] |= 1
    yield Weights("encrypted", bytes(encrypted))
    yield Weights("an unknown method", plain[: first + 10] + b"\x63\0" + plain[first + 12 :])
    yield Weights("a needed version of 255", plain[: first + 6] + b"\xff\xff" + plain[first + 8 :])
    yield Weights("a wrong checksum", plain[: first + 16] + b"\1\2\3\4" + plain[first + 20 :])
    yield Weights(
        "an entry that begins beyond the end",
        plain[: first + 42] + b"\xff\xff\xff\x7f" + plain[first + 46 :],
    )
    yield Weights(
        "an entry that begins in itself",
        plain[: first + 42] + struct.pack("<I", first) + plain[first + 46 :],
    )
    for at, name in (
        (8, "entries on this disk"),
        (10, "entries"),
        (12, "size of the list"),
        (16, "start of the list"),
    ):
        lie = plain[: end + at] + b"\xfe\xff" + plain[end + at + 2 :]
        yield Weights(f"end of the list lies: {name}", lie, opened=at == 8)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, 1 << 60, 1)
    yield Weights("zip64: its end beyond the end", plain[:end] + locator + plain[end:])
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 50, 0)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    saturated = plain[end : end + 8] + b"\xff" * 12 + plain[end + 20 :]
    yield Weights("zip64: a tebi of entries", plain[:end] + record + locator + saturated)
    comment = plain[:-2] + b"\xff\xff" + b"c" * 65535
    yield Weights("a comment of 64 KiB", comment, opened=True)
    yield Weights("an archive behind another file", b"PK\3\4" + bytes(5000) + plain, opened=True)
    for cut in (4, 30, 60, first, first + 20, end, end + 10, len(plain) - 1):
        yield Weights(f"cut at {cut}", plain[:cut])
    yield Weights("zipped and gzipped", packed(plain))
    yield Weights("nothing but the end", plain[end:])
