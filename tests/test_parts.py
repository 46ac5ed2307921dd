"""A multipart body: whatever RFC 2046 allows is read, however it is cut, at bounded cost."""

import random
import time
from email import policy
from email.encoders import encode_noop
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.parser import BytesParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfms.api.parts import Part, Splitter
from pfms.errors import InvalidParameter
from tests.conftest import Server, nifti_bytes
from tests.refused import INFER, MODELPTH, refused
from tests.wire import BOUNDARY, FORM, form, part

LINE = f"--{BOUNDARY}"
DATA = bytes(range(256)) + b"\r\n-\r\n--\r\r\n\n" + f"\r\n{LINE[:-1]}\r\n{LINE}x".encode()


def parts_of(pieces: list[bytes], boundary: str = BOUNDARY) -> list[tuple[Part, bytes]]:
    splitter = Splitter(boundary.encode())
    found: list[tuple[Part, bytes]] = []
    for piece in pieces:
        for event in splitter.feed(piece):
            if isinstance(event, Part):
                found.append((event, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + event)
    assert splitter.ended
    return found


def body(
    *,
    before: str = "",
    first: str = LINE,
    head: str = 'Content-Disposition: form-data; name="file"; filename="ct"',
    content: bytes = DATA,
    last: str = f"{LINE}--\r\n",
    after: str = "",
) -> bytes:
    start = f"{before}{first}\r\n{head}\r\n\r\n".encode()
    return start + content + f"\r\n{last}{after}".encode()


EMAIL = (
    'Content-Type: multipart/form-data; boundary="x"\r\nMIME-Version: 1.0\r\n\r\n'
    "This is a message in several parts.\r\n\r\n"
)
LEGAL = {
    "as browsers write it": body(),
    "a preamble": body(before=EMAIL),
    "a preamble with something like a boundary": body(before=f"x{LINE}\r\n{LINE}x\r\n\r\n"),
    "a preamble of one line break": body(before="\r\n"),
    "blanks after the first boundary": body(first=f"{LINE} \t "),
    "blanks after the last boundary": body(last=f"{LINE}-- \t\r\n"),
    "no line break at the end": body(last=f"{LINE}--"),
    "an epilogue": body(after=f"\r\nthe end\r\n{LINE}\r\nX: y\r\n\r\n"),
    "a folded header": body(
        head='Content-Disposition: form-data;\r\n name="file";\r\n\tfilename="a CT"'
    ),
    "a fold of many blanks": body(head='Content-Disposition:\r\n   form-data;   name="file"'),
    "headers in another case": body(head='CONTENT-DISPOSITION: Form-Data; NAME="file"'),
    "a name without quotes": body(head="Content-Disposition: form-data; name=file"),
    "blanks around the name": body(head='Content-Disposition: form-data ; name = "file" ; x=y'),
    "a quoted pair": body(head='Content-Disposition: form-data; name="fi\\le"'),
    "a filename with quotes in it": body(
        head='Content-Disposition: form-data; filename="a\\"; name=x\\".nii"; name="file"'
    ),
    "a filename in another charset": body(
        head="Content-Disposition: form-data; name=file; filename*=UTF-8''%e2%82%ac.nii"
    ),
    "a filename in UTF-8": body(head='Content-Disposition: form-data; name="file"; filename="ä"'),
    "other headers before": body(
        head='Content-Type: application/gzip\r\nX: y\r\nContent-Disposition: form-data; name="file"'
    ),
    "a part of no headers before": f"{LINE}\r\n\r\nx\r\n".encode() + body(),
    "an empty part before": f"{LINE}\r\nContent-Type: text/plain\r\n\r\n".encode() + body(),
    "blanks between": form(part(DATA)).replace(b"\r\n\r\n", b"\r\n\r\n", 1),
    "two fields, blanks after the boundary between": (
        f"{LINE}\r\nContent-Disposition: form-data; name=other\r\n\r\nx\r\n".encode()
        + body(first=f"{LINE}  ")
    ),
}


@pytest.mark.parametrize("content", LEGAL.values(), ids=LEGAL)
def test_what_the_rfc_allows_is_read_wherever_it_is_cut(content: bytes) -> None:
    whole = parts_of([content])

    assert whole[-1][1] == DATA
    assert parts_of([content[i : i + 1] for i in range(len(content))]) == whole
    for cut in range(len(content)):
        assert parts_of([content[:cut], content[cut:]]) == whole


@pytest.mark.parametrize("name", LEGAL)
def test_what_the_rfc_allows_reaches_the_service(server: Server, name: str) -> None:
    content = LEGAL[name].replace(DATA, nifti_bytes())
    answer = server.http.post(
        INFER, params={"modelID": "demo"}, content=content, headers={"Content-Type": FORM}
    )

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("boundary", ["'()+_,-./:=?", "a b", "-", "=_?", "x" * 70, "a.*+[b"])
def test_every_legal_boundary_is_accepted(server: Server, boundary: str) -> None:
    content = form(part(nifti_bytes())).replace(BOUNDARY.encode(), boundary.encode())
    kind = f'multipart/form-data; charset=utf-8; Boundary="{boundary}"'
    answer = server.http.post(
        INFER, params={"modelID": "demo"}, content=content, headers={"Content-Type": kind}
    )

    assert answer.status_code == 200, answer.text


def test_a_form_that_an_email_library_writes_is_read(server: Server) -> None:
    message = MIMEMultipart("form-data")
    file = MIMEApplication(b"(the volume)", _encoder=encode_noop)
    file.add_header(
        "Content-Disposition", "form-data", name="file", filename="a long name " * 9 + ".nii"
    )
    message.attach(file)
    written = message.as_bytes(policy=policy.HTTP).replace(b"(the volume)", nifti_bytes())
    head, _, rest = written.partition(b"\r\n\r\n")
    kind = str(BytesParser(policy=policy.HTTP).parsebytes(head)["Content-Type"])

    for content in (rest, head + b"\r\n\r\n" + rest):
        answer = server.http.post(
            INFER, params={"modelID": "demo"}, content=content, headers={"Content-Type": kind}
        )
        assert answer.status_code == 200, answer.text


@settings(deadline=None)
@given(
    contents=st.lists(st.text("\r\n- \tab", max_size=60), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_it_reads_the_contents_that_a_body_was_built_from(
    contents: list[str], cuts: list[int]
) -> None:
    """For the boundary `ab`, which the contents nearly have in them."""
    lines = [f"--ab\r\nX: {i}\r\n\r\n{text}\r\n" for i, text in enumerate(contents)]
    content = f"{''.join(lines)}--ab--\r\n".encode()
    if any("--ab" in text for text in contents):
        return
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})

    found = parts_of([content[a:b] for a, b in zip([0, *ends], ends, strict=False)], "ab")

    assert [data.decode() for _, data in found] == contents
    assert [head.headers for head, _ in found] == [{b"x": b"%d" % i} for i in range(len(contents))]


# --- refusals, and their reasons -----------------------------------------------------------------

WRONG: dict[str, tuple[str, bytes]] = {
    "LF alone": ("LF alone", body().replace(b"\r\n", b"\n")),
    "LF alone in the headers": (
        "LF alone",
        f"{LINE}\r\nContent-Disposition: form-data; name=file\n\nx".encode(),
    ),
    "a header without a colon": ("broken header", body(head="bad header")),
    "a long header": ("bytes of headers", body(head=f"X: {'x' * 17_000}")),
    "many blanks after a boundary": ("bytes of headers", body(first=LINE + " " * 17_000)),
    "another boundary": ("does not occur in the body", body().replace(LINE.encode(), b"--other")),
    "no end": ("ends early", body(last="")),
    "base64": (
        "Content-Transfer-Encoding: base64",
        body(
            head='Content-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: Base64'
        ),
    ),
}


@pytest.mark.parametrize(("reason", "content"), WRONG.values(), ids=WRONG)
def test_a_form_that_is_broken_is_refused_with_its_cause(
    server: Server, reason: str, content: bytes
) -> None:
    detail = refused(
        server, 422, "invalid-parameter", content=content, headers={"Content-Type": FORM}
    )

    assert reason in detail


@pytest.mark.parametrize("path", [INFER, MODELPTH])
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([part(b"ct.nii.gz", 'form-data; name="file"')], "the text 'ct.nii.gz'"),
        ([part(b"", 'form-data; name="file"; filename=""')], "0 bytes"),
        ([part(b"")], "0 bytes"),
        ([part(b"x", 'form-data; name="ct"'), part(b"x", "form-data")], "only 'ct', ''"),
        ([], "no fields"),
    ],
)
def test_the_refusal_of_a_form_without_a_file_says_what_it_has_instead(
    server: Server, path: str, parts: list[bytes], reason: str
) -> None:
    detail = refused(
        server,
        422,
        "missing-file",
        path,
        content=form(*parts),
        headers={"Content-Type": FORM},
    )

    assert reason in detail


