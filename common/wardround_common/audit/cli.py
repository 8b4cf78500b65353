"""`wardround audit`: the reviewer's commands, keys and checks here. Needs neither torch, flwr nor grpc.

Rules.
- Commands print their result through `Output` and raise WardroundError; the root app renders errors.
- With `--json` there is one document; a failed check is its `error`, and the exit code is 1.
- Secrets are never printed.
Not done here: the checks (`verify`) and decryption (`reader`).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pyrage
import typer

from wardround_common.audit import cli_evidence, cli_reports, cli_segments
from wardround_common.audit.cli_options import (
    AsJson,
    Folder,
    Heads,
    IdentityFile,
    LastSeenFile,
    TrustFile,
    error_of,
    finish,
    remembered_beside,
    visit,
)
from wardround_common.audit.reader import LogEntry, LogFolder, claimed_size, load_identity, read_entries
from wardround_common.audit.seal import unreadable
from wardround_common.audit.trust import Trust, load_trust
from wardround_common.audit.verify import LastSeen, LogReport, utc
from wardround_common.config_text import render_yaml
from wardround_common.errors import ConfigError, StorageError
from wardround_common.files import write_new
from wardround_common.output import Output
from wardround_common.signing import Envelope, fingerprint
from wardround_common.study import open_cosigned

audit_app = typer.Typer(
    name="audit",
    help="Check and read a study's audit trail, offline.",
    no_args_is_help=True,
    add_completion=False,
)
for command in (*cli_evidence.COMMANDS, *cli_reports.COMMANDS, *cli_segments.COMMANDS):
    audit_app.command()(command)

EXIT_CODES = (16, 32, 64, 128)
"""What a "no" to content, append-only, witnessed and complete adds to the exit code of `verify`; sums tell them apart,
and no sum is one of the root app's codes."""

_LINE = "{:>6}  {:19}  {:8}  {:16}  {}"
_MARKS = {"yes": "yes", "no": "NO", "unknown": "unknown"}


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
    header = "Compare every fingerprint by telephone before you rely on this."
    write_new(out, render_yaml(found, header=header).encode())
    prints = {name: fingerprint(key) for name, key in {"operator": operator, **found.members}.items()}
    shown = Output(as_json=as_json)
    shown.say(f"wrote {out}; compare by telephone:")
    shown.table(["who", "fingerprint"], [[name, text] for name, text in prints.items()])
    shown.result({"file": str(out), "fingerprints": prints})


@audit_app.command()
def verify(
    folder: Folder,
    trust_file: TrustFile,
    head: Heads = None,
    last_seen: LastSeenFile = None,
    allow_unwitnessed: Annotated[
        bool,
        typer.Option(
            "--allow-unwitnessed",
            help="Accept a log that no hospital has cosigned at all (stopped before its first round).",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check that an audit trail is intact, only grew, was seen by a quorum of hospitals, and up to when it is complete.

    Four separate answers, each yes, no or unknown. The exit code is 0, or the sum of what is answered no: 16 content,
    32 append-only, 64 seen by a quorum, 128 complete. What it saw is remembered for the next visit.

    Example: wardround audit verify /mnt/copy/audit --trust trust.yaml --head north.head --head south.head
    """
    remembered = remembered_beside(trust_file, last_seen)
    report = visit(LogFolder(folder), load_trust(trust_file), remembered, head)
    out = Output(as_json=as_json)
    _print_report(out, report)
    if report.last_seen:
        _store_last_seen(remembered, report.last_seen)
    error = error_of(lambda: report.require(allow_unwitnessed=allow_unwitnessed))
    if error:
        noes = (answer.status == "no" for answer in report.answers.values())
        error.exit_code = sum(code for code, no in zip(EXIT_CODES, noes, strict=True) if no)
    finish(out, _report_json(report), error)


@audit_app.command()
def show(
    folder: Folder,
    identity: IdentityFile,
    kind: Annotated[str | None, typer.Option(help="Only this kind of entry, e.g. dp.spent.")] = None,
    site: Annotated[str | None, typer.Option(help="Only entries about this hospital.")] = None,
    as_json: AsJson = False,
) -> None:
    """List an audit trail's entries, decrypted with your key. Does not verify them: see verify.

    Times are the server's claim. Exit 1 when an entry cannot be read.

    Example: wardround audit show /mnt/copy/audit --identity reviewer.key --kind dp.spent --site st-elsewhere
    """
    log = LogFolder(folder)
    out, listing = Output(as_json=as_json), _Listing(cosigned=claimed_size(log.cosigned()))
    out.say(_LINE.format("index", "time (claimed, UTC)", "segment", "kind", "facts"))
    for entry in read_entries(log, load_identity(identity)):
        listing.count(entry)
        if (kind is None or entry.kind == kind) and (site is None or _about(entry, site)):
            listing.show(entry, out)
    listing.close(out)
    document = {"size": listing.size, "cosigned": listing.cosigned, "entries": listing.json}
    finish(out, document, error_of(listing.require_readable))


@dataclass(kw_only=True)
class _Listing:
    """What `show` has seen so far; entries are printed as they come and kept only for --json."""

    cosigned: int
    size: int = 0
    shown: int = 0
    marked: bool = False  # the line between cosigned and later entries was printed
    segments: set[str] = field(default_factory=set)
    sealed: dict[str, str] = field(default_factory=dict)  # segment -> why
    unreadable: int = 0
    first_unreadable: str = ""
    json: list[dict[str, Any]] = field(default_factory=list)

    def count(self, entry: LogEntry) -> None:
        """Take the next entry of the log."""
        self.size += 1
        if entry.kind == "segment.open":
            self.segments.add(entry.segment)
        elif entry.kind == "sealed":
            self.sealed[entry.segment] = entry.problem
        elif entry.kind == "unreadable":
            self.unreadable += 1
            self.first_unreadable = self.first_unreadable or f"entry {entry.index}: {entry.problem}"

    def show(self, entry: LogEntry, out: Output) -> None:
        """Print an entry that was asked for."""
        if self.cosigned and entry.index >= self.cosigned and not self.marked:
            self.marked = True
            out.say("------  not yet cosigned from here on  ------")
        self.shown += 1
        if out.as_json:
            self.json.append(_entry_json(entry))
        else:
            out.say(_line(entry))

    def close(self, out: Output) -> None:
        """Print what the lines come to."""
        marker = f"cosigned up to entry {self.cosigned - 1}" if self.cosigned else "nothing cosigned yet"
        out.say(f"{self.shown} of {self.size} entries shown; {marker}")
        out.say("not verified here: run wardround audit verify")

    def require_readable(self) -> None:
        """Raise when no segment could be opened, or an entry did not decrypt.

        Raises:
            ConfigError: nothing could be read.
            VerificationError: an entry could not.
        """
        if self.sealed and set(self.sealed) == self.segments:
            raise ConfigError(
                "audit-nothing-readable",
                f"none of the log's {len(self.segments)} segments can be read: {next(iter(self.sealed.values()))}",
                next_step="use the identity whose recipient the operator was given; `verify` finds missing key files",
            )
        if self.unreadable:
            raise unreadable(f"{self.first_unreadable} ({self.unreadable} in all)")


# -- verify


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
        "attested_until": report.attested_until,
        "complete_until": report.complete_until,
        "answers": {
            name: {"status": answer.status, "text": answer.text, "code": answer.error.code if answer.error else None}
            for name, answer in zip(names, report.answers.values(), strict=True)
        },
        "remarks": report.remarks,
    }


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
