"""The recipes' data: checked files, harmless archives, exact batches, and a position that survives an interruption."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import requests
import torch
from data.cifar10 import CIFAR10
from data.digits import Digits
from data.download import DataError, Source, ensure, read_members
from data.fashion_mnist import FashionMNIST, read_idx
from data.fashion_small import FashionSmall
from data.images import Images, flip_and_shift, normalise
from data.loader import EpochSampler, ShareSampler
from data.shakespeare import Shakespeare, Windows
from helpers.real_data import REAL, needs_real_data
from hypothesis import assume, given
from hypothesis import strategies as st
from step_seed import StepSeed
from torch import Tensor, nn

from lightning_wd.errors import ConfigError


def source(content: bytes, name: str = "file.bin", url: str = "https://example.invalid/file.bin") -> Source:
    return Source(name, url, hashlib.sha256(content).hexdigest())


# --- files ----------------------------------------------------------------------------------------------------------


class Shelf:
    """An HTTPS world of one file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[str] = []
        self.status = 200
        self.together: threading.Barrier | None = None

    def send(self, request: requests.PreparedRequest, **settings: Any) -> requests.Response:
        assert str(request.url).startswith("https://")
        assert settings["verify"]
        assert settings["timeout"] == 30
        self.asked.append(str(request.url))
        if self.together is not None:
            self.together.wait(timeout=60)
        response = requests.Response()
        response.status_code, response.url, response.raw = self.status, str(request.url), io.BytesIO(self.content)
        return response


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Shelf]:
    def install(content: bytes) -> Shelf:
        shelf = Shelf(content)
        monkeypatch.setattr(
            requests.adapters.HTTPAdapter, "send", lambda _, request, **more: shelf.send(request, **more)
        )
        return shelf

    return install


def test_an_absent_file_is_downloaded_once(tmp_path: Path, serve: Callable[[bytes], Shelf]) -> None:
    shelf = serve(b"content")
    for _ in range(2):
        ensure(tmp_path / "new/folder", [source(b"content")])
    assert shelf.asked == ["https://example.invalid/file.bin"]
    path = tmp_path / "new/folder/file.bin"
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o666  # whoever reads the folder reads the file


@pytest.mark.parametrize("answer", [b"cont", b"<html>please log in</html>", b""])
def test_a_wrong_download_leaves_nothing_behind(answer: bytes, tmp_path: Path, serve: Callable[[bytes], Shelf]) -> None:
    serve(answer)
    with pytest.raises(DataError, match=r"is not the official file\.bin: truncated or altered") as caught:
        ensure(tmp_path, [source(b"content")])
    assert str(caught.value).startswith(f"the download of {tmp_path}/file.bin is not")
    assert hashlib.sha256(answer).hexdigest() in str(caught.value).split("\n")[1]
    assert f"valid: sha256 {hashlib.sha256(b'content').hexdigest()}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_leaves_nothing_behind(
    tmp_path: Path, serve: Callable[[bytes], Shelf], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve(b"content"), "status", 404)
    with pytest.raises(DataError, match=r"is absent and could not be downloaded\.\n  found: https://example.*: 404 "):
        ensure(tmp_path, [source(b"content")])
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_download_at_once(tmp_path: Path, serve: Callable[[bytes], Shelf]) -> None:
    """Both have found no file before either asks for it."""
    shelf = serve(b"content")
    shelf.together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: ensure(tmp_path, [source(b"content")]), range(2)))
    assert len(shelf.asked) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    assert (tmp_path / "file.bin").read_bytes() == b"content"


def test_a_closed_network_says_which_file_and_which_folder(tmp_path: Path) -> None:
    closed = source(b"", url="https://127.0.0.1:9/file.bin")
    with pytest.raises(DataError) as caught:
        ensure(tmp_path / "data", [closed])
    lines = str(caught.value).split("\n")
    assert lines[0] == f"{tmp_path}/data/file.bin is absent and could not be downloaded."
    assert lines[1].startswith("  found: https://127.0.0.1:9/file.bin: ")
    assert lines[2] == (
        f"  fix: download it elsewhere into a folder and give that folder: data.root=FOLDER (now {tmp_path}/data)"
    )


