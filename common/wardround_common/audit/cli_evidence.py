"""`wardround audit receipt, check, diff, bundle`: evidence to hand on, and to compare."""

from pathlib import Path
from typing import Annotated

import typer

from wardround_common.audit.bundle import make_bundle
from wardround_common.audit.cli_options import (
    AsJson,
    Folder,
    Heads,
    LastSeenFile,
    Statements,
    TrustFile,
    error_of,
    finish,
    remembered_beside,
    visit,
)
from wardround_common.audit.diff import compare
from wardround_common.audit.epsilon import load_statements
from wardround_common.audit.framing import parse_entry
from wardround_common.audit.proof import MAX_PROOF_CHARS
from wardround_common.audit.reader import LogEntry, LogFolder, load_identity
from wardround_common.audit.receipt import Proven, Receipt, make_receipt, open_receipt
from wardround_common.audit.report.columns import lines
from wardround_common.audit.rows import row_of
from wardround_common.audit.tiles import MAX_ENTRY_BYTES
from wardround_common.audit.trust import Trust, load_trust
from wardround_common.audit.verify import utc
from wardround_common.errors import ConfigError
from wardround_common.files import write_new
from wardround_common.output import Output, progress

_KEY_CHARS = 65  # 64 hex digits and a line end


def receipt(
    folder: Folder,
    index: Annotated[int, typer.Argument(help="The entry's index.", min=0, show_default=False)],
    trust_file: TrustFile,
    out: Annotated[
        Path, typer.Option(help="Begin of the new files' names: OUT.tlog-proof, OUT.entry, OUT.key.", metavar="OUT")
    ],
    disclose: Annotated[
        Path | None,
        typer.Option(
            "--disclose",
            help="Your identity file: write the entry's own key too, which opens this entry and no other.",
            metavar="IDENTITY",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one entry's receipt: a C2SP tlog-proof and the entry's bytes, to hand to anybody.

    Example: wardround audit receipt /mnt/copy/audit 42 --trust trust.yaml --out entry-42
    """
    identity = load_identity(disclose) if disclose else None
    made = make_receipt(LogFolder(folder), index, load_trust(trust_file), identity)
    files = {".tlog-proof": made.proof.encode(), ".entry": made.entry}
    if made.key:
        files[".key"] = made.key.hex().encode() + b"\n"
    for suffix, data in files.items():
        write_new(out.with_name(out.name + suffix), data)
    shown = Output(as_json=as_json)
    names = [out.name + suffix for suffix in files]
    shown.say(f"wrote {', '.join(names)} for entry {index}")
    shown.say("whoever gets them checks them with: wardround audit check OUT --trust trust.yaml")
    shown.result({"index": index, "files": names})


def check(
    receipt_name: Annotated[
        Path, typer.Argument(metavar="OUT", help="The begin of the receipt's file names.", show_default=False)
    ],
    trust_file: TrustFile,
    as_json: AsJson = False,
) -> None:
    """Check a receipt: the entry is in a log that a quorum of hospitals cosigned; with its key, what it says.

    Example: wardround audit check entry-42 --trust trust.yaml
    """
    proof = _read(receipt_name, ".tlog-proof", MAX_PROOF_CHARS).decode(errors="replace")
    entry = _read(receipt_name, ".entry", MAX_ENTRY_BYTES)
    key = _key(receipt_name)
    trust = load_trust(trust_file)
    proven = open_receipt(Receipt(proof=proof, entry=entry, key=key), trust)
    parsed = parse_entry(entry)
    out = Output(as_json=as_json)
    out.say(f"entry {proven.index} is in the log, cosigned by a quorum; its claimed time is {utc(parsed.time)}")
    event = proven.event.model_dump(mode="json") if proven.event else None
    out.say("its content is sealed: no .key file" if event is None else "it says:")
    for line in _said(proven, trust):
        out.say(f"  {line}")
    out.result({"index": proven.index, "time": parsed.time, "segment": parsed.segment, "event": event})


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="One copy of the audit folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another copy of it.", show_default=False)],
    trust_file: TrustFile,
    as_json: AsJson = False,
) -> None:
    """Compare two copies of one log: the same, one the beginning of the other, or two histories (exit 1).

    Example: wardround audit diff monday/audit tuesday/audit --trust trust.yaml
    """
    found = compare(LogFolder(a), LogFolder(b), load_trust(trust_file))
    out = Output(as_json=as_json)
    out.say(f"{found.relation}: A has {found.sizes[0]} entries, B has {found.sizes[1]}")
    if found.first is not None and found.relation != "two histories":
        out.say(f"entries from {found.first} on are in one copy only")
    out.say(f"cosigned: {found.cosigned[0]} entries in A, {found.cosigned[1]} in B")
    for name, files in zip("AB", found.key_files, strict=True):
        for file in files:
            out.say(f"key file only so in {name}: {file}")
    finish(out, found.as_json(), error_of(found.require_one_history))


def bundle(
    folder: Folder,
    target: Annotated[Path, typer.Argument(metavar="BUNDLE", help="New folder to write.", show_default=False)],
    trust_file: TrustFile,
    head: Heads = None,
    statement: Statements = None,
    last_seen: LastSeenFile = None,
    as_json: AsJson = False,
) -> None:
    """Copy a log that verifies into a folder with everything to check it again, without a network.

    Example: wardround audit bundle /mnt/copy/audit agency-bundle --trust trust.yaml --head north.head
    """
    trust = load_trust(trust_file)
    remembered = remembered_beside(trust_file, last_seen)
    visit(LogFolder(folder), trust, remembered, head).require()
    load_statements(statement or (), trust)
    with progress("copying the log"):
        paths = make_bundle(folder, target, trust, heads=head or (), statements=statement or ())
    visit(LogFolder(target / "audit"), trust, remembered, head).require()
    out = Output(as_json=as_json)
    out.say(f"wrote {target}: {len(paths)} files; the copy verifies; README.txt says how to check it")
    out.result({"bundle": str(target), "files": len(paths)})


def _said(proven: Proven, trust: Trust) -> list[str]:
    """Return what a disclosed entry says, one fact a line, and whether its signature holds."""
    if proven.event is None:
        return []
    kind = proven.event.kind
    row = row_of(LogEntry(index=proven.index, time=0, segment="", kind=kind, event=proven.event), trust)
    about = {"kind": kind, "study": row.study, "round": row.round, "site": row.site, "signature": row.signature}
    return [*(f"{name}: {value}" for name, value in about.items() if value), *lines(row)]


def _read(name: Path, suffix: str, limit: int) -> bytes:
    path = name.with_name(name.name + suffix)
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigError(
            "receipt-unreadable",
            f"cannot read {path}: {error.strerror}",
            next_step="give the name without .tlog-proof; .tlog-proof and .entry must lie beside each other",
        ) from None


def _key(name: Path) -> bytes | None:
    path = name.with_name(name.name + ".key")
    if not path.exists():
        return None
    try:
        return bytes.fromhex(_read(name, ".key", _KEY_CHARS).decode())
    except ValueError:
        raise ConfigError(
            "receipt-key-malformed",
            f"{path} holds no message key",
            next_step="give the file as `wardround audit receipt --disclose` wrote it, or remove it",
        ) from None


COMMANDS = (receipt, check, diff, bundle)
