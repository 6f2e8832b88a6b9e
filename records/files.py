"""The regular files of a stranger's folder, read within a budget. Nothing else is opened: no link
that leads out, no pipe, no device. What is left out is named."""

import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

BUDGET_SECONDS = 60.0  # of processor time for all that is read of one folder
BUDGET_BYTES = 64_000_000  # that are read of it
TEXT_BYTES = 1_000_000  # a larger script, README or submission.json is not read
MAX_FILES = 2_000  # of a folder
MAX_DEPTH = 12  # folders within folders


@dataclass
class Folder:
    """What lies in a folder, and what is left to spend on it."""

    root: Path  # resolved
    until: float  # process time in seconds
    bytes_left: int
    files: list[Path] = field(default_factory=list)  # regular ones, nearest the top first
    unread: dict[str, None] = field(default_factory=dict)  # names of what is not read whole
    contents: dict[Path, bytes] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def allows(self, count: int, name: str) -> bool:
        """Whether `count` more bytes may be read; notes the name where they may not."""
        if count <= self.bytes_left and time.process_time() < self.until:
            self.bytes_left -= count
            return True
        self.unread[name] = None
        return False

    def bytes(self, path: Path) -> bytes:
        """A file's content; empty where it is over TEXT_BYTES, or over what is left to read."""
        if path not in self.contents:
            size = path.stat().st_size
            cost = size if size <= TEXT_BYTES else BUDGET_BYTES + 1
            readable = self.allows(cost, self.name(path))
            self.contents[path] = open_regular(path).read(TEXT_BYTES) if readable else b""
        return self.contents[path]

    def text(self, path: Path) -> str:
        content = self.bytes(path)
        return content.decode(json.detect_encoding(content), "replace")  # as UTF-16, too


def open_regular(path: Path) -> BinaryIO:
    """A binary file; OSError for what is no regular file, without waiting for it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is no regular file", str(path))
    return open(descriptor, "rb")


def list_folder(root: Path, seconds: float = BUDGET_SECONDS, most: int = BUDGET_BYTES) -> Folder:
    """At most MAX_FILES regular files, at most MAX_DEPTH folders deep."""
    folder = Folder(root.resolve(), time.process_time() + seconds, most)
    for place, inner, names in os.walk(folder.root):
        inner[:] = sorted(name for name in inner if name != ".git")
        if len(Path(place).relative_to(folder.root).parts) == MAX_DEPTH and inner:
            folder.unread[f"{inner[0]} (too deep)"] = None
            inner.clear()
        for path in (Path(place, name) for name in sorted(names)):
            if len(folder.files) == MAX_FILES:
                folder.unread[f"what follows the first {MAX_FILES:,} files"] = None
                return folder
            if is_regular_within(path, folder.root):
                folder.files.append(path)
            else:
                folder.unread[f"{path.name} (no regular file of the folder)"] = None
    folder.files.sort(key=lambda path: (len(path.parts), str(path)))
    return folder


def is_regular_within(path: Path, root: Path) -> bool:
    """Whether a path is a regular file, or a link to one, that lies under `root`."""
    try:
        target = path.resolve() if path.is_symlink() else path
        regular = stat.S_ISREG(target.stat(follow_symlinks=False).st_mode)
    except (OSError, RuntimeError):
        return False
    return regular and target.is_relative_to(root)