@pytest.mark.parametrize("content", [b"conten", b"contenT"], ids=["truncated", "altered"])
def test_a_file_that_is_there_is_checked_and_kept(
    content: bytes, tmp_path: Path, serve: Callable[[bytes], Shelf]
) -> None:
    shelf = serve(b"content")
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        ensure(tmp_path, [source(b"content")])
    assert str(caught.value).split("\n") == [
        f"{path} is not the official file.bin: truncated or altered.",
        f"  found: sha256 {hashlib.sha256(content).hexdigest()}, {len(content)} bytes",
        f"  valid: sha256 {hashlib.sha256(b'content').hexdigest()}",
        f"  fix: delete {path} to download it again, or give another data.root",
    ]
    assert shelf.asked == []
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is absent and could not be downloaded"):
        ensure(tmp_path / "file/folder", [source(b"")])


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ""])
def test_a_source_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(DataError, match="would leave the data folder"):
        source(b"", name=name)


def test_only_https_is_fetched() -> None:
    with pytest.raises(DataError, match=r"http://example\.invalid/x is refused"):
        source(b"", url="http://example.invalid/x")


@pytest.mark.parametrize("data", [CIFAR10, FashionMNIST, Shakespeare])
def test_every_set_comes_over_https_with_a_pinned_sha256(data: Any) -> None:
    for each in data.sources:
        assert each.url.startswith("https://")
        assert each.url.endswith(each.name)
        assert len(bytes.fromhex(each.sha256)) == 32


# --- archives -------------------------------------------------------------------------------------------------------


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def archive(path: Path, contents: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info in more:
            tar.addfile(info)
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (member("../x"), "member '../x' is a path outside"),
        (member("a/../../x"), "member 'a/../../x' is a path outside"),
        (member("/tmp/x"), "member '/tmp/x' is a path outside"),
        (member("a/link", tarfile.SYMTYPE, "/etc/passwd"), "member 'a/link' is a link or device"),
        (member("a/hard", tarfile.LNKTYPE, "../x"), "member 'a/hard' is a link or device"),
        (member("a/pipe", tarfile.FIFOTYPE), "member 'a/pipe' is a link or device"),
    ],
)
def test_an_archive_that_points_outside_is_refused_whole(bad: tarfile.TarInfo, words: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"a/b": b"1"}, bad)
    with pytest.raises(DataError, match="is refused") as caught:
        read_members(path, ["a/b"])
    assert words in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["a.tar.gz"]


def test_members_are_read_without_being_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"a/b": b"12", "a/c": b"3"}, member("a", tarfile.DIRTYPE))
    assert read_members(path, ["a/b"]) == {"a/b": b"12"}
    assert [p.name for p in tmp_path.rglob("*")] == ["a.tar.gz"]


def test_a_missing_member_and_a_broken_archive_are_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", {"a/b": bytes(range(256)) * 100})
    with pytest.raises(DataError, match=r"lacks a/c, a/d\.\n  found: 1 of 3 files"):
        read_members(path, ["a/d", "a/b", "a/c"])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.tar\.gz cannot be read"):
        read_members(path, ["a/b"])


# --- formats --------------------------------------------------------------------------------------------------------


def idx(values: np.ndarray[Any, Any]) -> bytes:
    return gzip.compress(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


def test_idx_bytes_come_in_the_headers_shape(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "x.gz").write_bytes(idx(values))
    assert torch.equal(read_idx(tmp_path / "x.gz"), torch.from_numpy(values))


GOOD = gzip.decompress(idx(np.zeros((2, 3), np.uint8)))


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(GOOD[:-1]), gzip.compress(GOOD + b"1"), gzip.compress(b"\0\0\x0d" + GOOD[3:]),
     gzip.compress(b""), gzip.compress(GOOD)[:-5]],
    ids=["not gzip", "short", "long", "floats", "empty", "cut gzip"],
)  # fmt: skip
def test_a_broken_idx_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.gz cannot be read"):
        read_idx(tmp_path / "x.gz")


