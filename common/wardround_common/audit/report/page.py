"""Builds the report: everything that the template shows, then the page itself.

Rules.
- The page holds its own style, script and data. A content security policy forbids it to load anything.
- It says what it does not show, in words, on the same page.
- Nothing private is in it that the reader's key did not open; `redact` takes out more.
Not done here: the checks (`verify`, `heads`), prices (`epsilon`), the drawing (`timeline`).

    >>> Path("report.html").write_text(build_report(source, report, spent=[]))  # doctest: +SKIP
"""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wardround_common import __version__
from wardround_common.audit.epsilon import Spent, Statement, recompute
from wardround_common.audit.history import ANSWERED, USED, Collector, History, StudyHistory
from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.prover import level_hashes
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.redact import Redact, Redaction, redaction
from wardround_common.audit.report.columns import Columns
from wardround_common.audit.report.timeline import draw
from wardround_common.audit.rows import read_rows
from wardround_common.audit.tiles import TILE_WIDTH
from wardround_common.audit.trust import Trust
from wardround_common.audit.verify import LogReport, utc
from wardround_common.errors import ConfigError
from wardround_common.plain_words import explain
from wardround_common.signing import fingerprint

MAX_ROWS = 200_000
"""A page with more takes over 20 MB, a browser's patience and a small machine's memory; choose a part with --from."""

MAX_CHARACTERS = 100_000_000
"""Different texts of all rows; a study of 50 hospitals and 500 rounds has 10 million. A browser searches them all."""

PROGRESS_EVERY = 1_000

_TOPICS = {
    "Study ": "Study",
    "What leaves": "Leaves a hospital",
    "Audit trail": "Audit trail",
    "Protection ": "Protection",
}
"""How a sentence of `plain_words` begins -> its heading; other sentences begin with theirs and a colon."""

_NAMELESS = frozenset(
    {"Privacy", "Mechanism", "Evaluation", "Collusion", "If one is away", "Leaves a hospital", "Trained"}
)
"""Headings whose sentences hold numbers only."""

MAX_NAMES = 6
"""Hospitals named in an answer; the keys below name all."""

MAX_LISTED = 60
"""Dropouts and findings in a printed table; the search shows all."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a report is made from."""

    folder: LogFolder
    identity: Any  # the reviewer's age identity
    trust: Trust
    statements: Sequence[Statement] = ()
    redact: frozenset[Redact] = frozenset()
    start: int = 0  # first entry that the page lists; ε and history are over all


def build_report(source: Source, report: LogReport, *, now: int, progress: Callable[[int], None] | None = None) -> str:
    """Return the page.

    Args:
        source: the log and the keys.
        report: what `verify_log` found in the same folder.
        now: seconds since 1970, for the page's date.
        progress: called now and then with the number of entries read since the last call.

    Raises:
        ConfigError: too many or too long entries for one page.
        VerificationError: the folder cannot be read.
    """
    if report.size - source.start > MAX_ROWS:
        raise ConfigError(
            "audit-report-too-large",
            f"the log holds {report.size} entries; one page lists at most {MAX_ROWS}",
            next_step=f"list the newest ones only: --from {report.size - MAX_ROWS}; export --format csv takes all",
        )
    history, columns, hidden = _gather(source, progress)
    spent = recompute(history, source.statements)
    context = {
        "version": __version__,
        "made_at": utc(now),
        "report": report,
        "answers": _answers(report, hidden),
        "history": history,
        "span": (utc(history.first_time), utc(history.last_time)),
        "studies": [_study(study, source.trust, spent, hidden) for study in history.studies.values()],
        "gaps": [(hidden.text(gap.what), gap.entries) for gap in history.gaps[:MAX_LISTED]],
        "remarks": [hidden.text(remark) for remark in report.remarks],
        "keys": _keys(source.trust) if not hidden.names else [],
        "redacted": sorted(what.value for what in source.redact),
        "max_listed": MAX_LISTED,
        "start": source.start,
    }
    return _render(context, columns, _proofs(source, report, hidden))


def _gather(source: Source, progress: Callable[[int], None] | None) -> tuple[History, Columns, Redaction]:
    collector, columns = Collector(source.trust), Columns()
    # A study's name is only in its signed text, which a redaction by name takes out of the row as a whole.
    hidden = redaction(set(source.redact), source.trust, [])
    for row in read_rows(source.folder, source.identity, source.trust):
        collector.add(row)
        if row.index >= source.start:
            columns.add(hidden.row(row))
            _require_room(columns)
        if progress and row.index % PROGRESS_EVERY == 0:
            progress(PROGRESS_EVERY)
    history = collector.finish()
    names = [study.name for study in history.studies.values()]
    return history, columns, redaction(set(source.redact), source.trust, names)


def _require_room(columns: Columns) -> None:
    if columns.characters > MAX_CHARACTERS:
        raise ConfigError(
            "audit-report-too-large",
            f"the entries hold more than {MAX_CHARACTERS // 1_000_000} million characters, too much for one page",
            next_step="list fewer of the newest ones with --from; export --format csv takes all",
        )


def _answers(report: LogReport, hidden: Redaction) -> list[dict[str, str]]:
    return [
        {"question": question, "status": answer.status, "text": _fewer_names(hidden.text(answer.text))}
        for question, answer in report.answers.items()
    ]


def _fewer_names(text: str) -> str:
    """Return a sentence that ends in a long list with the list cut."""
    start, colon, names = text.rpartition(": ")
    listed = names.split(", ")
    if not colon or len(listed) <= MAX_NAMES:
        return text
    return f"{start}: {', '.join(listed[:MAX_NAMES])} and {len(listed) - MAX_NAMES} more"


