"""Named steps of a round, as data, and what can be made to happen at one of them.

A step is a method of the product, the moment before or after it, and a condition on its arguments. `install` wraps the
method in this process only; the product knows nothing of it. Add a row to `SERVER` or `SITE` to kill there as well.
"""

import errno
import importlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wardround_common.audit.events import ModelReleased, RoundAggregated, RoundStarted, SurvivorsFixed, WitnessQuorum
from wardround_common.errors import TrainingError

Moment = Literal["before", "after", "inside"]  # inside a generator: when it is asked for its second item
When = Callable[[tuple[Any, ...], int], bool]
"""Whether this call, with its arguments (self included), is the step in the given round."""


@dataclass(frozen=True)
class Step:
    """Where something can happen."""

    method: str  # module:Class.method or module:function
    moment: Moment
    when: When = lambda arguments, round_: True


def _phase(phase: str) -> When:
    return lambda a, round_: a[1].phase == phase and a[1].plan.round == round_


def _logs(kind: type) -> When:
    def when(arguments: tuple[Any, ...], round_: int) -> bool:
        return any(isinstance(event, kind) and event.round == round_ for event, _ in arguments[1])

    return when


_PUT = "wardround_server.rounds.state:RoundState.put"
_APPEND = "wardround_server.auditlog:AuditLog.append"
_COSIGNED = "wardround_server.auditlog:AuditLog.add_cosignatures"
_BLOB_WRITE = "wardround_common.wire.blobstore:FileBlobStore.write"
_ROUNDS = "wardround_client.rounds:Rounds"


def _in_round(arguments: tuple[Any, ...], round_: int) -> bool:
    return _current["round"] == round_


SERVER: dict[str, Step] = {
    "before the plan is stored": Step(_PUT, "before", _phase("planned")),
    "after the plan is stored": Step(_PUT, "after", _phase("planned")),
    "before the start is logged": Step(_APPEND, "before", _logs(RoundStarted)),
    "after the start is logged": Step(_APPEND, "after", _logs(RoundStarted)),
    "while receiving": Step(_BLOB_WRITE, "after", _in_round),
    "after the first answer arrived": Step("wardround_server.transport.hub:Hub.answer", "after", _in_round),
    "after the first answer was added": Step("wardround_server.rounds.aggregate:MeanUpdate.add", "after", _in_round),
    "before the survivors are stored": Step(_PUT, "before", _phase("aggregated")),
    "after the survivors are stored": Step(_PUT, "after", _phase("aggregated")),
    "before the outcome is logged": Step(_APPEND, "before", _logs(RoundAggregated)),
    "after the outcome is logged": Step(_APPEND, "after", _logs(RoundAggregated)),
    "before the logged round is stored": Step(_PUT, "before", _phase("logged")),
    "before the cosignatures are stored": Step(_COSIGNED, "before", _in_round),
    "after the cosignatures are stored": Step(_COSIGNED, "after", _in_round),
    "after the quorum is logged": Step(_APPEND, "after", _logs(WitnessQuorum)),
    "before the round is sealed": Step(_PUT, "before", _phase("sealed")),
    "after the round is sealed": Step(_PUT, "after", _phase("sealed")),
}
"""Steps of every round at the server, in order."""

RELEASE: dict[str, Step] = {
    "before the release is built": Step("wardround_server.runner:build_release", "before"),
    "while the release is written": Step("wardround_server.release.build:provenance", "after"),
    "after the release is built": Step("wardround_server.runner:build_release", "after"),
    "after the release is logged": Step(
        _APPEND, "after", lambda a, _: any(isinstance(event, ModelReleased) for event, _ in a[1])
    ),
    "before the study is marked complete": Step(
        "wardround_server.app:Daemon._mark_completed",
        "before",
        lambda a, _: any(runner.completed for runner in a[0]._runners.values()),
    ),
}
"""Steps after the last round."""


def _vault(what: str) -> When:
    return lambda a, round_: a[1].endswith(f"-{what}-{round_}")


_LEDGER = "wardround_client.ledger:Ledger"

SITE: dict[str, Step] = {
    "before the plan is pinned": Step("wardround_client.gate:Gate.admit_plan", "before", lambda a, r: a[2].round == r),
    "after the seed is sealed": Step("wardround_client.vault:Vault.seal", "after", _vault("seed")),
    "after the plan is pinned": Step(f"{_LEDGER}.begin", "after", lambda a, r: a[2] == r),
    "in training": Step("training", "after"),
    "after training": Step("wardround_client.vault:Vault.seal", "after", _vault("adam")),
    "before the answer is stored": Step(f"{_LEDGER}.commit", "before", lambda a, r: a[2] == r),
    "after the answer is stored": Step(f"{_LEDGER}.commit", "after", lambda a, r: a[2] == r),
    "after the seed is destroyed": Step(f"{_ROUNDS}._forget", "after", lambda a, r: a[1].round == r),
    "before sending": Step("wardround_client.transport.worker:put_blob", "before", _in_round),
    "while sending": Step("wardround_client.transport.blobs:_messages", "inside", _in_round),
    "after sending": Step("wardround_client.transport.worker:put_blob", "after", _in_round),
    "before the witnessed state is stored": Step(
        "wardround_client.studies:store_agreed", "before", lambda a, r: a[1].round == r
    ),
    "after the witnessed state is stored": Step(
        "wardround_client.studies:store_agreed", "after", lambda a, r: a[1].round == r
    ),
}
"""Steps of a round at a hospital, in order."""