def test_cifar_rows_are_a_label_and_three_planes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (12, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(12) % 10
    names = [f"cifar-10-batches-bin/{n}.bin" for n in ("data_batch_1", "data_batch_2", "data_batch_3",
             "data_batch_4", "data_batch_5", "test_batch")]  # fmt: skip
    contents = {name: rows[2 * i : 2 * i + 2].tobytes() for i, name in enumerate(names)}
    # the archive's own order is not that of the batches
    path = archive(tmp_path / "cifar-10-binary.tar.gz", dict(reversed(contents.items())))

    class Small(CIFAR10):
        sources = (source(path.read_bytes(), path.name),)

    data = Small(str(tmp_path), val_size=1)
    data.prepare_data()
    images, labels = data.read(tmp_path, train=True)
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images.numpy(), rows[:10, 1:].reshape(10, 3, 32, 32))
    assert labels.tolist() == list(range(10))
    assert data.read(tmp_path, train=False)[1].tolist() == [0, 1]


@needs_real_data
def test_fashion_mnist_is_the_official_set() -> None:
    data = FashionMNIST(str(REAL / "fashion_mnist"), val_size=5000)
    data.prepare_data()
    images, labels = data.read(REAL / "fashion_mnist", train=True)
    assert images.shape == (60000, 1, 28, 28)
    assert labels.bincount().tolist() == [6000] * 10
    pixels = images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (data.mean[0], data.std[0])
    data.setup("fit")
    data.setup("test")
    assert (len(data.train), len(data.val), len(data.test)) == (55000, 5000, 10000)


@needs_real_data
def test_shakespeare_is_the_official_text() -> None:
    data = Shakespeare(str(REAL / "tinyshakespeare"), batch_size=4, block_size=64)
    data.prepare_data()
    data.setup("fit")
    assert len(data.vocabulary) == 65
    assert data.decode(data.train.pieces[0]).startswith("First Citizen:\nBefore we proceed")
    assert len(data.train) == 1_115_394 * 9 // 10 - 64
    assert len(data.train_dataloader()) == len(data.train) // 64 // 4


# --- batches --------------------------------------------------------------------------------------------------------


