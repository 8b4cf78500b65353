"""What the steps of a masked round share: the study's parameters, where messages are kept, how members are asked.

Rules (docs/spec/round.md, "Under secure aggregation").
- A member's message is verified, then stored as it came, then used; after a restart it is not asked for again.
- Whose keys were shown, who may mask and who survived are stored before anybody is told, and never change.
- Who refuses, or sends what does not hold, stands in the audit trail with the step and one reason of a closed list.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from wardround_common.audit.events import MaskingRefusal, MaskingRefused, MaskingStep
from wardround_common.errors import ProtocolError, VerificationError
from wardround_common.rounds import BlobRef, Refused, document_format
from wardround_common.secagg.rules import Rules
from wardround_common.updates import secagg_rules
from wardround_server.rounds.desk import Desk, Entry
from wardround_server.rounds.gathering import refusal_reason
from wardround_server.rounds.progress import Progress
from wardround_server.rounds.replies import arrived, replies, send
from wardround_server.rounds.state import Kind, RoundState
from wardround_server.rounds.witnessing import Content
from wardround_server.transport.flower import unpack

Take = Callable[[str, bytes, tuple[BlobRef, ...]], None]
"""Uses one reply (site, document, blobs); raises WardroundError if it does not hold."""

Fixed = Literal["keys", "roster"]


@dataclass(frozen=True, kw_only=True)
class Masking:
    """One study's collaborators under secure aggregation.

    Args:
        desk: the study's collaborators.
        state: where messages are kept.
        progress: told for whom a round waits.
        refused: entries of this round about members that took no part in a step.
    """

    desk: Desk
    state: RoundState
    progress: Progress
    refused: list[Entry] = field(default_factory=list)

    @cached_property
    def rules(self) -> Rules:
        """The study's parameters."""
        return secagg_rules(self.desk.study, self.desk.layout.trained)

    @property
    def study(self) -> str:
        """The study's digest."""
        return self.rules.study

    @property
    def need(self) -> int:
        """Members without whom no sum may be opened."""
        return max(self.rules.threshold, self.rules.min_cohort)

    def keep(self, round_: int, kind: Kind, site: str, body: bytes) -> None:
        """Store a message durably."""
        self.state.keep(self.study, round_, kind, site, body)

    def kept(self, round_: int, kind: Kind) -> dict[str, bytes]:
        """Return stored messages, by site."""
        return self.state.kept(self.study, round_, kind)

    def fix(self, round_: int, what: Fixed, sites: Collection[str]) -> None:
        """Store a list of sites before anybody acts on it."""
        self.keep(round_, what, "", json.dumps(list(sites)).encode())

    def fixed(self, round_: int, what: Fixed) -> tuple[str, ...] | None:
        """Return the list of sites that was fixed, None before that."""
        body = self.kept(round_, what).get("")
        return None if body is None else tuple(json.loads(body))

    def refuse(self, round_: int, site: str, step: MaskingStep, reason: MaskingRefusal) -> None:
        """Note that a member took no part in a step."""
        event = MaskingRefused(study=self.study, round=round_, site=site, step=step, reason=reason)
        self.refused.append((event, frozenset({site})))

    def ask(
        self,
        grid: Grid,
        kind: str,
        round_: int,
        content: Content,
        take: Take,
        *,
        step: MaskingStep,
        enough: Callable[[], bool],
        unawaited: Content | None = None,
    ) -> None:
        """Send every site its message; use the replies until all are here, or the deadline has passed and `enough()`.

        Args:
            grid: the study's.
            kind: type of the messages.
            round_: the round that they are about.
            content: document and blobs, by site.
            take: uses one reply.
            step: what a refusal is logged as.
            enough: whether the replies so far suffice.
            unawaited: messages to sites that are not waited for; their replies count if they come meanwhile.

        Raises:
            Interrupted: the server is shutting down.
            StorageError: the state cannot be written.
        """
        group, late = f"{round_}.{step}", set(content)
        others = send(grid, self.desk, kind, group, unawaited or {})
        pending = send(grid, self.desk, kind, group, content)
        for site, reply in replies(
            grid,
            self.desk,
            pending,
            enough=enough,
            waiting=lambda missing: self.progress.waiting(round_, step, missing),
        ):
            late.discard(site)
            self.use(round_, site, reply, take, step)
        for site, reply in arrived(grid, others):
            self.use(round_, site, reply, take, step)
        for site in sorted(late):
            self.refuse(round_, site, step, "late")

    def use(self, round_: int, site: str, reply: Message, take: Take, step: MaskingStep) -> None:
        """Use one reply, or note why not."""
        if reply.has_error():
            return self.refuse(round_, site, step, "failed-locally")
        try:
            document, blobs = unpack(reply)
            if document_format(document) == "wardround/refused/1":
                return self.refuse(round_, site, step, refusal_reason(Refused.from_bytes(document).code))
            take(site, document, blobs)
        except (ProtocolError, VerificationError) as error:
            self.refuse(round_, site, step, "malformed" if isinstance(error, ProtocolError) else "invalid")


def only(blobs: tuple[BlobRef, ...], named: BlobRef | None) -> BlobRef | None:
    """Return the blob that a reply names, after looking that it is the one that came.

    Raises:
        ProtocolError: another one came.
    """
    if blobs != (() if named is None else (named,)):
        raise ProtocolError(
            "reply-wrong-blob",
            "a reply came with another blob than it names",
            next_step="the reply is not used; ask the site for its log",
        )
    return named
