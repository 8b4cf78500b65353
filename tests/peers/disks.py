"""Disks that fail, and a disk that forgets what was not synced, for `auditfiles.Files`."""

import errno
import random
from dataclasses import dataclass
from pathlib import Path

from wardround_server.auditfiles import OsFiles


class FastFiles(OsFiles):
    """Real files without syncing."""

    def sync(self, path: Path) -> None:
        path.stat()

    def sync_folder(self, path: Path) -> None:
        path.stat()

    def append(self, path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)


class FailingFiles(FastFiles):
    """Fails the calls whose numbers are in `fail`; a failing write leaves half of the data."""

    def __init__(self, code: int = errno.ENOSPC) -> None:
        self.calls, self.fail, self.code = 0, range(0), code

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 in self.fail:
            raise OSError(self.code, "injected")

    def mkdir(self, path: Path) -> None:
        self._count()
        super().mkdir(path)

    def write(self, path: Path, data: bytes, mode: int) -> None:
        try:
            self._count()
        except OSError:
            super().write(path, data[: len(data) // 2], mode)
            raise
        super().write(path, data, mode)

    def append(self, path: Path, data: bytes) -> None:
        """Two calls, a write and a sync: the second leaves all of the data, and whether it is durable is unknown."""
        try:
            self._count()
        except OSError:
            super().append(path, data[: len(data) // 2])
            raise
        super().append(path, data)
        self._count()

    def sync(self, path: Path) -> None:
        self._count()
        super().sync(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def sync_folder(self, path: Path) -> None:
        self._count()
        super().sync_folder(path)

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)


@dataclass(eq=False)
class _Inode:
    data: bytes
    synced: bytes = b""


class ForgetfulFiles(FastFiles):
    """Real files, and beside them a model of what a power cut would leave.

    A file's content survives from its sync, its name from its folder's sync. `images` gives, after every
    call, the worst case (nothing else survives), the best (everything does) and a random mixture.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now: dict[Path, _Inode] = {}
        self.kept: dict[Path, _Inode] = {}
        self.images: list[tuple[object, dict[Path, bytes]]] = []
        self.acknowledged: object = None
        self._random = random.Random(7)
        for path in root.rglob("*"):  # what is there already is durable
            data = path.read_bytes() if path.is_file() else b""
            self.now[path] = self.kept[path] = _Inode(data, data)

    def write(self, path: Path, data: bytes, mode: int) -> None:
        super().write(path, data, mode)
        self.now.setdefault(path, _Inode(b"")).data = data
        self._snap()

    def append(self, path: Path, data: bytes) -> None:
        super().append(path, data)
        inode = self.now.setdefault(path, _Inode(b""))
        inode.data += data
        self._snap()
        inode.synced = inode.data
        self._snap()

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.now[path].synced = self.now[path].data
        self._snap()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.now[target] = self.now.pop(source)
        self._snap()

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self.now[path] = _Inode(b"")
        self._snap()

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        self.kept = {p: inode for p, inode in self.kept.items() if p.parent != path}
        self.kept |= {p: inode for p, inode in self.now.items() if p.parent == path}
        self._snap()

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.now.pop(path, None)
        self._snap()

    def _snap(self) -> None:
        mixed = {}
        for path in {*self.now, *self.kept}:
            inode = self._random.choice([self.now, self.kept]).get(path)
            if inode:
                # What was synced before an append survives; of the rest any beginning may.
                kept = len(inode.synced) if inode.data.startswith(inode.synced) else 0
                cut = self._random.randint(kept, len(inode.data))
                mixed[path] = self._random.choice([inode.data, inode.synced, inode.data[:cut]])
        worst = {path: inode.synced for path, inode in self.kept.items()}
        best = {path: inode.data for path, inode in self.now.items()}
        for image in (worst, best, mixed):
            whole = {p: data for p, data in image.items() if self._reachable(p, image)}
            self.images.append((self.acknowledged, whole))

    def _reachable(self, path: Path, image: dict[Path, bytes]) -> bool:
        above = [parent for parent in path.parents if self.root in parent.parents]
        return all(parent in image for parent in above)

    def restore(self, image: dict[Path, bytes], target: Path) -> None:
        """Write one image below `target`; folders are those that the image names."""
        folders = {path for path in image if path.is_dir()}
        for folder in sorted(folders):
            (target / folder.relative_to(self.root)).mkdir(parents=True, exist_ok=True)
        for path, data in image.items():
            if path not in folders:
                (target / path.relative_to(self.root)).write_bytes(data)
