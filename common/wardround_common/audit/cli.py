"""`wardround audit`: the reviewer's commands. Needs neither torch, flwr nor grpc.

Rules.
- Commands print their result on stdout and raise WardroundError; the root app renders errors.
- Secrets are never printed.
- Whatever comes from a log is escaped before rich sees it, and control characters never reach a terminal.
Not done here: the checks (`verify`) and decryption (`reader`).
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pyrage
import typer
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from wardround_common.audit.reader import LogEntry, LogFolder, claimed_size, load_identity, read_entries
from wardround_common.audit.seal import unreadable
from wardround_common.audit.trust import load_trust
from wardround_common.audit.verify import LastSeen, LogReport, Progress, utc, verify_log
from wardround_common.errors import ConfigError, StorageError, WardroundError

audit_app = typer.Typer(
    name="audit",
    help="Check and read a study's audit trail, offline.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PROGRESS_FROM = 20_000
"""Entries; smaller logs are checked before a bar could be read."""

MAX_LAST_SEEN_BYTES = 4_096
"""A last-seen file has about 300 bytes."""

_MARKS = {"yes": ("yes", "green"), "no": ("NO", "bold red"), "unknown": ("unknown", "yellow")}

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's audit folder, or a whole copy of it.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@audit_app.command()
def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file for the secret identity.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Make a reviewer's key: writes the secret to FILE, prints the recipient to give to the operator.

    Example: wardround audit keygen reviewer.key
    """
    identity = pyrage.x25519.Identity.generate()
    recipient = str(identity.to_public())
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    _write_new(file, f"# created: {created}\n# public key: {recipient}\n{identity}\n".encode())
    if as_json:
        typer.echo(json.dumps({"file": str(file), "recipient": recipient}))
    else:
        typer.echo(recipient)


