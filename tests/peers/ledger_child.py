"""A daemon's part in a ledger, for a child that is going to be killed: it says each step *after* it is durable."""

import os
from pathlib import Path

from wardround_client.ledger import Ledger
from wardround_common.documents import sha256_digest
from wardround_common.rounds import BlobRef


def plan(round_: int) -> str:
    return sha256_digest(f"plan {round_}".encode())


def sealed(data: bytes) -> BlobRef:
    return BlobRef(digest=sha256_digest(data), length=len(data))


def work(path: Path, study: str, first: int, out: int, *, rounds: int) -> None:
    """Answer rounds from `first` on; every answer differs from every other, as fresh noise would."""
    with Ledger.open(path, writer=True) as ledger:
        for round_ in range(first, first + rounds):
            if ledger.begin(study, round_, plan(round_)) is None:
                os.write(out, b"began %d\n" % round_)
                body = os.urandom(300)
                ledger.commit(study, round_, plan(round_), body, b"record " + body, sealed(body))
            os.write(out, b"committed %d\n" % round_)
