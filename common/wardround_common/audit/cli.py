"""`wardround audit`: the reviewer's commands. Needs neither torch, flwr nor grpc.

Rules.
- Commands print their result through `Output` and raise WardroundError; the root app renders errors.
- With `--json` there is one document; a failed check is its `error`, and the exit code is 1.
- Secrets are never printed.
Not done here: the checks (`verify`) and decryption (`reader`).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pyrage
import typer

from wardround_common.audit.reader import LogEntry, LogFolder, claimed_size, load_identity, read_entries
from wardround_common.audit.seal import unreadable
from wardround_common.audit.tiles import TILE_WIDTH
from wardround_common.audit.trust import Trust, load_trust
from wardround_common.audit.verify import LastSeen, LogReport, Progress, utc, verify_log
from wardround_common.config_text import render_yaml
from wardround_common.errors import ConfigError, StorageError, WardroundError
from wardround_common.files import write_durably
from wardround_common.output import Output, progress
from wardround_common.signing import Envelope, fingerprint
from wardround_common.study import open_cosigned

audit_app = typer.Typer(
    name="audit",
    help="Check and read a study's audit trail, offline.",
    no_args_is_help=True,
    add_completion=False,
)

PROGRESS_FROM = 20_000
"""Entries; smaller logs are checked before a bar could be read."""

MAX_LAST_SEEN_BYTES = 4_096
"""A last-seen file has about 300 bytes."""

_LINE = "{:>6}  {:19}  {:8}  {:16}  {}"
_MARKS = {"yes": "yes", "no": "NO", "unknown": "unknown"}

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
    out = Output(as_json=as_json)
    out.say(recipient)
    out.result({"file": str(file), "recipient": recipient})


@audit_app.command()
def trust(
    study: Annotated[Path, typer.Argument(metavar="STUDY.json", help="A co-signed study, as releases hold it.")],
    operator: Annotated[
        str, typer.Option(help="The operator's ed25519: key, compared out of band.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="New trust file.", metavar="FILE")] = Path("trust.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a trust file from a study that the operator and every member signed; compare its fingerprints by telephone.

    Example: wardround audit trust release/study.json --operator ed25519:… --out trust.yaml
    """
    try:
        envelope = Envelope.from_bytes(study.read_bytes())
    except OSError as error:
        raise ConfigError(
            "config-unreadable", f"cannot read {study}: {error.strerror}", next_step="give the study.json of a release"
        ) from None
    found = Trust.of(open_cosigned(envelope, operator))
    if out.exists():
        raise ConfigError("file-exists", f"{out} exists already", next_step="choose another name with --out")
    header = "Compare every fingerprint by telephone before you rely on this."
    write_durably(out, render_yaml(found, header=header).encode())
    prints = {name: fingerprint(key) for name, key in {"operator": operator, **found.members}.items()}
    shown = Output(as_json=as_json)
    shown.say(f"wrote {out}; compare by telephone:")
    shown.table(["who", "fingerprint"], [[name, text] for name, text in prints.items()])
    shown.result({"file": str(out), "fingerprints": prints})


