"""Stops a child before each system call that changes files or sends bytes, to kill it there or to write it down.

Linux only, by ptrace: no tool is needed, and nothing in the child knows of it. The child is a fork with one thread.
`ForgetfulDisk` replays what was written down as a disk that keeps only what was synced.
"""

import ctypes
import os
import platform
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_X86 = {1: "write", 18: "pwrite64", 44: "sendto", 46: "sendmsg", 74: "fsync", 75: "fdatasync", 77: "ftruncate"}
_X86 |= {82: "rename", 86: "link", 87: "unlink", 257: "openat", 20: "writev", 296: "pwritev", 285: "fallocate"}
_ARM = {64: "write", 68: "pwrite64", 206: "sendto", 211: "sendmsg", 82: "fsync", 83: "fdatasync", 46: "ftruncate"}
_ARM |= {38: "renameat", 37: "linkat", 35: "unlinkat", 56: "openat", 66: "writev", 70: "pwritev", 47: "fallocate"}
_TABLE = {"x86_64": _X86, "aarch64": _ARM}.get(platform.machine(), {})

_TRACEME, _SYSCALL, _SETOPTIONS, _SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_KILL_WITH_PARENT, _MARK_SYSCALLS = 0x100000, 1
_ENTRY = 1


@dataclass(frozen=True, kw_only=True)
class Call:
    """One system call about to happen."""

    name: str  # without "at": rename, unlink, link
    path: str  # the file, or "pipe:[7]", "socket:[7]"
    data: bytes = field(default=b"", repr=False)
    offset: int = 0  # where data goes; the new size for ftruncate
    target: str = ""  # of a rename or link


def run_traced(work: Callable[[], None], stop: Callable[[Call], bool]) -> bool:
    """Run `work` in a forked child; SIGKILL it before the first call for which `stop` is true.

    Returns whether it was killed. A child that fails by itself fails the test.
    """
    child = _fork_traced(work)
    try:
        for call in _calls(child):
            if stop(call):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return True
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    return False


def record(work: Callable[[], None]) -> list[Call]:
    """Run `work` in a forked child and return its calls."""
    calls: list[Call] = []
    run_traced(work, lambda call: calls.append(call) or False)  # type: ignore[func-returns-value]
    return calls


def _ptrace(request: int, child: int, address: int = 0, data: int = 0) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype, libc.ptrace.argtypes = ctypes.c_long, [ctypes.c_long] * 4
    return int(libc.ptrace(request, child, address, data))


def _fork_traced(work: Callable[[], None]) -> int:
    if not _TABLE:
        pytest.skip(f"system call numbers of {platform.machine()} are not in the table")
    child = os.fork()
    if child == 0:
        code = 3
        try:
            if _ptrace(_TRACEME, 0) == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
                work()
                code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            code = 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        pytest.skip("this system does not allow tracing")
    _ptrace(_SETOPTIONS, child, 0, _KILL_WITH_PARENT | _MARK_SYSCALLS)
    return child


def _calls(child: int) -> Iterator[Call]:
    info = ctypes.create_string_buffer(88)
    deliver = 0
    while True:
        _ptrace(_SYSCALL, child, 0, deliver)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            assert status == 0, f"the traced child ended with {status}"
            return
        deliver = 0
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            deliver = os.WSTOPSIG(status)
            continue
        _ptrace(_SYSCALL_INFO, child, len(info), ctypes.addressof(info))
        if info.raw[0] != _ENTRY:
            continue
        number, *arguments = (int.from_bytes(info.raw[at : at + 8], "little") for at in range(24, 80, 8))
        if number in _TABLE and (call := _decode(child, _TABLE[number], arguments)):
            yield call


def _decode(child: int, name: str, a: list[int]) -> Call | None:
    if name in ("fsync", "fdatasync", "sendto", "sendmsg"):
        return Call(name=name, path=_descriptor(child, a[0]))
    if name in ("write", "pwrite64"):
        path, data = _descriptor(child, a[0]), _memory(child, a[1], a[2])
        return Call(name=name, path=path, data=data, offset=a[3] if name == "pwrite64" else _position(child, a[0]))
    if name == "ftruncate":
        return Call(name=name, path=_descriptor(child, a[0]), offset=a[1])
    if name == "openat":
        creates = a[2] & (os.O_CREAT | os.O_TRUNC)
        return Call(name="openat", path=_text(child, a[1]), offset=a[2] & os.O_TRUNC) if creates else None
    if name in ("rename", "link"):
        return Call(name=name, path=_text(child, a[0]), target=_text(child, a[1]))
    if name in ("renameat", "linkat"):
        return Call(name=name.removesuffix("at"), path=_text(child, a[1]), target=_text(child, a[3]))
    if name in ("unlink", "unlinkat"):
        return Call(name="unlink", path=_text(child, a[0] if name == "unlink" else a[1]))
    raise AssertionError(f"{name} is not modelled: the replay would be wrong")