# --- its cost --------------------------------------------------------------------------------


def seconds_of(chunks: list[bytes]) -> float:
    splitter = Splitter(BOUNDARY.encode())
    splitter.feed(part(b"").removesuffix(b"\r\n"))
    began = time.process_time()
    for chunk in chunks:
        splitter.feed(chunk)
    return time.process_time() - began


@pytest.mark.parametrize(
    "flood",
    [
        f"\r\n{LINE}x".encode(),
        f"\r\n{LINE}-x".encode(),
        f"\r\n{LINE[:-1]}".encode(),
        b"\r",
        b"\r\n",
        b"\r\n--",
    ],
)
def test_content_that_is_nearly_a_boundary_costs_no_more_than_its_length(flood: bytes) -> None:
    size = 256 << 10
    chunk = (flood * (size // len(flood) + 1))[:size]

    # 4 MiB; where each near miss costs a look at the rest of its chunk, it takes minutes.
    assert seconds_of([chunk] * 16) < 5


def test_pieces_of_one_byte_cost_no_more_than_their_number() -> None:
    assert seconds_of([b"\r"] * 200_000) < 5


def test_a_head_without_end_is_refused_before_it_is_kept() -> None:
    splitter = Splitter(BOUNDARY.encode())
    splitter.feed(f"{LINE}\r\n".encode())
    with pytest.raises(InvalidParameter):  # noqa: PT012  (it is the second or third that is refused)
        for _ in range(1024):
            splitter.feed(b"x" * 8192)


def test_any_bytes_come_through_whole() -> None:
    dice = random.Random(7)
    data = dice.randbytes(3 << 20)
    content = form(part(data))
    pieces = []
    while content:
        length = dice.choice([1, 2, 17, 1000, 65536, 262144])
        pieces.append(content[:length])
        content = content[length:]

    assert parts_of(pieces)[0][1] == data
