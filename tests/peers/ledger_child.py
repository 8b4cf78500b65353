"""Run as a program: answers rounds in a ledger for ever, and says each step *after* it is durable, to be killed.

`ledger_child.py LEDGER STUDY FIRST_ROUND`; prints "began N" and "committed N" on lines of their own.
"""

import os
import sys
from pathlib import Path

from wardround_client.ledger import Ledger
from wardround_common.documents import sha256_digest
from wardround_common.rounds import BlobRef


def plan(round_: int) -> str:
    return sha256_digest(f"plan {round_}".encode())


def sealed(data: bytes) -> BlobRef:
    return BlobRef(digest=sha256_digest(data), length=len(data))


def work(path: Path, study: str, first: int, out: int) -> None:
    """Answer rounds from `first` on; every answer differs from every other, as fresh noise would."""
    with Ledger.open(path, writer=True) as ledger:
        for round_ in range(first, 100_000):
            if ledger.begin(study, round_, plan(round_)) is None:
                os.write(out, b"began %d\n" % round_)
                body = os.urandom(300)
                ledger.commit(study, round_, plan(round_), body, b"record " + body, sealed(body))
            os.write(out, b"committed %d\n" % round_)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), 1)
