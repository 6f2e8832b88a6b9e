"""The regular files of a stranger's folder, read within a budget.

    from records.files import Budget, list_folder
    folder = list_folder(Path("records/TRACK/DATE_name"), Budget())
    folder.files, folder.text(folder.files[0])

Nothing outside the folder is opened: no link that leads out of it, no pipe, no device. What is over
a limit is not read at all, and whoever asked says so.
"""

import os
import re
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

BUDGET_SECONDS = 60.0  # of processor time for all that is read of one folder
RESERVE_SECONDS = 10.0  # of these, for what was begun and for the report
BUDGET_BYTES = 64_000_000  # that are read of it
TEXT_BYTES = 1_000_000  # a larger script, README or submission.json is not read
MAX_FILES = 2_000  # of a folder
MAX_ENTRIES = 20_000  # names that are looked at
MAX_DEPTH = 12  # folders within folders
HIDDEN = re.compile(r"(^|/)(\.|__\w+__/)")


class Budget:
    """What is left of the seconds and bytes for one run."""

    def __init__(self, seconds: float = BUDGET_SECONDS, most: int = BUDGET_BYTES):
        self.until = time.process_time() + seconds
        self.reserve = min(RESERVE_SECONDS, seconds / 4)
        self.bytes = most
        self.unread: list[str] = []  # files, or parts of them, that it was too small for

    def allows(self, count: int, name: str) -> bool:
        """Whether `count` more bytes may be read; notes the name where they may not."""
        if count <= self.bytes and not self.is_late():
            self.bytes -= count
            return True
        if name not in self.unread:
            self.unread.append(name)
        return False

    def is_late(self) -> bool:
        """Also when what comes next may not end in time: it is a file at most."""
        return time.process_time() > self.until - self.reserve


@dataclass
class Folder:
    """What lies in a folder."""

    root: Path  # resolved
    budget: Budget
    files: list[Path] = field(default_factory=list)  # regular and visible, nearest the top first
    hidden: list[Path] = field(default_factory=list)  # regular ones under a name like .x
    contents: dict = field(default_factory=dict)  # Path -> bytes or None
    libraries: dict = field(default_factory=dict)  # (folder, "x") -> x.so, x.*.so in it
    unlisted: bool = False  # whether it holds files that are none of these
    skipped: list[str] = field(default_factory=list)  # links out of it, pipes, folders too deep

    def name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def bytes(self, path: Path, most: int = TEXT_BYTES) -> bytes | None:
        """A file's content; None where it is over `most`, or over what is left to read. It is kept
        for who asks again."""
        if path not in self.contents:
            self.contents[path] = self.read(path, most)
        return self.contents[path]

    def read(self, path: Path, most: int) -> "bytes | None":
        size = path.stat().st_size
        if size > most or not self.budget.allows(size, self.name(path)):
            return None
        with open_regular(path) as file:
            return file.read(most)

    def text(self, path: Path | None) -> str:
        """A file's text; empty where there is none that can be read."""
        content = self.bytes(path) if path else None
        return (content or b"").decode("utf-8-sig", "replace")


def open_regular(path: Path):
    """A binary file; OSError for what is no regular file, without waiting for it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "is no regular file", str(path))
    return open(descriptor, "rb")


def list_folder(root: Path, budget: Budget | None = None) -> Folder:
    """At most MAX_FILES regular files, those nearest the top first."""
    folder = Folder(root.resolve(), budget or Budget())
    level = [folder.root]
    seen = 0
    for depth in range(MAX_DEPTH + 1):
        deeper = []
        for place in level:
            for entry in entries(place, folder):
                seen += 1
                if seen > MAX_ENTRIES:
                    break
                if entry.is_dir(follow_symlinks=False):
                    deeper.append(Path(entry.path))
                else:
                    take_file(folder, entry)
        level = [place for place in deeper if place.name != ".git"]
        if depth == MAX_DEPTH and level:
            folder.skipped.append(f"{folder.name(level[0])[:60]} (too deep)")
            folder.unlisted = True
    if seen > MAX_ENTRIES:
        folder.unlisted = True
        folder.skipped.append(f"names after the first {MAX_ENTRIES:,}")
    return folder


def entries(place: Path, folder: Folder) -> list[os.DirEntry]:
    try:
        with os.scandir(place) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        folder.unlisted = True
        return []


def take_file(folder: Folder, entry: os.DirEntry) -> None:
    """Puts a name of the folder on the list that it belongs to."""
    path = Path(entry.path)
    name = folder.name(path)
    try:
        target = path.resolve() if entry.is_symlink() else path
        regular = stat.S_ISREG(target.stat(follow_symlinks=False).st_mode)
    except (OSError, RuntimeError):
        regular = False
    if not regular or not target.is_relative_to(folder.root):
        folder.skipped.append(f"{name[:60]} (no regular file of the folder)")
        return
    kept = folder.hidden if HIDDEN.search(name) else folder.files
    if len(kept) >= MAX_FILES:
        folder.unlisted = True
        return
    kept.append(path)
    if name.endswith("so"):
        folder.libraries.setdefault((path.parent, path.name.split(".")[0]), []).append(path)
