"""The table at the end: what was learnt, what it cost, and whether the audit trail holds.

Rules.
- Every number comes from `Results`; nothing is computed here except differences of shown rows.
- Every row says live or recorded; for recorded ones a line below the table says command, date, seed
  and commit, numbered where they differ. A row whose data or code has changed has no numbers and
  says how to get them.
- Where the classical baseline wins, one line says so.

    >>> console.print(render(results))
"""

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from wardround_demo.results import Provenance, Results, Row

STALE = "stale: run --all-arms"


def render(results: Results) -> RenderableType:
    """Return the whole closing screen."""
    parts: list[RenderableType] = [_title(results), Text(), _rows(results)]
    parts += [Padding(Text(line, style="dim"), (0, 0, 0, 1)) for line in _remarks(results)]
    parts += [Text(), _facts(results)]
    return Padding(Group(*parts), (1, 2))


def _title(results: Results) -> RenderableType:
    left = Text.assemble(("wardround", "bold cyan"), f" · {results.title}")
    return Group(left, Text(f"{results.data_source}, {results.test_texts:,} held-out texts, seed {results.seed}",
                            style="dim"), Rule(style="dim"))  # fmt: skip


def _rows(results: Results) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 1), header_style="dim")
    table.add_column("", min_width=36)
    for name in _measures(results):
        table.add_column(name, justify="right", min_width=9)
    table.add_column("", style="dim", overflow="fold")
    origins = _origins(results)
    for row in results.rows:
        if results.quick and row.source == "not run":
            continue  # the other arms are for all texts; a quick run has nothing to compare with them
        style = "bold green" if row.arm == "federated" else ("dim" if row.source in ("stale", "not run") else "")
        table.add_row(Text(row.title), *_numbers(row, results), Text(_source(row, origins)), style=style)
    return table


def _measures(results: Results) -> tuple[str, ...]:
    return ("NLL/token",) if _generative(results) else ("accuracy", "macro-F1")


def _numbers(row: Row, results: Results) -> tuple[str, ...]:
    if _generative(results):
        return (f"{row.response_nll:.3f}" if row.response_nll is not None else "–",)
    return tuple(f"{100 * value:.1f}" if value is not None else "–" for value in (row.accuracy, row.macro_f1))


def _generative(results: Results) -> bool:
    return any(row.response_nll is not None for row in results.rows)


def _origins(results: Results) -> list[str]:
    """Return how the recorded rows were made, each way once, in the table's order."""
    made = [_recorded_by(row.provenance) for row in results.rows if row.source == "recorded" and row.provenance]
    return list(dict.fromkeys(made))


def _source(row: Row, origins: list[str]) -> str:
    if row.source == "recorded" and row.provenance is not None:
        number = f" [{origins.index(_recorded_by(row.provenance)) + 1}]" if len(origins) > 1 else ""
        return f"recorded{number}"
    if row.source == "stale":
        return STALE
    return row.source


def _remarks(results: Results) -> list[str]:
    """Return honest one-liners: where the numbers are from, where TF-IDF wins, what a quick run is worth."""
    origins = _origins(results)
    lines = [f"[{i}] {how}" for i, how in enumerate(origins, 1)] if len(origins) > 1 else origins
    if not results.quick and any(row.source == "not run" for row in results.rows):
        lines.append("not run: no recorded row fits this data; ./run demo --all-arms computes every row")
    svc, ours = results.row("tfidf-svc"), results.row("federated")
    if svc and ours and svc.accuracy is not None and ours.accuracy is not None and svc.accuracy > ours.accuracy:
        lines.append(
            f"TF-IDF + linear SVC wins by {100 * (svc.accuracy - ours.accuracy):.1f} points: short phrases suit it, "
            "and it sees all texts in one place, without privacy."
        )
    if results.quick:
        lines.append("quick: few records and rounds, to show that the path works; no number here says what it reaches.")
    return lines


def _recorded_by(provenance: Provenance) -> str:
    return (
        f"recorded {provenance.date[:10]}, seed {provenance.seed}, commit {provenance.commit}: "
        f"{provenance.command} on {provenance.machine}"
    )


def _facts(results: Results) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", min_width=10)
    facts.add_column(overflow="fold")
    for name, text in (
        ("hospitals", _hospitals(results)),
        ("privacy", _privacy(results)),
        ("audit", _audit(results)),
        ("took", _took(results)),
    ):
        facts.add_row(name, text)
    for name, path in results.files.items():
        facts.add_row(name, path)
    return facts


def _hospitals(results: Results) -> Text:
    """Return each hospital's accuracy under its own case mix, the worst one marked."""
    text = Text()
    for hospital in results.hospitals:
        if hospital.accuracy is None:
            continue
        worst = hospital.name == results.worst_hospital
        text.append(f"{hospital.name} {100 * hospital.accuracy:.1f}", style="yellow" if worst else "")
        text.append(" (worst)   " if worst else "   ")
    if text.plain:
        text.append("\nfederated accuracy on the test set, re-weighted to each hospital's case mix", style="dim")
    return text or Text(", ".join(hospital.name for hospital in results.hospitals))


def _privacy(results: Results) -> Text:
    spent = results.privacy
    agree = all(hospital.agree for hospital in results.hospitals)
    text = Text.assemble(
        (f"ε = {spent.epsilon:.3f}", "bold"),
        f" at δ = {spent.delta:g} per {spent.unit} at each hospital; {spent.adjacency}; {spent.accountant}\n",
    )
    if agree:
        text.append("✓ ", style="green")
        text.append("each hospital's ledger and the signed records in the audit trail give the same ε")
    else:
        text.append("✗ ledger and audit trail give different ε: ", style="bold red")
        text.append(
            ", ".join(f"{h.name} {_or_dash(h.epsilon_ledger)} / {_or_dash(h.epsilon_audit)}" for h in results.hospitals)
        )
    return text


_ANSWERS = {
    "intact": "intact",
    "append_only": "only grew since the last visit",
    "witnessed": "cosigned by a quorum",
    "complete": "complete by the hospitals' own heads",
}
_UNKNOWN = {
    "append_only": "whether it only grew shows at the reviewer's next visit",
    "witnessed": "not cosigned by a quorum yet",
    "complete": "whether later entries are missing is not known",
}


def _audit(results: Results) -> Text:
    audit = results.audit
    if audit.accepted:
        answers = (audit.report or {}).get("answers", {})
        known = [said for name, said in _ANSWERS.items() if answers.get(name, {}).get("status") == "yes"]
        unknown = [said for name, said in _UNKNOWN.items() if answers.get(name, {}).get("status") == "unknown"]
        text = Text.assemble(("✓ ", "green"), f"{audit.entries} entries: {', '.join(known)}")
        return text.append(f"\n{'; '.join(unknown)}", style="dim") if unknown else text
    return Text.assemble(("✗ ", "bold red"), f"not accepted (exit code {audit.exit_code}): run {audit.command}")


def _took(results: Results) -> str:
    memory = f", peak memory {results.peak_memory_bytes / 2**30:.1f} GiB" if results.peak_memory_bytes else ""
    longest = max(results.phases, key=lambda phase: phase.seconds)
    return f"{results.seconds:.0f} s ({longest.name}: {longest.seconds:.0f} s){memory}"


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
