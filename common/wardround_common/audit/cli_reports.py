"""`wardround audit search, epsilon, report, export`: what the entries say."""

import time
from pathlib import Path
from typing import Annotated

import typer

from wardround_common.audit.cli_options import (
    AsJson,
    Folder,
    Heads,
    IdentityFile,
    LastSeenFile,
    Statements,
    TrustFile,
    error_of,
    finish,
    remembered_beside,
    size_hint,
    visit,
)
from wardround_common.audit.epsilon import Spent, load_statements, recompute, require_equal
from wardround_common.audit.exports import Export, ExportSource, Format
from wardround_common.audit.history import collect
from wardround_common.audit.reader import LogFolder, load_identity
from wardround_common.audit.redact import Redact
from wardround_common.audit.report.columns import lines
from wardround_common.audit.report.page import Source, build_report
from wardround_common.audit.rows import Row, read_rows
from wardround_common.audit.search import matches
from wardround_common.audit.trust import load_trust
from wardround_common.audit.verify import utc
from wardround_common.files import write_new
from wardround_common.output import Output, progress

Redactions = Annotated[list[Redact] | None, typer.Option("--redact", help="Take something out of the file; repeat it.")]


def search(
    folder: Folder,
    query: Annotated[list[str], typer.Argument(help="Words; also kind:, site:, round:, study:, segment:, an index.")],
    trust_file: TrustFile,
    identity: IdentityFile,
    as_json: AsJson = False,
) -> None:
    """Find entries by what they say. All words must match; does not verify the folder: see verify.

    Example: wardround audit search /mnt/copy/audit kind:client.dropped site:st-elsewhere --trust trust.yaml
    --identity reviewer.key
    """
    rows = read_rows(LogFolder(folder), load_identity(identity), load_trust(trust_file))
    wanted = " ".join(query)
    out, found, count = Output(as_json=as_json), [], 0
    for row in rows:
        if matches(row, wanted):
            count += 1
            out.say(_line(row))
            if as_json:
                found.append(row.as_json())
    out.say(f"{count} entries; not verified here: run wardround audit verify")
    out.result({"query": wanted, "entries": found})


def epsilon(
    folder: Folder,
    trust_file: TrustFile,
    identity: IdentityFile,
    statement: Statements = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every hospital's ε of each study from its signed mechanism records, and compare with its own figure.

    Exit 1 when a figure cannot be recomputed or a hospital's own one differs by more than 1e-9.

    Example: wardround audit epsilon /mnt/copy/audit --trust trust.yaml --identity reviewer.key
    --statement north.statement.json
    """
    trust = load_trust(trust_file)
    statements = load_statements(statement or (), trust)
    history = collect(read_rows(LogFolder(folder), load_identity(identity), trust), trust)
    spent = recompute(history, statements)
    out = Output(as_json=as_json)
    _print_spent(out, spent)
    for gap in history.gaps:
        out.say(f"remark: {gap.what}")
    finish(out, {"spent": [one.as_json() for one in spent]}, error_of(lambda: require_equal(spent)))


def report(
    folder: Folder,
    trust_file: TrustFile,
    identity: IdentityFile,
    out: Annotated[Path, typer.Option(help="New HTML file.", metavar="FILE")] = Path("audit-report.html"),
    head: Heads = None,
    statement: Statements = None,
    redact: Redactions = None,
    start: Annotated[int, typer.Option("--from", help="List entries from this one on.", min=0)] = 0,
    last_seen: LastSeenFile = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML file that answers a reviewer's questions offline: studies, ε, rounds, gaps, search, proofs.

    It is decrypted here with your key and can be read by whoever gets it; --redact takes names or details out.

    Example: wardround audit report /mnt/copy/audit --trust trust.yaml --identity reviewer.key --out report.html
    """
    trust, log = load_trust(trust_file), LogFolder(folder)
    source = Source(
        folder=log,
        identity=load_identity(identity),
        trust=trust,
        statements=load_statements(statement or (), trust),
        redact=frozenset(redact or ()),
        start=start,
    )
    found = visit(log, trust, remembered_beside(trust_file, last_seen), head)
    with progress("reading entries", size_hint(log)) as advance:
        page = build_report(source, found, now=int(time.time()), progress=lambda steps: advance(steps))
    write_new(out, page.encode())
    shown = Output(as_json=as_json)
    for question, answer in found.answers.items():
        shown.say(f"{question}: {answer.status}")
    shown.say(f"wrote {out}: {found.size} entries, {len(page.encode()) / 1e6:.1f} MB, opens without a network")
    shown.result({"file": str(out), "entries": found.size, "redacted": sorted(r.value for r in source.redact)})


def export(
    folder: Folder,
    trust_file: TrustFile,
    identity: IdentityFile,
    format_: Annotated[Format, typer.Option("--format", help="What to write.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New file.", metavar="FILE", show_default=False)],
    redact: Redactions = None,
    as_json: AsJson = False,
) -> None:
    """Write the entries, each with index and proof, in a format that other programs read.

    Example: wardround audit export audit --trust trust.yaml --identity reviewer.key --format csv --out log.csv
    """
    trust, log = load_trust(trust_file), LogFolder(folder)
    source = ExportSource(folder=log, identity=load_identity(identity), trust=trust, redact=frozenset(redact or ()))
    with progress("reading entries", size_hint(log)):
        written = Export(source).write(format_, out)
    shown = Output(as_json=as_json)
    shown.say(f"wrote {out}: {written} entries as {format_.value}; not verified here: run wardround audit verify")
    shown.result({"file": str(out), "format": format_.value, "entries": written})


def _line(row: Row) -> str:
    facts = "; ".join(lines(row))
    where = " ".join(text for text in (f"round {row.round}" if row.round else "", row.site) if text)
    return f"{row.index:>6}  {utc(row.time).removesuffix(' UTC')}  {row.kind:16}  {where:28}  {facts[:160]}".rstrip()


def _print_spent(out: Output, spent: list[Spent]) -> None:
    columns = ["study", "hospital", "rounds", "ε by the log", "plan", "its own figure", "equal within 1e-9"]
    words = {None: "not given", True: "yes", False: "NO"}
    rows = [
        [
            one.name,
            one.site,
            str(one.rounds),
            one.problem or (f"{one.price.epsilon:.4f}" if one.price else "0 (nothing ran)"),
            f"{one.plan:g}" if one.plan is not None else "",
            f"{one.stated.epsilon:.4f} over {one.stated.rounds} rounds" if one.stated else "",
            words[one.equal],
        ]
        for one in spent
    ]
    out.table(columns, rows)
    for price in {one.study: one.price for one in spent if one.price}.values():
        out.say(
            f"ε at δ = {price.delta:g} per {price.unit} at one hospital; neighbours by {price.adjacency}; "
            f"{price.accountant}"
        )
    out.say("what other studies spent is in each hospital's own ledger; not verified here: run wardround audit verify")


COMMANDS = (search, epsilon, report, export)
