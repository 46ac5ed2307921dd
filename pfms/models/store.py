"""The model store: weights and their records, on disk under `models/<modelID>/`."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from weakref import WeakValueDictionary

from pfms.aio import to_the_end
from pfms.clock import iso, utc_now
from pfms.errors import ModelNotFound
from pfms.models.check import CHILD_SECONDS, check_weights
from pfms.models.record import MODEL_ID, ModelRecord, read_fields, read_record, valid_model_id
from pfms.storage.disk import reporting_full_disk
from pfms.storage.files import link_or_copy, sha256_of, sync_folder
from pfms.storage.removal import discard

logger = logging.getLogger(__name__)

_CHECKS_AT_ONCE = 3  # each imports torch: some hundred megabytes and a core
REMOVED = ".removed-"
READ_ONLY = 0o440  # jobs have hard links to the same file, so nobody may write to it in place
WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class ModelStore:
    """The models under `root`.

    Methods that are not `async` use the disk: call them in a worker thread. They may run at the
    same time; file and record of a model always match.

    Args:
        root: The folder; it is made when the first model is stored.
        interpreter: How to start the Python that has the plugin.
        time_limit: Seconds after which the check of an upload is ended.
    """

    def __init__(
        self, root: Path, interpreter: str | Sequence[str], *, time_limit: float = CHILD_SECONDS
    ) -> None:
        self.root = root
        self._interpreter = (interpreter,) if isinstance(interpreter, str) else tuple(interpreter)
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._checks = asyncio.Semaphore(_CHECKS_AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def names(self) -> list[str]:
        """The IDs of all models, sorted; folders without weights or a record are not models."""
        if not self.root.is_dir():
            return []
        with os.scandir(self.root) as entries:
            found = [entry.name for entry in entries if MODEL_ID.fullmatch(entry.name)]
        return sorted(name for name in found if self._record(name))

    def get(self, model_id: str) -> ModelRecord:
        """The record of a model.

        Raises:
            InvalidModelID: It is not a model ID.
            ModelNotFound: No model has this ID.
        """
        record = self._record(valid_model_id(model_id))
        if record is None:
            raise ModelNotFound(f"No model has the ID {model_id!r}.")
        return record

    async def admit(
        self, model_id: str, upload: Path, upload_sha256: str, source: str = "upload"
    ) -> ModelRecord:
        """Check an upload against the plugin's network in a child process, then store it.

        `upload` itself is left where it is. On any error nothing is stored.

        Raises:
            InvalidModelID: `model_id` is not a model ID.
            NotAModel: It is not a state dict that fits the plugin's network.
            DiskFull: There is no room for it.
            PfmsError: The plugin cannot be imported.
        """
        valid_model_id(model_id)
        weights = upload.with_name(f"{upload.name}.{uuid.uuid4().hex}.part")
        try:
            # Uploads of one model are stored in the order in which they came.
            async with self._turns.setdefault(model_id, asyncio.Lock()):
                async with self._checks:
                    found = await check_weights(
                        self._interpreter, upload, weights, self._time_limit
                    )
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
        """Move `weights` into place as the model `model_id`, replacing any existing one.

        Raises:
            InvalidModelID: `model_id` is not a model ID.
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
                # models/ may be a file system of its own, where a rename fails
                shutil.move(weights, folder / "model.pth.part")
                _make_read_only(folder / "model.pth.part")
                self._write_record(record)
                # After a crash from here on, `_repair` finishes the replacement.
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
        """Give a job the current weights, as the new file `target`; returns their record.

        Whatever happens to the model later, `target` does not change; nobody may write to it.

        Raises:
            InvalidModelID: It is not a model ID.
            ModelNotFound: No model has this ID.
            DiskFull: The weights had to be copied, and there is no room.
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
        """Remove a model in one step. Jobs that have a link to its weights keep them.

        Raises:
            InvalidModelID: It is not a model ID.
            ModelNotFound: No model has this ID.
        """
        aside = self.root / f"{REMOVED}{uuid.uuid4().hex}"
        with self._lock:
            self.get(model_id)
            (self.root / model_id).rename(aside)
            sync_folder(self.root)
        _discard_or_log(aside)

    def recover(self) -> None:
        """At a start: finish or undo what a crash interrupted, and adopt files put in by hand."""
        if not self.root.is_dir():
            return
        with self._lock:
            for path in list(self.root.iterdir()):
                if path.name.startswith(REMOVED):
                    _discard_or_log(path)
                elif MODEL_ID.fullmatch(path.name) and path.is_dir():
                    try:
                        self._repair(path.name)
                    except OSError as error:  # one folder must not stop the start
                        logger.warning("model %s cannot be read: %s", path.name, error.strerror)

    def _record(self, name: str) -> ModelRecord | None:
        folder = self.root / name
        record = read_record(folder / "model.json") if (folder / "model.pth").is_file() else None
        return record and replace(record, model_id=name)

    def _write_record(self, record: ModelRecord) -> None:
        path = self.root / record.model_id / "model.json.part"
        with path.open("w", encoding="utf-8") as file:
            json.dump(record.to_json(), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)

    def _repair(self, name: str) -> None:
        """Make one folder consistent, whatever a crash or a person left in it."""
        folder = self.root / name
        weights, kept, part = (folder / n for n in ("model.pth", "model.json", "model.json.part"))
        discard(folder / "model.pth.part")
        if not weights.is_file():
            for path in (kept, part):
                if read_record(path):  # otherwise it is someone else's file
                    discard(path)
            with contextlib.suppress(OSError):  # the folder stays if someone else's file is in it
                folder.rmdir()
            return
        if not weights.is_symlink():
            _make_read_only(weights)
        if _can_change(weights):
            logger.warning("model %s: its file is writable, so each job gets a copy", name)
        next_record = read_record(part)
        if next_record and next_record.sha256 == sha256_of(weights):
            part.replace(kept)
            return
        discard(part)
        record, facts = read_record(kept), weights.stat()
        if record and record.size == facts.st_size and facts.st_mtime_ns <= kept.stat().st_mtime_ns:
            return
        found = sha256_of(weights)
        if record is None or record.sha256 != found:
            logger.warning("model %s: its weights do not match its record", name)
            record = ModelRecord(
                model_id=name,
                sha256=found,
                upload_sha256=found,
                size=facts.st_size,
                uploaded_at=iso(utc_now()),
                source="found",
                unknown={} if record else read_fields(kept),
                warnings=(
                    "The file was found in the workspace and was never checked.",
                    *_warnings_of_name(name),
                ),
            )
        self._write_record(replace(record, model_id=name))
        part.replace(kept)
        sync_folder(folder)


def _warnings_of_name(model_id: str) -> tuple[str, ...]:
    """`spleenseg --mode ID@URL` looks for these words, in lower case, in the whole of it."""
    return tuple(
        f"The ID contains {word!r}: the plugin's remote mode would start {word} as well."
        for word in ("training", "inference")
        if word in model_id
    )


def _make_read_only(file: Path) -> None:
    """Make a file read-only and durable."""
    with file.open("rb") as opened:
        with contextlib.suppress(OSError):  # another user's file, or a file system without modes
            os.fchmod(opened.fileno(), READ_ONLY)
        os.fsync(opened.fileno())


def _can_change(file: Path) -> bool:
    """Whether the content behind this name can change: it is a symbolic link, or writable."""
    return file.is_symlink() or bool(file.stat().st_mode & WRITABLE)


def _discard_or_log(aside: Path) -> None:
    """Remove what is left of a removed model; the next start tries again if it cannot be done."""
    try:
        discard(aside)
    except OSError as error:
        logger.warning("%s cannot be removed: %s", aside, error.strerror)
