"""Weights in a file: whole or refused, wherever it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import lightning_wd as wd
from lightning_wd.optimizers.weights_file import damage, read_weights

VALUES = torch.arange(64.0)


def saved(path: Path) -> bytes:
    torch.save({"w": VALUES}, path)
    return path.read_bytes()


def test_a_home_is_found_and_stays_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # where Windows looks
    saved(tmp_path / "weights.ckpt")
    weight = torch.nn.Parameter(torch.ones(64))
    optimizer = wd.AdamW([("w", weight)], toward="~/weights.ckpt")
    assert optimizer.param_groups[0]["toward"] == "~/weights.ckpt"
    assert torch.equal(optimizer.state_dict()["state"][0]["anchor"], VALUES)
    assert torch.equal(read_weights("~/weights.ckpt", "init_from")["w"], VALUES)
    with pytest.raises(wd.ConfigError, match="toward '~' is a folder"):
        wd.AdamW([("w", weight)], toward="~")


def test_a_flipped_bit_is_seen(tmp_path: Path) -> None:
    """torch itself loads such weights without a word."""
    path = tmp_path / "weights.ckpt"
    whole = saved(path)
    at = whole.index(VALUES.numpy().tobytes()) + 11
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert not torch.equal(torch.load(path, weights_only=True)["w"], VALUES)
    for _ in range(2):
        with pytest.raises(wd.ConfigError) as error:
            read_weights(str(path))
        lines = str(error.value).splitlines()
        assert lines[0] == f"toward={str(path)!r} cannot be read as weights."
        assert lines[1].startswith("  found: the checksum of ")
        assert lines[2] == "  fix: give the path of a checkpoint that is whole"
    path.write_bytes(whole)  # mended
    os.utime(path, ns=(1, 1))  # a clock may be coarser than this test is fast
    assert torch.equal(read_weights(str(path))["w"], VALUES)


@pytest.mark.parametrize(
    ("record", "field", "value", "found"),
    [
        pytest.param("data/0", 38, 0x10, "the header of archive/data/0 is wrong", id="a directory"),
        pytest.param("byteorder", 24, 0, "the header of archive/byteorder is wrong", id="empty"),
        pytest.param("data/0", 10, 8, "Error -3 while decompressing data", id="compressed"),
        pytest.param("version", 46, 0, "the checksum of a record without a name is wrong", id="nameless"),
    ],
)
def test_a_spoilt_directory_of_the_archive_is_seen(
    record: str, field: int, value: int, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "archive.ckpt"
    spoilt = bytearray(saved(path))
    spoilt[spoilt.rindex(f"archive/{record}".encode()) - 46 + field] = value  # its entry in the list at the end
    path.write_bytes(spoilt)
    assert found in str(damage(path))  # where a record is a directory, torch returns whatever is in memory


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    whole = saved(path)
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(
        wd.ConfigError, match=r"^init_from=.* cannot be read as weights\.\n  found: .+\n  fix: give the "
    ):
        read_weights(str(path), "init_from")
