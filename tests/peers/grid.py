"""A Flower grid in memory: every member is a function from message to reply, called when pulled."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from wardround_server.transport.flower import new_message

Hospital = Callable[[Message], Message | None]
"""Returns the reply, or None while the hospital is silent."""


class MemoryGrid(Grid):
    """Delivers to `hospitals` (node id to function); a silent hospital is asked again at every pull."""

    def __init__(self, hospitals: dict[int, Hospital]) -> None:
        self.hospitals = hospitals
        self.sent: list[Message] = []
        self._open: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return new_message(
            content, run_id=1, message_type=message_type, node=dst_node_id, group_id=group_id, ttl_s=ttl or 60.0
        )

    def get_node_ids(self) -> Iterable[int]:
        return list(self.hospitals)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        self.sent += pushed
        self._open |= {message.metadata.message_id: message for message in pushed}
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for id_ in message_ids:
            message = self._open.get(id_)
            reply = message and self.hospitals[message.metadata.dst_node_id](message)
            if reply is not None:
                del self._open[id_]
                replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
