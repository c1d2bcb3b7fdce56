"""Files of a data set: fetched over HTTPS when absent, and checked against their sha256 either way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lightning_wd.errors import explain

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


class DataError(OSError):
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
            raise DataError(
                explain(f"file name {self.name!r} would leave the data folder.", fix="give a plain file name")
            )
        if not self.url.startswith("https://"):
            raise DataError(explain(f"{self.url} is not fetched.", valid="https:// only", fix="give an HTTPS address"))


def ensure(root: str | Path, sources: Iterable[Source]) -> None:
    """Make sure that a folder holds the official files, unaltered.

    A file is downloaded only when absent, into a temporary file beside it that takes its name once the sha256 is right:
    a broken download leaves nothing behind, and two processes may do this at once.

    Args:
        root: the folder; made when something has to be downloaded.
        sources: the files.

    Raises:
        DataError: a file is altered or unreadable, or absent and cannot be downloaded.
    """
    folder = Path(root).expanduser()
    for source in sources:
        path = folder / source.name
        if path.is_file():
            _check(path, source, fix=f"delete {path} to download it again, or give another data.root")
        else:
            _download(source, folder)


def read_members(archive: str | Path, names: Collection[str]) -> dict[str, bytes]:
    """Read some regular files of a tar archive into memory; nothing is written to disk.

    Args:
        archive: a .tar or .tar.gz.
        names: paths inside the archive.

    Raises:
        DataError: the archive is broken, lacks a name, or holds a member that points outside (``../x``, an absolute
            path, a link): such an archive is not the official one, so none of it is used.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = PurePosixPath(member.name)
                if inside.is_absolute() or ".." in inside.parts or not (member.isfile() or member.isdir()):
                    kind = "a path outside" if member.isfile() or member.isdir() else "a link or device"
                    raise DataError(
                        explain(
                            f"{archive} is refused: member '{member.name}' is {kind}.",
                            valid="regular files and folders inside the archive",
                            fix=f"delete {archive} and download the official file",
                        )
                    )
                content = tar.extractfile(member)
                if member.name in names and content is not None:
                    found[member.name] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            explain(f"{archive} cannot be read.", found=str(error), fix=f"delete {archive} to download it again")
        ) from error
    if missing := sorted(set(names) - set(found)):
        raise DataError(
            explain(
                f"{archive} lacks {', '.join(missing)}.",
                found=f"{len(found)} of {len(names)} files",
                fix=f"delete {archive} to download it again",
            )
        )
    return found


def _check(path: Path, source: Source, *, fix: str) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(explain(f"{path} cannot be read.", found=str(error), fix="check its permissions")) from error
    if digest.hexdigest() != source.sha256:
        raise DataError(
            explain(
                f"{path} is not the official {source.name}: truncated or altered.",
                found=f"sha256 {digest.hexdigest()}, {path.stat().st_size} bytes",
                valid=f"sha256 {source.sha256}",
                fix=fix,
            )
        )


def _download(source: Source, folder: Path) -> None:
    temporary = folder / f".{source.name}.{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(source.url, timeout=_TIMEOUT) as response, temporary.open("xb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
        _check(temporary, source, fix=f"try again; a proxy may have answered in place of {source.url}")
        os.replace(temporary, folder / source.name)
    except DataError:
        raise
    except OSError as error:  # URLError and timeouts are OSErrors too
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(
            explain(
                f"{folder / source.name} is absent and could not be downloaded.",
                found=f"{source.url}: {reason}",
                fix=f"download it elsewhere into a folder and give that folder: data.root=FOLDER (now {folder})",
            )
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the error that is on its way says more
            temporary.unlink(missing_ok=True)
