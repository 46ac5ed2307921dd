"""The record of a stored model, and the IDs that a model can have."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pfms.errors import InvalidModelID

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class ModelRecord:
    """What is known about a stored model.

    Attributes:
        model_id: Its name.
        sha256: Of the stored file, which is plain float32 whatever was uploaded.
        upload_sha256: Of the uploaded file.
        size: Of the stored file, in bytes.
        uploaded_at: ISO 8601, UTC.
        source: `upload` or `demo`; `found` if someone put the file there by hand.
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
        """The record as clients see it, with the public name `modelID`."""
        fields = asdict(self) | {"warnings": list(self.warnings)}
        del fields["unknown"]
        return {"modelID": fields.pop("model_id"), **fields}

    def to_json(self) -> dict[str, Any]:
        """The record as `model.json` holds it."""
        return {**self.unknown, **self.to_dict()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelRecord":
        """The inverse of `to_json`. Requires only checksum and size: a newer pfms may omit others.

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
    """Return `text` if it can be a model ID, and so the name of a folder.

    Raises:
        InvalidModelID: It cannot.
    """
    if MODEL_ID.fullmatch(text):
        return text
    shown = repr(text if len(text) <= 40 else text[:40] + "…")
    raise InvalidModelID(f"{shown} ({len(text)} characters) is not a model ID.")


def read_record(path: Path) -> ModelRecord | None:
    """The record in a `model.json`, or None if it cannot be read."""
    try:
        return ModelRecord.from_json(read_fields(path))
    except (ValueError, KeyError, TypeError):
        return None


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a `model.json`; empty if it cannot be read."""
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
