"""The regular files of a stranger's folder, read within a budget; and files written at once.

    from records.files import list_folder
    folder = list_folder(Path("records/TRACK/DATE_name"))
    folder.files, folder.text(folder.files[0])

Nothing outside the folder is opened: no link that leads out of it, no pipe, no device. What is over
a limit is not read at all, and whoever asked says so.
"""

import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

BUDGET_SECONDS = 60.0  # of processor time for all that is read of one folder
BUDGET_BYTES = 64_000_000  # that are read of it
TEXT_BYTES = 1_000_000  # a larger script, README or submission.json is not read
MAX_FILES = 2_000  # of a folder
MAX_NAMES = 20_000  # that are looked at
MAX_DEPTH = 12  # folders within folders


class Budget:
    """What is left of the seconds and bytes for one folder."""

    def __init__(self, seconds: float = BUDGET_SECONDS, most: int = BUDGET_BYTES):
        self.until = time.process_time() + seconds
        self.bytes = most
        self.unread: dict[str, None] = {}  # files, or parts of them, that it was too small for

    def allows(self, count: int, name: str) -> bool:
        """Whether `count` more bytes may be read; notes the name where they may not."""
        if count <= self.bytes and not self.is_late():
            self.bytes -= count
            return True
        self.unread[name] = None
        return False

    def is_late(self) -> bool:
        return time.process_time() > self.until


@dataclass
class Folder:
    """What lies in a folder."""

    root: Path  # resolved
    budget: Budget
    files: list[Path] = field(default_factory=list)  # regular ones, nearest the top first
    skipped: list[str] = field(default_factory=list)  # links out of it, pipes, folders too deep
    contents: dict[Path, bytes | None] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def bytes(self, path: Path) -> bytes | None:
        """A file's content; None where it is over TEXT_BYTES, or over what is left to read."""
        if path not in self.contents:
            size = path.stat().st_size
            readable = size <= TEXT_BYTES and self.budget.allows(size, self.name(path))
            self.contents[path] = read_regular(path, TEXT_BYTES) if readable else None
        return self.contents[path]

    def text(self, path: Path | None) -> str:
        """A file's text; empty where there is none that can be read."""
        content = self.bytes(path) if path else None
        return (content or b"").decode("utf-8-sig", "replace")


def open_regular(path: Path) -> BinaryIO:
    """A binary file; OSError for what is no regular file, without waiting for it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is no regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path, most: int) -> bytes:
    with open_regular(path) as file:
        return file.read(most)


def list_folder(root: Path, budget: Budget | None = None) -> Folder:
    """At most MAX_FILES regular files, those nearest the top first."""
    folder = Folder(root.resolve(), budget or Budget())
    level = [folder.root]
    names = 0
    for _ in range(MAX_DEPTH + 1):
        deeper = []
        for entry in (entry for place in level for entry in entries(place)):
            names += 1
            if names > MAX_NAMES or len(folder.files) >= MAX_FILES:
                folder.skipped.append(f"what follows {folder.name(Path(entry.path))[:60]}")
                return folder
            if entry.is_dir(follow_symlinks=False):
                deeper.append(Path(entry.path))
            elif is_regular_within(Path(entry.path), folder.root):
                folder.files.append(Path(entry.path))
            else:
                name = folder.name(Path(entry.path))
                folder.skipped.append(f"{name[:60]} (no regular file of the folder)")
        level = [place for place in deeper if place.name != ".git"]
    if level:
        folder.skipped.append(f"{folder.name(level[0])[:60]} (too deep)")
    return folder


def entries(place: Path) -> list[os.DirEntry]:
    with suppress(OSError), os.scandir(place) as found:
        return sorted(found, key=lambda entry: entry.name)
    return []


def is_regular_within(path: Path, root: Path) -> bool:
    """Whether a path is a regular file, or a link to one, that lies under `root`."""
    try:
        target = path.resolve() if path.is_symlink() else path
        regular = stat.S_ISREG(target.stat(follow_symlinks=False).st_mode)
    except (OSError, RuntimeError):
        return False
    return regular and target.is_relative_to(root)


def write_file(path: Path, data: bytes) -> None:
    """Writes a file so that it is whole or not there, whatever stops it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:  # a Ctrl-C, too
        draft.unlink(missing_ok=True)
        raise