@audit_app.command()
def verify(
    folder: Folder,
    trust_file: Annotated[
        Path, typer.Option("--trust", help="Your trust file: log key, members and quorum.", show_default=False)
    ],
    last_seen: Annotated[
        Path | None,
        typer.Option(help="What your last visit saw; beside the trust file unless given.", show_default=False),
    ] = None,
    allow_unwitnessed: Annotated[
        bool,
        typer.Option(
            "--allow-unwitnessed",
            help="Accept a log that no hospital has cosigned at all (stopped before its first round).",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that an audit trail is intact, only grew, and was seen by a quorum of hospitals.

    Four separate answers; exit 0 only when none of them is no. What it saw is remembered for the next visit.

    Example: wardround audit verify /mnt/copy/audit --trust trust.yaml
    """
    remembered = last_seen or trust_file.with_suffix(".last-seen.json")
    log = LogFolder(folder)
    with _progress(log) as advance:
        report = verify_log(log, load_trust(trust_file), _load_last_seen(remembered), progress=advance)
    out = Output(as_json=as_json)
    _print_report(out, report)
    if report.last_seen:
        _store_last_seen(remembered, report.last_seen)
    error = _error_of(lambda: report.require(allow_unwitnessed=allow_unwitnessed))
    _finish(out, _report_json(report), error)


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
    out = Output(as_json=as_json)
    _print_entries(out, chosen, len(entries), cosigned)
    document = {"size": len(entries), "cosigned": cosigned, "entries": [_entry_json(entry) for entry in chosen]}
    _finish(out, document, _error_of(lambda: _require_readable(entries)))


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


def _error_of(check: Callable[[], None]) -> WardroundError | None:
    try:
        check()
    except WardroundError as error:
        return error
    return None


def _finish(out: Output, document: dict[str, Any], error: WardroundError | None) -> None:
    """Print the JSON document, with the error in it; without --json, raise the error."""
    if error and not out.as_json:
        raise error
    shown = {"code": error.code, "message": error.message, "next_step": error.next_step} if error else None
    out.result(document | ({"error": shown} if error else {}))
    if error:
        raise typer.Exit(1)


# -- verify


@contextmanager
def _progress(log: LogFolder) -> Iterator[Progress | None]:
    size = _size_hint(log)
    if size < PROGRESS_FROM:
        yield None
        return
    with progress("checking entries", size) as advance:
        yield lambda done, total: advance(min(TILE_WIDTH, total))


def _size_hint(log: LogFolder) -> int:
    try:
        return claimed_size(log.checkpoint())
    except WardroundError:
        return 0  # verify_log reports it


def _print_report(out: Output, report: LogReport) -> None:
    rows = [(question, _MARKS[answer.status], answer.text) for question, answer in report.answers.items()]
    out.table(("question", "answer", "detail"), rows)
    for site, time in sorted(report.cosigned_by.items()):
        out.say(f"cosigned by {site} at {utc(time)}")
    for remark in report.remarks:
        out.say(f"remark: {remark}")


def _report_json(report: LogReport) -> dict[str, Any]:
    names = ("intact", "append_only", "witnessed", "complete")
    return {
        "size": report.size,
        "segments": report.segments,
        "cosigned_size": report.cosigned_size,
        "cosigned_by": report.cosigned_by,
        "members": report.members,
        "quorum": report.quorum,
        "complete_until": report.complete_until,
        "answers": {
            name: {"status": answer.status, "text": answer.text, "code": answer.error.code if answer.error else None}
            for name, answer in zip(names, report.answers.values(), strict=True)
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


def _print_entries(out: Output, entries: list[LogEntry], size: int, cosigned: int) -> None:
    out.say(_LINE.format("index", "time (claimed, UTC)", "segment", "kind", "facts"))
    beyond = next((n for n, entry in enumerate(entries) if entry.index >= cosigned), len(entries))
    for entry in entries[:beyond]:
        out.say(_line(entry))
    if cosigned and beyond < len(entries):
        out.say("------  not yet cosigned from here on  ------")
    for entry in entries[beyond:]:
        out.say(_line(entry))
    marker = f"cosigned up to entry {cosigned - 1}" if cosigned else "nothing cosigned yet"
    out.say(f"{len(entries)} of {size} entries shown; {marker}")
    out.say("not verified here: run wardround audit verify")


def _line(entry: LogEntry) -> str:
    fields = _fields(entry)
    ordered = {name: fields[name] for name in ("study", "round", "site") if name in fields} | fields
    facts = entry.problem or " ".join(f"{name}={_short(value)}" for name, value in ordered.items())
    time = utc(entry.time).removesuffix(" UTC")
    return _LINE.format(entry.index, time, entry.segment[:8], entry.kind, facts).rstrip()


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