def _descriptor(child: int, number: int) -> str:
    return os.readlink(f"/proc/{child}/fd/{number & 0xFFFFFFFF}")


def _position(child: int, number: int) -> int:
    return int(Path(f"/proc/{child}/fdinfo/{number}").read_text().split()[1])


def _memory(child: int, address: int, length: int) -> bytes:
    with open(f"/proc/{child}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def _text(child: int, address: int) -> str:
    page = 4096 - address % 4096  # a path may end at the end of mapped memory
    found = _memory(child, address, page)
    if b"\0" not in found:
        found += _memory(child, address + page, 4096)
    return os.fsdecode(found.split(b"\0")[0])


@dataclass(eq=False)
class _Inode:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    pending: list[Call] = field(default_factory=list)  # writes and truncations since the last sync


class ForgetfulDisk:
    """What a power cut leaves of the files below `root`, call by call.

    A file's content survives from its sync, its name from its folder's sync. Anything later may survive or not, each
    write for itself, also by half.
    """

    def __init__(self, root: Path, *, empty: bool = False, seed: int = 7) -> None:
        """Start with what lies below `root` now, all of it durable; or with nothing if `empty`."""
        self._root = root
        self._random = random.Random(seed)
        self._now: dict[str, _Inode] = {}
        self._kept: dict[str, _Inode] = {}
        for path in root.rglob("*"):
            if path.is_file() and not empty:
                inode = _Inode(bytearray(path.read_bytes()), path.read_bytes())
                self._now[str(path)] = self._kept[str(path)] = inode

    def apply(self, call: Call) -> bool:
        """Do what the call does; return whether it concerned this disk."""
        if not call.path.startswith(str(self._root)) or call.path.endswith("-shm"):  # rebuilt by SQLite, never read
            return False
        if call.name in ("fsync", "fdatasync"):
            self._sync(call.path)
        elif call.name == "rename":
            self._now[call.target] = self._now.pop(call.path)
        elif call.name == "link":
            self._now[call.target] = self._now[call.path]
        elif call.name == "unlink":
            self._now.pop(call.path, None)
        else:
            inode = self._now.setdefault(call.path, _Inode())
            _change(inode.data, call)
            inode.pending.append(call)
        return True

    def images(self) -> Iterator[dict[str, bytes]]:
        """Yield what a power cut now would leave: the least, the most, and something in between."""
        yield {path: inode.synced for path, inode in self._kept.items()}
        yield {path: bytes(inode.data) for path, inode in self._now.items()}
        names = self._random.choice([self._now, self._kept])
        yield {path: self._torn(inode) for path, inode in names.items()}

    def restore(self, image: dict[str, bytes], target: Path) -> Path:
        """Write an image below `target` and return `target`."""
        for path, data in image.items():
            place = target / Path(path).relative_to(self._root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        return target

    def _sync(self, path: str) -> None:
        if path in self._now:
            inode = self._now[path]
            inode.synced, inode.pending = bytes(inode.data), []
            return
        self._kept = {name: inode for name, inode in self._kept.items() if str(Path(name).parent) != path}
        self._kept |= {name: inode for name, inode in self._now.items() if str(Path(name).parent) == path}

    def _torn(self, inode: _Inode) -> bytes:
        data = bytearray(inode.synced)
        for call in inode.pending:
            part = self._random.choice([0, len(call.data) // 2, len(call.data)])
            if call.data:
                _change(data, Call(name=call.name, path=call.path, data=call.data[:part], offset=call.offset))
            elif part == self._random.choice([0, 1]):
                _change(data, call)
        return bytes(data)


def _change(data: bytearray, call: Call) -> None:
    if call.name in ("write", "pwrite64"):
        data.extend(bytes(max(0, call.offset - len(data))))
        data[call.offset : call.offset + len(call.data)] = call.data
    elif call.name == "ftruncate" or call.offset:  # openat with O_TRUNC has its flag there, and size 0
        size = call.offset if call.name == "ftruncate" else 0
        del data[size:]
        data.extend(bytes(size - len(data)))