def test_each_image_is_flipped_or_not_and_shifted_as_a_window_of_the_padded_one() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (400, 2, 5, 6), generator=generator, dtype=torch.uint8)
    out = flip_and_shift(images, 2, generator)
    assert out.dtype == torch.uint8
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    seen = set()
    for image, flat, got in zip(padded, images.numpy(), out.numpy(), strict=True):
        mirrored = np.pad(flat[:, :, ::-1], ((0, 0), (2, 2), (2, 2)))
        found = [
            (flip, y, x)
            for flip, whole in ((False, image), (True, mirrored))
            for y in range(5)
            for x in range(5)
            if np.array_equal(whole[:, y : y + 5, x : x + 6], got)
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 2 * 5 * 5  # every variant occurs


def test_normalise_is_exact_for_each_channel() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    shape = (1, 3, 1, 1)
    expected = (images.numpy() / 255.0 - np.reshape(mean, shape)) / np.reshape(std, shape)
    np.testing.assert_allclose(normalise(images, mean, std).numpy(), expected, rtol=2e-6, atol=2e-6)


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5))
def test_evaluation_sees_each_row_once_in_as_many_batches_on_each_process(
    length: int, batch_size: int, world_size: int
) -> None:
    assume(length >= world_size)
    samplers = [ShareSampler(length, batch_size, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(length))
    for share in shares:
        assert all(0 < len(batch) <= batch_size for batch in share[:-1])
        assert 0 < len(share[-1]) <= batch_size + 1


def test_label_noise_spoils_training_labels_only_and_the_same_ones_each_time() -> None:
    clean, noisy, again = (Digits(label_noise=noise) for noise in (0.0, 0.3, 0.3))
    for data in (clean, noisy, again):
        data.setup("fit")
    for part in ("train", "val", "test"):
        (images, right), (same, labels) = getattr(clean, part).tensors, getattr(noisy, part).tensors
        assert torch.equal(images, same)
        assert torch.equal(labels, getattr(again, part).tensors[1])
        wrong = int((right != labels).sum())
        assert wrong == 0 if part != "train" else 0.24 < wrong / len(labels) < 0.3  # a tenth of 0.3 is right by chance


def test_chosen_classes_are_kept_in_the_same_split() -> None:
    every, chosen = Digits(), Digits(classes=[3, 7])
    for data in (every, chosen):
        data.setup("fit")
    for part in ("train", "val", "test"):
        images, labels = getattr(every, part).tensors
        kept = (labels == 3) | (labels == 7)
        for found, expected in zip(getattr(chosen, part).tensors, (images[kept], labels[kept]), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("classes", [[], [3, 10], 3, ["3"]])
def test_classes_that_are_not_labels_are_refused(classes: Any) -> None:
    with pytest.raises(ConfigError) as error:
        Digits(classes=classes).setup("fit")
    assert str(error.value) == (
        f"data.classes={classes} is not a list of labels.\n"
        "  valid: labels of [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        "  fix: write data.classes=[0, 1, 2, 3, 4], or data.classes=null for all"
    )


@needs_real_data
def test_a_small_fashion_mnist_of_chosen_classes_is_as_large() -> None:
    every, chosen = FashionSmall(str(REAL / "fashion_mnist")), FashionSmall(str(REAL / "fashion_mnist"), classes=[5, 9])
    for data in (every, chosen):
        data.setup("fit")
        data.setup("test")
    assert (len(chosen.train), len(chosen.test)) == (1000, 2000)
    labels = every.val.tensors[1]
    assert torch.equal(chosen.val.tensors[1], labels[(labels == 5) | (labels == 9)])


def test_fewer_rows_than_processes_are_refused() -> None:
    data = Digits()
    data.setup("fit")
    data.trainer = SimpleNamespace(global_rank=0, world_size=181)  # type: ignore[assignment]
    with pytest.raises(
        ConfigError, match=r"180 rows to evaluate are too few for every process.\n  found: 181 processes"
    ):
        data.val_dataloader()


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 60), st.integers(0, 3))
def test_processes_see_together_what_one_sees(world_size: int, batch: int, spare: int, epoch: int) -> None:
    length = 2 * world_size * batch + spare
    one = EpochSampler(length, length, batch * world_size, seed=3, rank=0, world_size=1)
    many = [EpochSampler(length, length, batch, 3, rank, world_size) for rank in range(world_size)]
    for sampler in (one, *many):
        sampler.set_epoch(epoch)
    whole, shares = list(one), [list(sampler) for sampler in many]
    assert len(one) == len(whole) == len(set(whole))
    for start in range(0, len(shares[0]), batch):
        together = sorted(row for share in shares for row in share[start : start + batch])
        assert together == sorted(whole[start * world_size : (start + batch) * world_size])


def test_the_order_changes_with_the_epoch_and_the_seed_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, 50, 5, seed, 0, 1)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*pair)) for pair in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


