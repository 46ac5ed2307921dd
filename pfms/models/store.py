"""The model store: weights by ID, each with its record, on disk under `models/<modelID>/`."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pfms.aio import to_the_end
from pfms.clock import iso, utc_now
from pfms.errors import InvalidModelID, ModelNotFound
from pfms.models.check import CHILD_SECONDS, check_weights
from pfms.storage.disk import reporting_full_disk
from pfms.storage.files import link_or_copy, sync_folder
from pfms.storage.removal import discard

logger = logging.getLogger(__name__)

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
REMOVED = ".removed-"
READ_ONLY = 0o440  # the jobs' hard links are the same file, so nobody may write to it in place
WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class ModelRecord:
    """What is known of a stored model.

    Attributes:
        model_id: Its name.
        sha256: Of the stored file, which is plain float32 whatever was sent.
        upload_sha256: Of the file that was sent.
        size: Of the stored file, bytes.
        uploaded_at: ISO 8601, UTC.
        source: `upload`, `demo`; `found` where someone put the file there by hand.
        warnings: What a user should know, one sentence each.
        unknown: Fields of `model.json` that another version of pfms wrote; they are kept.
    """

    model_id: str
    sha256: str
    upload_sha256: str
    size: int
    uploaded_at: str
    source: str = "upload"
    warnings: tuple[str, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As a client gets it, with the public name `modelID`."""
        fields = asdict(self) | {"warnings": list(self.warnings)}
        del fields["unknown"]
        return {"modelID": fields.pop("model_id"), **fields}

    def to_json(self) -> dict[str, Any]:
        """As `model.json` has it."""
        return {**self.unknown, **self.to_dict()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelRecord":
        """The inverse of `to_json`. A newer pfms may have left out all but checksum and size.

        Raises:
            KeyError, TypeError, ValueError: It is not the record of a model.
        """
        rest = dict(fields)
        warnings = rest.pop("warnings", ())
        return cls(
            sha256=str(rest.pop("sha256")),
            size=int(rest.pop("size")),
            model_id=str(rest.pop("modelID", "")),
            upload_sha256=str(rest.pop("upload_sha256", "")),
            uploaded_at=str(rest.pop("uploaded_at", "")),
            source=str(rest.pop("source", "unknown")),
            warnings=tuple(map(str, warnings)) if isinstance(warnings, list) else (),
            unknown=rest,
        )


def valid_model_id(text: str) -> str:
    """`text`, if it can be a model ID, and so the name of a folder.

    Raises:
        InvalidModelID: It cannot.
    """
    if MODEL_ID.fullmatch(text):
        return text
    shown = repr(text if len(text) <= 40 else text[:40] + "…")
    raise InvalidModelID(f"{shown} ({len(text)} characters) is not a model ID.")


class ModelStore:
    """The models under `root`.

    The calls that are not `async` touch the disk: they belong in a worker thread. They may run at
    the same time: file and record of a model always go together.

    Args:
        root: The folder; made when the first model is placed.
        interpreter: How to start the Python that has the plugin.
        time_limit: Seconds after which the look at an upload is given up.
    """

    def __init__(
        self, root: Path, interpreter: str | Sequence[str], *, time_limit: float = CHILD_SECONDS
    ) -> None:
        self.root = root
        self._interpreter = (interpreter,) if isinstance(interpreter, str) else tuple(interpreter)
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._child_lock = asyncio.Lock()

    def names(self) -> list[str]:
        """The IDs of all models, sorted; folders without weights or record are none."""
        if not self.root.is_dir():
            return []
        with os.scandir(self.root) as entries:
            found = [entry.name for entry in entries if MODEL_ID.fullmatch(entry.name)]
        return sorted(name for name in found if self._record(name))

    def get(self, model_id: str) -> ModelRecord:
        """The record of a model.

        Raises:
            InvalidModelID, ModelNotFound: The ID could not be one; no model has it.
        """
        record = self._record(valid_model_id(model_id))
        if record is None:
            raise ModelNotFound(f"No model has the ID {model_id!r}.")
        return record

    async def admit(
        self, model_id: str, upload: Path, upload_sha256: str, source: str = "upload"
    ) -> ModelRecord:
        """Check an upload against the plugin's network in a child process, then place it.

        `upload` itself stays where it is. On any error nothing is stored.

        Raises:
            InvalidModelID: The ID could not be one.
            NotAModel: It is no state dict that fits the plugin's network.
            DiskFull: There is no room for it.
            PfmsError: The plugin cannot be asked.
        """
        valid_model_id(model_id)
        weights = upload.with_name(f"{upload.name}.{uuid.uuid4().hex}.part")
        try:
            async with self._child_lock:
                found = await check_weights(self._interpreter, upload, weights, self._time_limit)
            return await asyncio.to_thread(
                self.place,
                model_id,
                weights,
                upload_sha256=upload_sha256,
                source=source,
                **asdict(found),
            )
        finally:
            await to_the_end(asyncio.to_thread(discard, weights))

    def place(
        self,
        model_id: str,
        weights: Path,
        *,
        sha256: str,
        upload_sha256: str,
        size: int,
        source: str,
        warnings: Sequence[str] = (),
    ) -> ModelRecord:
        """Move `weights` into place as the model `model_id`, in place of one that was there.

        Raises:
            InvalidModelID: The ID could not be one.
            DiskFull: There is no room for it.
        """
        record = ModelRecord(
            model_id=valid_model_id(model_id),
            sha256=sha256,
            upload_sha256=upload_sha256,
            size=size,
            uploaded_at=iso(utc_now()),
            source=source,
            warnings=(*warnings, *_warnings_of_name(model_id)),
        )
        folder = self.root / model_id
        with self._lock, reporting_full_disk():
            folder.mkdir(parents=True, exist_ok=True)
            try:
                # models/ may be a volume of its own, so a rename alone may not do
                shutil.move(weights, folder / "model.pth.part")
                _make_read_only(folder / "model.pth.part")
                self._write_record(record)
                # `_repair` finishes what a crash from here on leaves.
                (folder / "model.pth.part").replace(folder / "model.pth")
                sync_folder(folder)
                (folder / "model.json.part").replace(folder / "model.json")
                sync_folder(folder)
                sync_folder(self.root)
            except BaseException:
                self._repair(model_id)
                raise
        return record

    def link_into(self, model_id: str, target: Path) -> ModelRecord:
        """Give a job the weights as they are now, as the new file `target`, and their record.

        Whatever becomes of the model afterwards, `target` stays as it is; nobody may write to it.

        Raises:
            InvalidModelID, ModelNotFound: The ID could not be one; no model has it.
            DiskFull: It had to be copied, and there is no room.
        """
        with self._lock, reporting_full_disk():
            record = self.get(model_id)
            file = self.root / model_id / "model.pth"
            if _can_change(file):
                shutil.copyfile(file, target)
            else:
                link_or_copy(file, target)
            if not target.samefile(file):
                _make_read_only(target)
            return record

    def remove(self, model_id: str) -> None:
        """Remove a model; it vanishes at once and whole. Jobs that have it linked keep it.

        Raises:
            InvalidModelID, ModelNotFound: The ID could not be one; no model has it.
        """
        aside = self.root / f"{REMOVED}{uuid.uuid4().hex}"
        with self._lock:
            self.get(model_id)
            (self.root / model_id).rename(aside)
            sync_folder(self.root)
        discard(aside)

    def recover(self) -> None:
        """At a start: finish or undo what a crash left, and look again at files put in by hand."""
        if not self.root.is_dir():
            return
        with self._lock:
            for path in list(self.root.iterdir()):
                if path.name.startswith(REMOVED):
                    discard(path)
                elif MODEL_ID.fullmatch(path.name) and path.is_dir():
                    try:
                        self._repair(path.name)
                    except OSError as error:  # one folder is no reason not to start
                        logger.warning("model %s cannot be read: %s", path.name, error.strerror)

    def _record(self, name: str) -> ModelRecord | None:
        folder = self.root / name
        record = _read_record(folder / "model.json") if (folder / "model.pth").is_file() else None
        return record and replace(record, model_id=name)

    def _write_record(self, record: ModelRecord) -> None:
        path = self.root / record.model_id / "model.json.part"
        with path.open("w", encoding="utf-8") as file:
            json.dump(record.to_json(), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)

    def _repair(self, name: str) -> None:
        """Make one folder consistent, whatever step a crash, or a person, stopped at."""
        folder = self.root / name
        weights, kept, part = (folder / n for n in ("model.pth", "model.json", "model.json.part"))
        discard(folder / "model.pth.part")
        if not weights.is_file():
            for path in (kept, part):
                if _read_record(path):  # else it is someone else's file
                    discard(path)
            with contextlib.suppress(OSError):  # a file of someone else's keeps the folder
                folder.rmdir()
            return
        if not weights.is_symlink():
            _make_read_only(weights)
        if _can_change(weights):
            logger.warning("model %s: its file can be written to; each job gets a copy", name)
        next_record = _read_record(part)
        if next_record and next_record.sha256 == _sha256(weights):
            part.replace(kept)
            return
        discard(part)
        record, facts = _read_record(kept), weights.stat()
        if record and record.size == facts.st_size and facts.st_mtime_ns <= kept.stat().st_mtime_ns:
            return
        found = _sha256(weights)
        if record is None or record.sha256 != found:
            logger.warning("model %s: its weights are not those of its record", name)
            record = ModelRecord(
                model_id=name,
                sha256=found,
                upload_sha256=found,
                size=facts.st_size,
                uploaded_at=iso(utc_now()),
                source="found",
                unknown={} if record else _fields_of(kept),
                warnings=(
                    "The file was found in the workspace, and was never checked.",
                    *_warnings_of_name(name),
                ),
            )
        self._write_record(replace(record, model_id=name))
        part.replace(kept)
        sync_folder(folder)


def _warnings_of_name(model_id: str) -> tuple[str, ...]:
    """`spleenseg --mode ID@URL` looks for these words in all of it, in just this case."""
    return tuple(
        f"The ID contains {word!r}: the plugin's remote mode would start {word} as well."
        for word in ("training", "inference")
        if word in model_id
    )


def _read_record(path: Path) -> ModelRecord | None:
    try:
        return ModelRecord.from_json(_fields_of(path))
    except (ValueError, KeyError, TypeError):
        return None


def _fields_of(path: Path) -> dict[str, Any]:
    """What `model.json` says; empty where it cannot be read."""
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _make_read_only(file: Path) -> None:
    """Let nobody write to it in place, and make its content durable."""
    with file.open("rb") as opened:
        with contextlib.suppress(OSError):  # another's file, or a file system without modes
            os.fchmod(opened.fileno(), READ_ONLY)
        os.fsync(opened.fileno())


def _can_change(file: Path) -> bool:
    """Whether its content may become another under the same name, without us."""
    return file.is_symlink() or bool(file.stat().st_mode & WRITABLE)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
