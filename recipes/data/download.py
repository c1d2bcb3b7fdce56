"""Files of a data set: downloaded over HTTPS by pooch when absent, and checked against their sha256 either way."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch

from lightning_wd.errors import ExplainedError

# "identity": a server that compresses on the way would change the bytes
_DOWNLOADER = pooch.HTTPDownloader(timeout=30, headers={"Accept-Encoding": "identity"})


class DataError(ExplainedError, OSError):
    """Files of a data set that are missing, altered or unreadable."""


@dataclass(frozen=True)
class Source:
    """One official file.

    Args:
        name: its official name, a plain file name.
        url: where it is published; ``https://`` only.
        sha256: of its bytes, in hex.
    """

    name: str
    url: str
    sha256: str

    def __post_init__(self) -> None:
        if self.name != os.path.basename(self.name) or self.name in ("", ".", ".."):
            raise DataError(f"file name {self.name!r} would leave the data folder.", fix="give a plain file name")
        if not self.url.startswith("https://"):
            raise DataError(f"{self.url} is refused.", valid="https:// only", fix="give an HTTPS address")


def ensure(root: str | Path, sources: Iterable[Source]) -> None:
    """Make sure that a folder holds the official files, unaltered.

    Only absent files are downloaded. A broken download leaves nothing behind, and two processes may call this at once:
    a file appears under its name when it is whole and its sha256 is right.

    Args:
        root: the folder, created if a file is downloaded.
        sources: the files.

    Raises:
        DataError: a file is altered or unreadable, or is absent and cannot be downloaded.
    """
    folder = Path(root).expanduser().absolute()
    for source in sources:
        path = folder / source.name
        if path.is_file():
            _check(path, source)
        else:
            _download(path, source)


def _check(path: Path, source: Source) -> None:
    try:
        found = pooch.file_hash(str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read.", found=str(error), fix="check its permissions") from error
    if found != source.sha256:
        raise DataError(
            f"{path} is not the official {source.name}: truncated or altered.",
            found=f"sha256 {found}, {path.stat().st_size} bytes",
            valid=f"sha256 {source.sha256}",
            fix=f"delete {path} to download it again, or give another data.root",
        )


def _download(path: Path, source: Source) -> None:
    try:
        pooch.retrieve(source.url, source.sha256, path.name, path.parent, downloader=_DOWNLOADER)
        path.chmod(path.parent.stat().st_mode & 0o666)  # pooch's files are their owner's alone; this is as its folder
    except OSError as error:  # of the disk, or of the network: requests' errors are OSErrors too
        raise DataError(
            f"{path} is absent and could not be downloaded.",
            found=f"{source.url}: {error}",
            fix=f"download it elsewhere into a folder and give that folder: data.root=FOLDER (now {path.parent})",
        ) from error
    except ValueError as error:  # pooch's, for another sha256
        raise DataError(
            f"the download of {path} is not the official {source.name}: truncated or altered.",
            found=str(error),
            valid=f"sha256 {source.sha256}",
            fix=f"try again; a proxy may have answered in place of {source.url}",
        ) from error


def read_members(archive: str | Path, names: Collection[str]) -> dict[str, bytes]:
    """Read some regular files of a tar archive into memory; nothing is written to disk.

    Args:
        archive: a .tar or .tar.gz.
        names: paths inside the archive.

    Raises:
        DataError: the archive is broken, lacks a name, or holds a member that points outside (``../x``, an absolute
            path, a link): then it is not the official one, and none of it is used.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _refuse_outside(member, archive)
                content = tar.extractfile(member)
                if member.name in names and content is not None:
                    found[member.name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{archive} cannot be read.", found=str(error), fix=f"delete {archive} to download it again"
        ) from error
    if missing := sorted(set(names) - set(found)):
        raise DataError(
            f"{archive} lacks {', '.join(missing)}.",
            found=f"{len(found)} of {len(names)} files",
            fix=f"delete {archive} to download it again",
        )
    return found


def _refuse_outside(member: tarfile.TarInfo, archive: str | Path) -> None:
    inside, plain = PurePosixPath(member.name), member.isfile() or member.isdir()
    if plain and not inside.is_absolute() and ".." not in inside.parts:
        return
    raise DataError(
        f"{archive} is refused: member '{member.name}' is {'a path outside' if plain else 'a link or device'}.",
        valid="regular files and folders inside the archive",
        fix=f"delete {archive} and download the official file",
    )
