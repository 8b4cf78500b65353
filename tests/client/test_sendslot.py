"""Answers to a plan leave at whole slots, whatever they say and however long they took."""

import math

import pytest
from flwr.app import Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from peers.studies import Cast, make_study

from wardround_client.approving import require_slot
from wardround_client.config import ClientConfig
from wardround_client.sendslot import SendSlot
from wardround_client.transport.flower import to_message
from wardround_common.errors import ConfigError
from wardround_common.wire.frames import Work

SLOT = 60.0


class Machine:
    """A clock that only work and waiting move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def pass_(self, seconds: float) -> None:
        self.now += seconds

    def slot(self, seconds: float | None) -> SendSlot:
        return SendSlot(seconds=seconds, clock=lambda: self.now, wait=self.pass_)


def ask(machine: Machine, slot: SendSlot, kind: str, takes_s: float) -> float:
    """Return after how many seconds the answer leaves."""

    def answer(message: Message) -> Message:
        machine.pass_(takes_s)
        return Message(RecordDict(), reply_to=message)

    began = machine.now
    work = Work(message_id="one", study="", group_id="", message_type=kind, document=b"{}", blobs=())
    slot.held(answer)(to_message(work, node=1))
    return machine.now - began


@given(takes_s=st.floats(0.001, 59.9))
def test_how_long_training_took_does_not_show(takes_s: float):
    machine = Machine()
    assert ask(machine, machine.slot(SLOT), MessageType.TRAIN, takes_s) == pytest.approx(SLOT)


@given(takes_s=st.floats(0.001, 10_000.0))
def test_a_missed_slot_is_followed_by_the_next(takes_s: float):
    machine = Machine()
    left_after = ask(machine, machine.slot(SLOT), MessageType.TRAIN, takes_s)
    assert left_after == pytest.approx(SLOT * math.ceil(takes_s / SLOT))


def test_without_a_slot_an_answer_leaves_at_once():
    machine = Machine()
    assert ask(machine, machine.slot(None), MessageType.TRAIN, 7.0) == 7.0


@pytest.mark.parametrize("kind", ["query.cosign", "query.unmask"])
def test_what_public_sizes_decide_is_not_held(kind: str):
    machine = Machine()
    assert ask(machine, machine.slot(SLOT), kind, 7.0) == 7.0


def test_a_slot_that_ends_after_the_deadline_is_refused():
    study = make_study(Cast())
    deadline = study.timing.round_deadline_s
    config = ClientConfig(site="north", server="ward.example.org:8443", send_slot_s=deadline)
    with pytest.raises(ConfigError, match="waits") as refused:
        require_slot(config, study)
    assert refused.value.code == "send-slot-too-long"
    shorter = config.model_copy(update={"send_slot_s": deadline / 2})
    require_slot(shorter, study)