def _study(study: StudyHistory, trust: Trust, spent: Sequence[Spent], hidden: Redaction) -> dict[str, Any]:
    mine = [one for one in spent if one.study == study.digest]
    rounds = [study.rounds[number] for number in sorted(study.rounds)]
    unused = [
        (found.number, hidden.name(site), state, found.dropped.get(site, ("", found.started))[1])
        for found in rounds
        for site, state in found.states.items()
        if state not in (USED, ANSWERED)
    ]
    return {
        "name": hidden.name(study.name),
        "digest": study.digest,
        "agreed": study.study,
        "sentences": _sentences(study, hidden),
        "approved": [(hidden.name(site), index) for site, index in study.approved.items()],
        "members": len(study.study.cohort.members) if study.study else len(trust.members),
        "rounds": rounds,
        "aggregated": sum(found.outcome == "aggregated" for found in rounds),
        "failed": [found for found in rounds if found.outcome.startswith("failed")],
        "evaluated": [(found.number, str(found.evaluated)) for found in rounds if found.evaluated],
        "unused": unused,
        "released": study.released,
        "released_round": study.released_round,
        "adapter": study.adapter,
        "provenance": study.provenance,
        "spent": [_bar(one, mine, hidden) for one in mine],
        "price": next((one.price for one in mine if one.price), None),
        "stated": any(one.stated for one in mine),
        "timeline": draw(_renamed(study, hidden)),
    }


def _sentences(study: StudyHistory, hidden: Redaction) -> list[tuple[str, str]]:
    """Return the study in plain words, as (topic, sentence); with redacted names only those about numbers."""
    if study.study is None:
        return []
    found = [_topic(sentence) for sentence in explain(study.study)]
    return [(topic, text) for topic, text in found if not hidden.names or topic in _NAMELESS]


def _topic(sentence: str) -> tuple[str, str]:
    """Return ("Privacy", "The whole plan …") for "Privacy: the whole plan …"."""
    if " may vanish" in sentence.partition(":")[0]:  # "No hospital …" or "2 of the 5 hospitals …"
        return "If one is away", sentence
    for start, topic in _TOPICS.items():
        if sentence.startswith(start):
            text = sentence if topic == "Study" else sentence.partition(": ")[2]
            return topic, text[:1].upper() + text[1:]
    topic, _, text = sentence.partition(": ")
    return topic, text if topic == "Members" else text[:1].upper() + text[1:]  # a hospital keeps its name


def _bar(one: Spent, all_: Sequence[Spent], hidden: Redaction) -> dict[str, Any]:
    """Return one hospital's line; widths in percent of the largest figure on the chart."""
    epsilon = one.price.epsilon if one.price else 0.0
    scale = 1.08 * max([other.price.epsilon if other.price else 0.0 for other in all_] + [one.plan or 0.0, 1e-9])
    return {
        "site": hidden.name(one.site),
        "rounds": one.rounds,
        "epsilon": epsilon,
        "width": round(100 * epsilon / scale, 2),
        "plan": one.plan,
        "plan_at": round(100 * (one.plan or 0.0) / scale, 2),
        "over": one.plan is not None and epsilon > one.plan,
        "stated": one.stated,
        "equal": one.equal,
        "problem": hidden.text(one.problem),
    }


def _renamed(study: StudyHistory, hidden: Redaction) -> StudyHistory:
    """Return the study's rounds with the names that may be shown."""
    if not hidden.names:
        return study
    shown = StudyHistory(digest=study.digest)
    for number, found in study.rounds.items():
        copy = type(found)(number=number, started=found.started, outcome=found.outcome)
        copy.cohort = tuple(hidden.name(site) for site in found.cohort)
        copy.survivors = tuple(hidden.name(site) for site in found.survivors)
        copy.received = {hidden.name(site): index for site, index in found.received.items()}
        copy.dropped = {hidden.name(site): why for site, why in found.dropped.items()}
        shown.rounds[number] = copy
    return shown


def _keys(trust: Trust) -> list[tuple[str, str]]:
    return [("operator", fingerprint(trust.operator)), *((s, fingerprint(k)) for s, k in trust.members.items())]


def _proofs(source: Source, report: LogReport, hidden: Redaction) -> dict[str, Any]:
    """Return what the page needs to prove any row: leaf hashes, roots of full tiles, checkpoints, keys."""
    folder, trust = source.folder, source.trust
    leaves = level_hashes(folder.tile, 0, report.size)
    roots = level_hashes(folder.tile, 1, report.size // TILE_WIDTH)
    notes = [note for note in (folder.cosigned() if report.cosigned_size else "", folder.checkpoint()) if note]
    heads = []
    for note in notes:
        head = open_checkpoint(note, trust.log_key())
        heads.append({"size": head.size, "root": base64.b64encode(head.root).decode(), "note": hidden.note(note)})
    return {
        "leaves": base64.b64encode(leaves).decode(),
        "tiles": base64.b64encode(roots).decode(),
        "heads": heads,
        "start": source.start,
        "keys": {} if hidden.names else {"log": trust.log, "members": dict(trust.members)},
        "quorum": trust.quorum,
    }


def _render(context: dict[str, Any], columns: Columns, proofs: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("wardround_common.audit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clock"] = lambda time: utc(time).removesuffix(" UTC")
    here = files("wardround_common.audit.report")
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return environment.get_template("report.html.j2").render(
        **context,
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=columns.packed(),
        # In an attribute-free <script type="application/json">; "<" could end it, so there is none.
        proofs=Markup(json.dumps(proofs, separators=(",", ":")).replace("<", "\\u003c")),  # noqa: S704
    )
