"""Flower's `Grid` over our transport, for one study.

Rules.
- Methods block and run in the strategy's thread; the network has its own.
- Nodes are the study's members, by `identity.keys.node_id`; those with an open session are online.
  Work may be pushed to an offline member: it is delivered when the member returns.
- A message stays valid for its ttl. `send_and_receive` withdraws what it did not get an answer to
  in time, because nobody could pull that answer any more. Strategies that push and pull by
  themselves withdraw with `withdraw`.
- Two studies have two grids over one hub; nothing is shared between them, no global is read.
"""

import uuid
from collections.abc import Iterable, Mapping

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from wardround_common.identity.keys import node_id
from wardround_common.wire.frames import Answer
from wardround_server.transport.flower import new_message, to_reply, to_work
from wardround_server.transport.hub import Hub

LIFETIME_S = 366 * 86_400.0
"""Default time to live. Deadlines are the study's, at most a year; Flower's own 12 hours would silently drop a
request to a hospital that a paused round is still waiting for."""


class GrpcGrid(Grid):
    """One study's view of the hospitals.

    Args:
        hub: the bridge to the network.
        study: digest of the study.
        members: site name to `ed25519:` identity.
        run_id: Flower's number of the run, of no meaning to us.
    """

    def __init__(self, hub: Hub, *, study: str, members: Mapping[str, str], run_id: int = 1) -> None:
        self._hub = hub
        self._study = study
        self._nodes = {node_id(identity): site for site, identity in members.items()}
        self._run = Run.create_empty(run_id)
        self._requests: dict[str, Metadata] = {}

    def set_run(self, run: Run) -> None:
        """Take over Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    @property
    def sites(self) -> Mapping[int, str]:
        """Node id to site name, for all members."""
        return dict(self._nodes)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to one member (see `flower.pack` for the content)."""
        return new_message(
            content,
            run_id=self._run.run_id,
            message_type=message_type,
            node=dst_node_id,
            group_id=group_id,
            ttl_s=LIFETIME_S if ttl is None else ttl,
        )

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the members that are online."""
        online = self._hub.connected()
        return [node for node, site in self._nodes.items() if site in online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages for delivery and return their ids, in order.

        Raises:
            ProtocolError: not wardround content, or a site is overloaded.
            ValueError: a node that is no member of the study.
        """
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived to these messages, each once."""
        return self._replies(self._hub.take([id_ for id_ in message_ids if id_ in self._requests]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return the replies that arrive within `timeout` seconds (None: all of them).

        Raises:
            ProtocolError: not wardround content, or a site is overloaded.
            ValueError: a node that is no member of the study.
        """
        ids = list(self.push_messages(messages))
        try:
            return self._replies(self._hub.wait(ids, timeout))
        finally:
            self.withdraw(ids)

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Stop delivering messages whose replies nobody waits for any more."""
        own = [id_ for id_ in message_ids if self._requests.pop(id_, None) is not None]
        self._hub.withdraw(own)

    def _push(self, message: Message) -> str:
        metadata = message.metadata
        site = self._nodes.get(metadata.dst_node_id)
        if site is None:
            raise ValueError(f"node {metadata.dst_node_id} is no member of this study")
        # Messages of stock strategies have no id yet; a pushed message needs its own, also when pushed twice.
        message_id = metadata.message_id or str(uuid.uuid4())
        work = to_work(message, study=self._study, message_id=message_id)
        self._hub.post(site, work, ttl_s=metadata.ttl)
        self._requests[message_id] = metadata
        return message_id

    def _replies(self, answers: Mapping[str, Answer]) -> list[Message]:
        return [to_reply(answer, request=self._requests.pop(id_), message_id=id_) for id_, answer in answers.items()]
