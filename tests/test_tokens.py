"""The tokens file and `pfms tokens`."""

import asyncio
import hashlib
import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ByteSize

from pfms.access.authenticator import Credentials
from pfms.access.caller import Scope
from pfms.access.limits import Limits
from pfms.access.tokens import TokensFile, TokensFileError, add_token, read_tokens, revoke_token
from pfms.errors import NotReady, StartError, Unauthorized
from tests import tokens
from tests.command import pfms

INFER: frozenset[Scope] = frozenset({"infer"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def knows(them: TokensFile, token: str) -> str | None:
    """The name of the caller whose token it is."""
    caller = asyncio.run(them.caller(Credentials(token)))
    return caller.name if caller else None


# --- the commands ----------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_its_hash(file: Path) -> None:
    added = tokens.command(file, "add", "ward-3", "--scope", "infer", "--scope", "models")

    token = added["token"]
    assert re.fullmatch(r"pfms_[A-Za-z0-9_-]{43}", token)
    assert added == {
        "name": "ward-3",
        "token": token,
        "scopes": ["infer", "models"],
        "until": None,
    }
    assert token not in file.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() in file.read_text()
    assert tokens.command(file, "list")["tokens"] == [
        {"name": "ward-3", "scopes": ["infer", "models"], "until": None, "ended": False}
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_without_json_only_the_token_is_on_stdout(file: Path) -> None:
    done = pfms("tokens", "add", "a", "--scope", "admin", "--file", file, cwd=file.parent)

    assert knows(TokensFile(file), done.stdout.strip()) == "a"
    assert "not shown again" in done.stderr


def test_the_list_shows_who_has_ended_and_never_a_hash(file: Path) -> None:
    tokens.add(file, "old", until="2020-01-31")
    tokens.add(file, "new", "admin", until="2999-01-31")

    shown = pfms("tokens", "list", "--file", file, cwd=file.parent).stdout

    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["new", "admin", "2999-01-31"],
        ["old", "infer", "2020-01-31", "(ended)"],
    ]


def test_a_revoked_token_is_gone_and_its_name_free(file: Path) -> None:
    first = tokens.add(file, "a")
    assert tokens.command(file, "revoke", "a") == {"revoked": "a"}
    assert tokens.command(file, "list") == {"tokens": []}
    second = tokens.add(file, "a")

    assert [knows(TokensFile(file), token) for token in (first, second)] == [None, "a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("add", "taken", "--scope", "infer"), "already a token named 'taken'"),
        (("add", "a:b", "--scope", "infer"), "not a name"),
        (("add", "", "--scope", "infer"), "not a name"),
        (("add", "a\n", "--scope", "infer"), "not a name"),
        (("add", "x" * 65, "--scope", "infer"), "not a name"),
        (("add", "b", "--scope", "everything"), "'everything' is not a scope"),
        (("add", "b", "--scope", "infer", "--until", "31.1.2027"), "--until"),
        (("add", "b"), "--scope"),
        (("revoke", "b"), "no token named 'b'"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_changes_nothing(
    file: Path, line: tuple[str, ...], said: str
) -> None:
    tokens.add(file, "taken")
    before = file.read_bytes()

    done = pfms("tokens", *line, cwd=file.parent, code=2, tokens_file=str(file))

    assert said in done.stderr
    assert file.read_bytes() == before


def test_without_a_file_a_remedy_is_given(tmp_path: Path) -> None:
    done = pfms("tokens", "list", cwd=tmp_path, code=2)

    assert "PFMS_TOKENS_FILE" in done.stderr


def test_tokens_added_at_the_same_time_are_all_there(file: Path) -> None:
    names = [f"t{n}" for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda name: add_token(file, name, INFER), names))

    them = TokensFile(file)
    assert [knows(them, token) for token in made] == names


def test_a_change_keeps_the_mode_of_the_file_and_what_a_link_leads_to(file: Path) -> None:
    add_token(file, "a", INFER)
    file.chmod(0o640)
    link = file.with_name("link")
    link.symlink_to(file)

    add_token(link, "b", INFER)

    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert set(read_tokens(file)) == {"a", "b"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
@pytest.mark.parametrize("owner", [12345, 0])
def test_a_change_by_root_leaves_the_file_to_its_owner_and_group(file: Path, owner: int) -> None:
    add_token(file, "a", INFER)
    os.chown(file, owner, 12346)

    add_token(file, "b", INFER)

    assert (file.stat().st_uid, file.stat().st_gid) == (owner, 12346)


def test_limits_survive_a_change(file: Path) -> None:
    add_token(file, "a", INFER)
    document = json.loads(file.read_text())
    document["tokens"]["a"]["limits"] = {"jobs": 3, "bytes": 1000}
    file.write_text(json.dumps(document))

    add_token(file, "b", INFER)

    assert json.loads(file.read_text())["tokens"]["a"] == document["tokens"]["a"]


# --- the file --------------------------------------------------------------------------------


def test_a_token_may_have_limits_of_its_own(file: Path) -> None:
    first, second = (add_token(file, name, INFER) for name in "ab")
    document = json.loads(file.read_text())
    document["tokens"]["a"]["limits"] = {"jobs": 3, "bytes": "2GiB"}
    file.write_text(json.dumps(document))

    callers = [asyncio.run(TokensFile(file).caller(Credentials(t))) for t in (first, second)]

    assert [caller and caller.limits for caller in callers] == [
        Limits(jobs=3, uploads=None, bytes=ByteSize(2 << 30)),
        Limits(),
    ]


def test_a_change_is_seen_without_a_restart(file: Path) -> None:
    first = add_token(file, "a", INFER)
    them = TokensFile(file)
    second = add_token(file, "b", INFER)
    assert [knows(them, token) for token in (first, second)] == ["a", "b"]

    revoke_token(file, "a")

    assert [knows(them, token) for token in (first, second)] == [None, "b"]


def test_a_token_is_accepted_through_its_last_day(file: Path) -> None:
    today = datetime.now(UTC).date()  # a run across midnight is the one that may fail
    last = add_token(file, "last", INFER, today)
    over = add_token(file, "over", INFER, today - timedelta(days=1))
    them = TokensFile(file)

    assert knows(them, last) == "last"
    with pytest.raises(Unauthorized, match=str(today - timedelta(days=1))):
        knows(them, over)


@pytest.mark.parametrize("end", ["", "x", "é", "\x00", "\udc80"])
def test_what_is_not_quite_a_token_is_unknown(file: Path, end: str) -> None:
    token = add_token(file, "a", INFER)
    them = TokensFile(file)

    assert knows(them, token + end) == ("a" if end == "" else None)
    assert knows(them, token[:-1] + end) is None
    assert knows(them, hashlib.sha256(token.encode()).hexdigest()) is None


ENTRY = {"sha256": "0" * 64, "scopes": ["infer"]}
BROKEN = {
    "empty": "",
    "cut": '{"tokens": {"a": {"sha2',
    "not JSON": "tokens = 1",
    "a list": "[]",
    "no tokens": "{}",
    "a misspelt key": json.dumps({"tokens": {"a": {**ENTRY, "untill": "2020-01-01"}}}),
    "a scope of another": json.dumps({"tokens": {"a": {**ENTRY, "scopes": ["root"]}}}),
    "no scope": json.dumps({"tokens": {"a": {**ENTRY, "scopes": []}}}),
    "no hash": json.dumps({"tokens": {"a": {**ENTRY, "sha256": "secret"}}}),
    "no date": json.dumps({"tokens": {"a": {**ENTRY, "until": "soon"}}}),
    "no name": json.dumps({"tokens": {"a:b": ENTRY}}),
    "bytes": "\udcff\udcfe",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_stops_a_start_and_accepts_nobody(file: Path, content: str) -> None:
    token = add_token(file, "a", INFER)
    good = file.read_bytes()
    them = TokensFile(file)
    file.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(NotReady):
        knows(them, token)
    with pytest.raises(StartError, match=re.escape(str(file))) as refused:
        TokensFile(file)
    assert "secret" not in refused.value.line  # what is there may be a token in the wrong place
    with pytest.raises(TokensFileError):
        add_token(file, "b", INFER)
    assert file.read_bytes() == content.encode(errors="surrogateescape")

    file.write_bytes(good)
    assert knows(them, token) == "a"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o660, 0o601])
def test_a_file_that_others_may_read_or_change_is_refused(file: Path, mode: int) -> None:
    token = add_token(file, "a", INFER)
    them = TokensFile(file)
    file.chmod(mode)

    with pytest.raises(NotReady):
        knows(them, token)
    with pytest.raises(StartError, match="Other users may") as refused:
        TokensFile(file)
    assert f"chmod 600 {file}" in refused.value.line

    file.chmod(0o640)
    assert knows(them, token) == "a"


def test_a_missing_file_stops_a_start_and_accepts_nobody(file: Path) -> None:
    with pytest.raises(StartError, match="no tokens file") as refused:
        TokensFile(file)
    assert "pfms tokens add" in refused.value.line
    token = add_token(file, "a", INFER)
    them = TokensFile(file)
    away = file.rename(file.with_name("away"))

    with pytest.raises(NotReady):
        knows(them, token)

    away.rename(file)
    assert knows(them, token) == "a"


def test_every_token_is_compared_in_constant_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add_token(file, "a", INFER)
    for name in ("b", "c"):
        add_token(file, name, INFER)
    them = TokensFile(file)
    compared = []
    compare = __import__("hmac").compare_digest

    def noted(one: str, other: str) -> bool:
        compared.append(one)
        return bool(compare(one, other))

    monkeypatch.setattr("hmac.compare_digest", noted)

    assert knows(them, first) == "a"
    assert compared == [token.sha256 for token in read_tokens(file).values()]


def test_credentials_do_not_show_their_token() -> None:
    assert "secret" not in repr(Credentials("secret"))
