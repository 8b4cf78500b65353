"""What can go wrong with the audit log's files, as errors for the operator."""

import errno

from wardround_common.errors import StorageError, VerificationError


def write_failed(error: OSError) -> StorageError:
    """Return the error for a file-system call that failed; nothing was acknowledged."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            "audit-disk-full",
            "the disk is full: the audit entry was not written, so nothing goes on",
            next_step="make room on the audit log's disk; the server goes on by itself, the log is intact",
        )
    return StorageError(
        "audit-write-failed",
        f"the audit log cannot be written: {error.strerror}",
        next_step="check the disk and the folder's permissions; nothing was acknowledged, the log is intact",
    )


def interrupted(error: BaseException) -> StorageError:
    """Return the error for a write that something else ended, such as a signal."""
    return write_failed(OSError(errno.EINTR, f"interrupted by {type(error).__name__}"))


def damaged(error: VerificationError) -> StorageError:
    """Return the error for a folder that does not fit together."""
    return StorageError(
        "audit-damaged",
        f"the audit log is damaged: {error}",
        next_step="stop; run `wardround audit verify` on the folder and bring back its newest intact copy",
    )


def stalled(seconds: float) -> StorageError:
    """Return the error for a disk that does not answer."""
    return StorageError(
        "audit-stalled",
        f"the audit log's disk has not answered for {seconds:.0f} s; nothing goes on",
        next_step="check the disk (dmesg, the network mount); then start the server again, it resumes",
    )


def behind(site: str, seen: int, size: int) -> StorageError:
    """Return the error for a log that is older than what a hospital has cosigned."""
    return StorageError(
        "audit-log-behind",
        f"{site} has cosigned {seen} audit entries; this log holds {size}",
        next_step="an old copy of the audit folder was restored: stop, and bring back the newest one",
    )


def forked_by_restore(site: str, size: int) -> StorageError:
    """Return the error for a log that went on from an old copy."""
    return StorageError(
        "audit-log-forked",
        f"{site} has cosigned other entries than the first {size} of this log",
        next_step="an old copy of the audit folder was restored and went on: stop, and bring back the newest one",
    )