@given(st.integers(0, 10), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_a_restored_sampler_continues_where_the_saved_one_was(batches: int, saved_by: int, read_by: int) -> None:
    """Process 0 saves for all, and the number of processes may change."""
    seen = EpochSampler(40, 40, 4 // saved_by, 0, 0, saved_by)
    seen.set_epoch(5)
    iterator = iter(seen)
    for _ in range(batches * 4 // saved_by):
        next(iterator)
    restored = EpochSampler(40, 40, 4 // read_by, 0, 0, read_by)
    restored.load_state_dict(seen.state_dict())
    whole = EpochSampler(40, 40, 4, 0, 0, 1)
    whole.set_epoch(5 if batches < 10 else 6)
    expected = list(whole)[batches * 4 if batches < 10 else 0 :]
    assert list(restored) == expected[::read_by]
    assert len(list(restored)) == len(restored)  # and the next time from the start


@pytest.mark.parametrize(("saved", "now"), [((4, 1), (8, 1)), ((8, 1), (4, 1)), ((4, 1), (4, 2))])
def test_a_resume_in_other_batches_warns_within_an_epoch(saved: tuple[int, int], now: tuple[int, int]) -> None:
    def sampler(batch_size: int, world_size: int) -> EpochSampler:
        return EpochSampler(44, 44, batch_size, 0, 0, world_size)

    before, after = sampler(*saved), sampler(*now)
    iterator = iter(before)
    for _ in range(8):
        next(iterator)
    words = rf"found: {math.prod(saved)} rows a batch over all processes then, {math.prod(now)} now\n  fix: resume with"
    with pytest.warns(UserWarning, match=words):
        after.load_state_dict(before.state_dict())
    list(iterator)
    after = sampler(*now)
    after.load_state_dict(before.state_dict())
    whole = sampler(*now)
    whole.set_epoch(1)
    assert list(after) == list(whole)  # at the end of an epoch nothing is lost


def test_windows_are_the_text_and_what_follows() -> None:
    text = torch.arange(11, dtype=torch.uint8)
    inputs, targets = Windows(text, 3, stride=3).__getitems__([2, 0])
    assert inputs.tolist() == [[6, 7, 8], [0, 1, 2]]
    assert targets.tolist() == [[7, 8, 9], [1, 2, 3]]
    assert targets.dtype == torch.int64


@pytest.fixture
def poem(tmp_path: Path) -> type[Shakespeare]:
    content = ("abcdefghij" * 30).encode()
    (tmp_path / "input.txt").write_bytes(content)

    class Poem(Shakespeare):
        sources = (source(content, "input.txt"),)

    return Poem


def test_validation_predicts_each_character_of_its_tenth_once(poem: type[Shakespeare], tmp_path: Path) -> None:
    data = poem(str(tmp_path), batch_size=2, block_size=7)
    data.prepare_data()
    data.setup("fit")
    predicted = "".join(data.decode(row) for _, targets in data.val_dataloader() for row in targets)
    assert predicted == ("abcdefghij" * 3)[1:29]  # four windows of 7
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.shape == (2, 7)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert len(data.train_dataloader()) == (270 - 7) // 7 // 2


def test_a_block_that_does_not_fit_says_what_does(poem: type[Shakespeare], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.block_size=30 does not fit.*\n.*\n  fix: write .*<1 to 29>"):
        poem(str(tmp_path), block_size=30).setup("fit")


def test_training_takes_the_first_characters(poem: type[Shakespeare], tmp_path: Path) -> None:
    data = poem(str(tmp_path), block_size=7, train_size=9)
    data.setup("fit")
    whole = poem(str(tmp_path), block_size=7)
    whole.setup("fit")
    assert len(data.train) == 2
    for n in (0, 1):
        assert data.decode(data.train[n][0]) == whole.decode(whole.train[n][0])
    assert torch.equal(data.val.pieces, whole.val.pieces)
    with pytest.raises(ConfigError, match=r"found: 1 rows .*\n  fix: write data\.batch_size=<at most 1>"):
        data.train_dataloader()
    data.hparams["batch_size"] = 1
    assert [inputs.shape for inputs, _ in data.train_dataloader()] == [(1, 7)]
    for size in (7, 1000):
        with pytest.raises(ConfigError, match=rf"data\.train_size={size} does not fit.*\n.*\n  fix: write .*<8 to "):
            poem(str(tmp_path), block_size=7, train_size=size).setup("fit")


# --- an interrupted run ---------------------------------------------------------------------------------------------


class Noise(Images):
    """65 random images of two classes, in memory only."""

    sources, mean, std, padding = (), (0.5,), (0.5,), 1

    def read(self, root: Path, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(256, (65, 1, 4, 4), generator=generator).byte(), torch.arange(65) % 2


class Net(L.LightningModule):
    """A linear layer behind dropout; remembers the labels and images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)
        self.seen: list[float] = []

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.layer(nn.functional.dropout(batch[0].flatten(1), training=self.training))
        return nn.functional.cross_entropy(logits, batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch[0].double().sum().item())
        return self.loss(batch)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        torch.rand(7)  # draws of an evaluation must not shift those of the training
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class SaveAt(L.Callback):
    """Save after an optimizer step: at the batch's end, the end of the validation behind it, or the epoch's end."""

    def __init__(self, step: int, moment: str, path: Path) -> None:
        self.step, self.moment, self.path = step, moment, path

    def _save(self, trainer: L.Trainer, moment: str) -> None:
        if (trainer.global_step, moment) == (self.step, self.moment) and not self.path.exists():
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer, "epoch")


def fit(limit: dict[str, int], workers: int = 0, resume: Path | None = None, save: SaveAt | None = None) -> Net:
    L.seed_everything(7, verbose=False)
    net, data = Net(), Noise("", batch_size=8, val_size=9, num_workers=workers)
    callbacks: list[L.Callback] = [StepSeed(), *([save] if save else [])]
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **limit,  # type: ignore[arg-type]
    )
    trainer.fit(net, data, ckpt_path=resume)
    return net


LIMITS = [{"max_epochs": 4}, {"max_steps": 24, "max_epochs": -1}]  # an epoch is 7 steps


def assert_same_end(resumed: Net, whole: Net, step: int) -> None:
    assert resumed.seen == whole.seen[step:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # Lightning 2.6 on torch 2.13
@pytest.mark.parametrize(
    ("limit", "workers", "step", "moment"),
    [
        *[
            (limit, 0, step, moment)
            for limit in LIMITS
            for step, moment in [(1, "batch"), (7, "batch"), (10, "batch"), (7, "validation"), (14, "epoch")]
        ],
        (LIMITS[0], 2, 3, "batch"),
        (LIMITS[1], 2, 7, "epoch"),
    ],
)
def test_an_interrupted_run_resumed_is_the_uninterrupted_one(
    limit: dict[str, int], workers: int, step: int, moment: str, tmp_path: Path
) -> None:
    """Bit for bit: order of the images, augmentation, dropout, weights."""
    path = tmp_path / "x.ckpt"
    whole = fit(limit, workers, save=SaveAt(step, moment, path))
    assert len(set(whole.seen)) == len(whole.seen)
    assert_same_end(fit(limit, workers, resume=path), whole, step)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.parametrize("limit", LIMITS, ids=["epochs", "steps"])
@pytest.mark.parametrize(
    ("first", "second"), [((7, "epoch"), (14, "batch")), ((7, "epoch"), (10, "batch")), ((3, "batch"), (14, "epoch"))]
)
def test_a_run_interrupted_twice_is_still_the_uninterrupted_one(
    limit: dict[str, int], first: tuple[int, str], second: tuple[int, str], tmp_path: Path
) -> None:
    whole = fit(limit, save=SaveAt(*first, tmp_path / "1.ckpt"))
    fit(limit, resume=tmp_path / "1.ckpt", save=SaveAt(*second, tmp_path / "2.ckpt"))
    assert_same_end(fit(limit, resume=tmp_path / "2.ckpt"), whole, second[0])


def test_the_noise_of_a_step_differs_between_processes() -> None:
    class Rank:
        global_rank = 0
        fit_loop = type("Loop", (), {"total_batch_idx": 4})

    drawn = []
    for Rank.global_rank in (0, 1, 0):
        StepSeed().on_train_batch_start(Rank, Net(), None, 0)  # type: ignore[arg-type]
        drawn.append(torch.rand(1).item())
    assert drawn[0] == drawn[2] != drawn[1]


# --- settings -------------------------------------------------------------------------------------------------------


def test_the_split_follows_from_the_seed_and_has_no_overlap() -> None:
    def split(seed: int) -> tuple[Tensor, Tensor]:
        data = Noise("", val_size=9, seed=seed)
        data.setup("fit")
        return data.train.tensors[0], data.val.tensors[0]

    (train, val), (_, again), (_, other) = split(0), split(0), split(1)
    assert (len(train), len(val)) == (56, 9)
    assert torch.equal(val, again)
    assert not torch.equal(val, other)
    assert len({row.numpy().tobytes() for row in torch.cat([train, val])}) == 65


def test_evaluation_images_are_not_augmented() -> None:
    data = Noise("", val_size=9)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    images, labels = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(images, normalise(data.val.tensors[0], data.mean, data.std))
    assert torch.equal(labels, data.val.tensors[1])


def test_a_batch_larger_than_the_set_is_refused() -> None:
    data = Noise("", batch_size=57, val_size=9)
    data.setup("fit")
    with pytest.raises(ConfigError) as caught:
        data.train_dataloader()
    assert str(caught.value).split("\n") == [
        "data.batch_size=57 leaves no whole training batch.",
        "  found: 56 rows for 1 process",
        "  fix: write data.batch_size=<at most 56>",
    ]


@pytest.mark.parametrize("size", [0, -1, 65])
def test_a_split_without_training_or_validation_images_is_refused(size: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"data\.val_size={size} does not split the training images\.\n.*65 images\n.*<1 to 64>"
    ):
        Noise("", val_size=size).setup("fit")
