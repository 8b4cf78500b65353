"""Sending one kind of message to many sites and taking the replies as they arrive.

Rules.
- Message content is a canonical document and, beside it, blob references; the one record layout
  of `pack` and `unpack`.
- Replies are yielded as they come, so that what they name can be added up and dropped.
- What nobody waits for any more is withdrawn, so that a hospital that returns late spends nothing on it
  (`Grid` has no such call; ours has, Flower's own engines let messages expire).
- A deadline ends the waiting only when enough sites have replied; until then the study is paused,
  says whom it waits for, and goes on by itself when they return.
"""

from collections.abc import Callable, Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from wardround_common.documents import Document
from wardround_common.rounds import BlobRef
from wardround_server.rounds.desk import Desk, Interrupted
from wardround_server.transport.flower import pack


def send(
    grid: Grid, desk: Desk, kind: str, group: str, content: Mapping[str, tuple[Document, tuple[BlobRef, ...]]]
) -> dict[str, str]:
    """Push one message of type `kind` to every site in `content`; return message id to site."""
    messages = [
        grid.create_message(pack(document.to_bytes(), blobs), kind, desk.nodes[site], group)
        for site, (document, blobs) in content.items()
    ]
    return dict(zip(grid.push_messages(messages), content, strict=True))


def replies(
    grid: Grid,
    desk: Desk,
    pending: Mapping[str, str],
    *,
    enough: Callable[[], bool],
    waiting: Callable[[list[str]], None],
) -> Iterator[tuple[str, Message]]:
    """Yield (site, reply) until all have replied, or the deadline has passed and `enough()` holds.

    Args:
        grid: where the messages were pushed.
        desk: gives the round's deadline, the clock and the stop signal.
        pending: message id to site.
        enough: whether the replies so far suffice.
        waiting: told the missing sites when the deadline has passed and they do not suffice.

    Raises:
        Interrupted: the server is shutting down.
    """
    missing = dict(pending)
    try:
        yield from _arriving(grid, desk, missing, enough, waiting)
    finally:
        _withdraw(grid, missing)


def arrived(grid: Grid, pending: Mapping[str, str]) -> Iterator[tuple[str, Message]]:
    """Yield (site, reply) for what has come without being waited for, and withdraw the rest."""
    missing = dict(pending)
    try:
        for reply in list(grid.pull_messages(list(missing))):
            yield missing.pop(reply.metadata.reply_to_message_id), reply
    finally:
        _withdraw(grid, missing)


def _withdraw(grid: Grid, missing: Mapping[str, str]) -> None:
    withdraw = getattr(grid, "withdraw", None)
    if missing and withdraw is not None:
        withdraw(list(missing))


def _arriving(
    grid: Grid,
    desk: Desk,
    missing: dict[str, str],
    enough: Callable[[], bool],
    waiting: Callable[[list[str]], None],
) -> Iterator[tuple[str, Message]]:
    deadline = desk.clock() + desk.study.timing.round_deadline_s
    paused = False
    while missing:
        for reply in list(grid.pull_messages(list(missing))):
            yield missing.pop(reply.metadata.reply_to_message_id), reply
        if not missing:
            return
        if desk.clock() > deadline:
            if enough():
                return
            if not paused:
                waiting(sorted(missing.values()))
                paused = True
        if desk.stop.wait(desk.poll_s):
            raise Interrupted