@audit_app.command()
def verify(
    folder: Folder,
    trust: Annotated[Path, typer.Option(help="Your trust file: log key, members and quorum.", show_default=False)],
    last_seen: Annotated[
        Path | None,
        typer.Option(help="What your last visit saw; beside the trust file unless given.", show_default=False),
    ] = None,
    allow_unwitnessed: Annotated[
        bool, typer.Option(help="Accept a log that no hospital has cosigned at all (stopped before its first round).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that an audit trail is intact, only grew, and was seen by a quorum of hospitals.

    Four separate answers; exit 0 only when none of them is no. What it saw is remembered for the next visit.

    Example: wardround audit verify /mnt/copy/audit --trust trust.yaml
    """
    remembered = last_seen or trust.with_suffix(".last-seen.json")
    log = LogFolder(folder)
    with _progress(log, show=not as_json) as progress:
        report = verify_log(log, load_trust(trust), _load_last_seen(remembered), progress=progress)
    if as_json:
        typer.echo(json.dumps(_report_json(report, allow_unwitnessed), indent=2))
    else:
        _print_report(report)
    if report.last_seen:
        _store_last_seen(remembered, report.last_seen)
    report.require(allow_unwitnessed=allow_unwitnessed)


@audit_app.command()
def show(
    folder: Folder,
    identity: Annotated[Path, typer.Option(help="Your identity file, from keygen.", show_default=False)],
    kind: Annotated[str | None, typer.Option(help="Only this kind of entry, e.g. dp.spent.")] = None,
    site: Annotated[str | None, typer.Option(help="Only entries about this hospital.")] = None,
    as_json: AsJson = False,
) -> None:
    """List an audit trail's entries, decrypted with your key. Does not verify them: see verify.

    Times are the server's claim. Exit 1 when an entry cannot be read.

    Example: wardround audit show /mnt/copy/audit --identity reviewer.key --kind dp.spent --site st-elsewhere
    """
    log = LogFolder(folder)
    entries = list(read_entries(log, load_identity(identity)))
    cosigned = claimed_size(log.cosigned())
    chosen = [e for e in entries if (kind is None or e.kind == kind) and (site is None or _about(e, site))]
    if as_json:
        rows = [_entry_json(entry) for entry in chosen]
        typer.echo(json.dumps({"size": len(entries), "cosigned": cosigned, "entries": rows}, indent=2))
    else:
        _print_entries(chosen, len(entries), cosigned)
    _require_readable(entries)


def _require_readable(entries: list[LogEntry]) -> None:
    sealed = [entry for entry in entries if entry.kind == "sealed"]
    segments = {entry.segment for entry in entries if entry.kind == "segment.open"}
    if sealed and {entry.segment for entry in sealed} == segments:
        raise ConfigError(
            "audit-nothing-readable",
            f"none of the log's {len(segments)} segments can be read: {sealed[0].problem}",
            next_step="use the identity whose recipient the operator was given; `verify` finds missing key files",
        )
    broken = [entry for entry in entries if entry.kind == "unreadable"]
    if broken:
        raise unreadable(f"entry {broken[0].index} ({len(broken)} in all): {broken[0].problem}")


# -- verify


@contextmanager
def _progress(log: LogFolder, *, show: bool) -> Iterator[Progress | None]:
    console = Console(stderr=True)
    if not show or not console.is_terminal or _size_hint(log) < PROGRESS_FROM:
        yield None
        return
    with ProgressBar(console=console, transient=True) as bar:
        task = bar.add_task("checking entries")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _size_hint(log: LogFolder) -> int:
    try:
        return claimed_size(log.checkpoint())
    except WardroundError:
        return 0  # verify_log reports it


def _print_report(report: LogReport) -> None:
    table = Table(title="Audit trail", title_justify="left")
    for column in ("question", "answer", "detail"):
        table.add_column(column, overflow="fold")
    for question, answer in report.answers.items():
        mark, style = _MARKS[answer.status]
        table.add_row(question, Text(mark, style=style), Text(_plain(answer.text)))
    console = Console()
    console.print(table)
    for site, time in sorted(report.cosigned_by.items()):
        console.print(Text(f"cosigned by {site} at {utc(time)}"))
    for remark in report.remarks:
        console.print(Text(f"remark: {_plain(remark)}"))


def _report_json(report: LogReport, allow_unwitnessed: bool) -> dict[str, Any]:
    try:
        report.require(allow_unwitnessed=allow_unwitnessed)
        holds = True
    except WardroundError:
        holds = False
    return {
        "holds": holds,
        "size": report.size,
        "segments": report.segments,
        "cosigned_size": report.cosigned_size,
        "cosigned_by": report.cosigned_by,
        "members": report.members,
        "quorum": report.quorum,
        "complete_until": report.complete_until,
        "answers": {
            name: {"status": answer.status, "text": answer.text, "code": answer.error.code if answer.error else None}
            for name, answer in zip(
                ("intact", "append_only", "witnessed", "complete"), report.answers.values(), strict=True
            )
        },
        "remarks": report.remarks,
    }


def _load_last_seen(path: Path) -> LastSeen | None:
    try:
        with path.open("rb") as file:
            return LastSeen.from_bytes(file.read(MAX_LAST_SEEN_BYTES).strip())
    except FileNotFoundError:
        return None
    except (OSError, WardroundError):
        raise ConfigError(
            "last-seen-unusable",
            f"{path} is not a last-seen file that can be read",
            next_step="restore it; if you delete it, the next visit counts as the first and cannot notice a roll-back",
        ) from None


def _store_last_seen(path: Path, seen: LastSeen) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(seen.to_bytes() + b"\n")
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            "last-seen-unwritable",
            f"cannot remember this visit in {path}: {error.strerror}",
            next_step="give --last-seen a file that you may write",
        ) from None


# -- show


def _print_entries(entries: list[LogEntry], size: int, cosigned: int) -> None:
    table = Table(title="Audit entries", title_justify="left")
    for column in ("index", "time (claimed)", "segment", "kind", "study", "round", "site", "facts"):
        table.add_column(column, overflow="fold")
    marked = cosigned == 0
    for entry in entries:
        if not marked and entry.index >= cosigned:
            marked = True
            table.add_section()
        fields = _fields(entry)
        cells = [str(entry.index), utc(entry.time).removesuffix(" UTC"), entry.segment[:8], entry.kind]
        cells += [_short(fields.pop(name, "")) for name in ("study", "round", "site")]
        cells.append(entry.problem or ", ".join(f"{name}={_short(value)}" for name, value in fields.items()))
        table.add_row(*(Text(_plain(cell)) for cell in cells), style="red" if entry.kind == "unreadable" else None)
    console = Console()
    console.print(table)
    console.print(Text(f"{len(entries)} of {size} entries shown; cosigned up to entry {cosigned - 1}" if cosigned else
                       f"{len(entries)} of {size} entries shown; nothing cosigned yet"))  # fmt: skip
    console.print(Text("not verified here: run wardround audit verify"))


def _entry_json(entry: LogEntry) -> dict[str, Any]:
    return {
        "index": entry.index,
        "time": entry.time,
        "segment": entry.segment,
        "kind": entry.kind,
        "event": entry.event.model_dump(mode="json") if entry.event else None,
        "problem": entry.problem or None,
    }


def _fields(entry: LogEntry) -> dict[str, Any]:
    if entry.event is None:
        return {}
    values = entry.event.model_dump(mode="json")
    if entry.kind == "unknown":
        return {"kind": values["kind"], "v": values["v"]}
    return {name: value for name, value in values.items() if name not in ("kind", "v")}


def _about(entry: LogEntry, site: str) -> bool:
    """Return whether the entry names the site, alone or in a cohort."""
    values = _fields(entry)
    return any(value == site or (isinstance(value, list) and site in value) for value in values.values())


def _short(value: Any) -> str:
    """Return a value in a few characters; --json shows it whole."""
    if isinstance(value, dict) and "signatures" in value:
        return "signed by " + "+".join(str(s.get("keyid", ""))[:14] for s in value["signatures"])
    if isinstance(value, dict):
        return str(value.get("keyid", "…"))[:14]
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "+".join(_short(part) for part in value)
    text = str(value)
    return text if len(text) <= 24 else text.removeprefix("sha256:").removeprefix("ed25519:")[:12] + "…"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


# -- keygen


def _write_new(path: Path, data: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
    except FileExistsError:
        raise ConfigError(
            "audit-key-exists",
            f"{path} is already there; an identity is never overwritten",
            next_step="choose another file name; what was encrypted to the old key needs the old file",
        ) from None
    except OSError as error:
        raise StorageError(
            "audit-key-unwritable",
            f"cannot write {path}: {error.strerror}",
            next_step="choose a folder that exists and that you may write to",
        ) from None