_KEEP = "wardround_server.rounds.masking:Masking.keep"
_MEMBER = "wardround_common.secagg.member:Member"


def _keeps(what: str) -> When:
    return lambda a, round_: (a[1], a[2]) == (round_, what)


MASKED_SERVER: dict[str, Step] = {
    "before the survivor set is signed": Step("wardround_server.rounds.masked:fix_survivors", "before", _in_round),
    "after the survivor set is signed and stored": Step(_KEEP, "after", _keeps("set")),
    "after the survivor set is logged": Step(_APPEND, "after", _logs(SurvivorsFixed)),
    "after the first opening was stored": Step(_KEEP, "after", _keeps("opening")),
    "before the sum is opened": Step("wardround_server.rounds.masked:MaskedUpdates._opened", "before", _in_round),
}
"""Steps that only a masked round has at the server, between receipt and the survivors' outcome."""

MASKED_SITE: dict[str, Step] = {
    "before shares are opened": Step(f"{_MEMBER}.open", "before", _in_round),
    "after shares are opened": Step(f"{_MEMBER}.open", "after", _in_round),
}
"""Steps that only a masked round has at a hospital."""

ALL = {**SERVER, **RELEASE, **SITE, **MASKED_SERVER, **MASKED_SITE}

_reached: dict[str, list[tuple[int, Callable[[], None]]]] = {}
_current = {"round": 0}


def install(step: str, do: str, round: int = 1, times: int = 1, seconds: float = 0.0) -> None:
    """Make `do` happen at `step` of `round`, at most `times`: kill, stall, disk-full, out-of-memory, device-lost."""
    where = ALL[step]
    act = _limited(lambda: _act(do, seconds), times)
    if where.method == "training":
        _reached.setdefault("training", []).append((round, act))
        return
    _note_rounds()
    _wrap(where.method, where.moment, lambda arguments: where.when(arguments, round), act)


def reach(step: str, round_: int) -> None:
    """Tell that this process is at a step that is no method (the light training)."""
    _current["round"] = round_
    for wanted, act in _reached.get(step, ()):
        if wanted == round_:
            act()


def mark(path: Path) -> None:
    """Append a line with the monotonic clock for every sealed round, opened and closed session (for benchmarks)."""

    def note(line: str) -> None:
        with path.open("a") as file:
            file.write(f"{time.monotonic()} {line}\n")

    for method, moment, tell in (
        (_PUT, "after", lambda a: f"sealed {a[1].plan.round}" if a[1].phase == "sealed" else ""),
        ("wardround_server.transport.sessions:Sessions._open", "after", lambda a: f"opened {a[1].site}"),
        ("wardround_server.transport.sessions:Sessions._close", "after", lambda a: f"closed {a[1].session.site}"),
    ):
        told: list[str] = [""]

        def when(arguments: tuple[Any, ...], tell: Any = tell, told: list[str] = told) -> bool:
            told[0] = tell(arguments)
            return bool(told[0])

        _wrap(method, moment, when, lambda told=told: note(told[0]))


def _act(do: str, seconds: float) -> None:
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # whatever the kernel does first, this thread goes no further
    elif do == "stall":
        time.sleep(seconds)
    elif do == "disk-full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif do == "out-of-memory":
        raise MemoryError("injected")
    elif do == "device-lost":
        raise TrainingError("device-failed", "the accelerator failed (injected)", next_step="-")
    else:
        raise ValueError(do)


def _limited(act: Callable[[], None], times: int) -> Callable[[], None]:
    left = [times]

    def limited() -> None:
        if left[0] > 0:
            left[0] -= 1
            act()

    return limited


def _note_rounds() -> None:
    """Keep `_current` at the round that this process works on."""
    if "noted" in _current:
        return
    _current["noted"] = 1

    def note(round_of: Callable[[tuple[Any, ...]], int]) -> When:
        def when(arguments: tuple[Any, ...], _: int = 0) -> bool:
            _current["round"] = round_of(arguments)
            return False

        return when

    _wrap("wardround_server.rounds.strategy:WardStrategy._advance", "before", note(lambda a: a[2].plan.round), _nothing)
    _wrap("wardround_client.gate:Gate.admit_plan", "before", note(lambda a: a[2].round), _nothing)


def _nothing() -> None:
    pass


def _wrap(method: str, moment: Moment, when: Callable[[tuple[Any, ...]], bool], act: Callable[[], None]) -> None:
    module, _, path = method.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    inner = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        hit = when(arguments)
        if hit and moment == "inside":
            return _items(inner(*arguments, **named), act)
        if hit and moment == "before":
            act()
        result = inner(*arguments, **named)
        if hit and moment == "after":
            act()
        return result

    setattr(owner, name, wrapped)


def _items(items: Iterator[Any], act: Callable[[], None]) -> Iterator[Any]:
    for number, item in enumerate(items):
        if number == 1:
            act()
        yield item
