"""Reading back the file of an offline W&B run."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any


def records(folder: Path) -> Iterator[Any]:
    """Yield the records of the one offline run in a folder: blocks of 32 KiB of (crc, length, type, payload)."""
    pb = import_module("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            record = pb.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            yield record
            whole = b""


def item(entry: Any) -> tuple[str, Any]:
    """Return the name and value of an item of a record."""
    return entry.key or ".".join(entry.nested_key), json.loads(entry.value_json)
