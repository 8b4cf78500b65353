"""`wardround audit rewrap, shred, acknowledge`: what a reviewer asks the operator to log about segments.

Rules. Each writes a request file; the operator hands it in with `wardround server audit submit`, and it counts once
it is in the log. Only rewrap and acknowledge need a secret of the reviewer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_common.audit.cli_options import AsJson, Folder, IdentityFile, TrustFile
from wardround_common.audit.framing import Segment, SegmentOpen, ShredReason
from wardround_common.audit.reader import LogFolder, claimed_size, keyed_entries, open_keyed, read_segments
from wardround_common.audit.reader import load_identity as load_age_identity
from wardround_common.audit.requests import Acknowledgement, RewrapRequest, ShredRequest, sign_acknowledgement
from wardround_common.audit.segment import rewrap_seed, unwrap_seed, wrap_name
from wardround_common.audit.trust import load_trust
from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError, VerificationError
from wardround_common.files import write_new
from wardround_common.identity.keys import load_identity_key
from wardround_common.output import Output

SegmentOption = Annotated[
    str | None, typer.Option(help="Only this segment (16 hex digits).", metavar="SEGMENT", show_default=False)
]
OutFolder = Annotated[Path, typer.Option(help="Folder for the request files.", metavar="FOLDER")]
"""One file a segment."""


def rewrap(
    folder: Folder,
    trust_file: TrustFile,
    identity: IdentityFile,
    to: Annotated[
        list[str], typer.Option("--to", help="Age recipient that can read from now on; repeat it.", metavar="AGE1…")
    ],
    segment: SegmentOption = None,
    out: OutFolder = Path("requests"),
    as_json: AsJson = False,
) -> None:
    """Wrap segment keys again, for new reviewers: writes a request for the operator for every segment you can open.

    List every reviewer who is to read, yourself too. Old key files stay until the segment is shredded.

    Example: wardround audit rewrap /mnt/copy/audit --trust trust.yaml --identity reviewer.key --to age1… --to age1…
    """
    log, trust = LogFolder(folder), load_trust(trust_file)
    age = load_age_identity(identity)
    made = []
    for name, found in _chosen(log, segment):
        wrap, digest = _openable(log, name, found, age)
        if wrap is None:
            continue
        assert isinstance(found.opened.record, SegmentOpen)
        again, record = rewrap_seed(wrap, found.opened.record, age, to, digest=digest)
        request = RewrapRequest(log=trust.log, segment=name, wrap=again, record=record)
        write_new(out / f"{name}.rewrap.json", request.to_bytes())
        made.append(name)
    _require_some(made, "your identity opens none of the segments")
    _say(Output(as_json=as_json), "rewrap", made, out)


def shred(
    folder: Folder,
    trust_file: TrustFile,
    segment: Annotated[str, typer.Option(help="The segment (16 hex digits).", metavar="SEGMENT", show_default=False)],
    reason: Annotated[
        str, typer.Option(help="retention-ended, erasure-request or key-compromised.", show_default=False)
    ],
    out: OutFolder = Path("requests"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask for a segment's key files to be deleted for good; writes the request for the operator.

    The tree stays and still verifies; what the segment says is lost for everybody who kept no copy of the key file.

    Example: wardround audit shred audit --trust trust.yaml --segment 9f0c61d2a47be835 --reason retention-ended
    """
    trust = load_trust(trust_file)
    ((name, found),) = _chosen(LogFolder(folder), segment)
    if found.shredded:
        raise ConfigError("segment-shredded", f"segment {name} is shredded already", next_step="nothing is left to do")
    if not yes and not typer.confirm(f"Nobody will be able to read segment {name} again. Ask for it?"):
        raise typer.Abort
    request = ShredRequest(log=trust.log, segment=name, reason=_reason(reason))
    write_new(out / f"{name}.shred.json", request.to_bytes())
    _say(Output(as_json=as_json), "shred", [name], out)


def acknowledge(
    folder: Folder,
    trust_file: TrustFile,
    identity: IdentityFile,
    key: Annotated[
        Path, typer.Option("--key", help="Your signing key, whose public half is in the study.", show_default=False)
    ],
    name: Annotated[str, typer.Option("--name", help="Your name in the study.", show_default=False)],
    segment: SegmentOption = None,
    out: OutFolder = Path("requests"),
    as_json: AsJson = False,
) -> None:
    """Open every entry of a segment and sign that all of them can be read; writes the statement for the operator.

    Without --segment: every segment that your identity opens. An entry that cannot be read ends it with exit 1.

    Example: wardround audit acknowledge /mnt/copy/audit --trust trust.yaml --identity reviewer.key --key reviewer.pem
    --name board
    """
    log, trust = LogFolder(folder), load_trust(trust_file)
    age, signing = load_age_identity(identity), load_identity_key(key)
    wanted = dict(_chosen(log, segment))
    made = []
    for found, opened, entries in _read_whole(log, age, wanted):
        said = Acknowledgement(log=trust.log, segment=found, opened=opened, entries=entries, reviewer=name)
        write_new(out / f"{found}.acknowledgement.json", sign_acknowledgement(said, signing).to_bytes())
        made.append(found)
    _require_some(made, "your identity opens none of the segments")
    _say(Output(as_json=as_json), "acknowledgement", made, out)


def _chosen(log: LogFolder, segment: str | None) -> list[tuple[str, Segment]]:
    found = read_segments(log, claimed_size(log.checkpoint()))
    if segment is None:
        return [(name, one) for name, one in found.items() if not one.shredded]
    if segment not in found:
        raise ConfigError(
            "segment-unknown",
            f"the log has no segment {segment}",
            next_step="`wardround audit search kind:segment.open` lists them",
        )
    return [(segment, found[segment])]


def _openable(log: LogFolder, name: str, segment: Segment, identity: Any) -> tuple[bytes | None, str]:
    """Return (age file, its digest) that the identity opens, or (None, '')."""
    assert isinstance(segment.opened.record, SegmentOpen)
    for digest in reversed(segment.wraps):
        wrap = log.wrap(wrap_name(name, segment.opened.record, digest))
        if wrap is None:
            continue
        try:
            unwrap_seed(wrap, segment.opened.record, identity, digest=digest)
        except VerificationError as error:
            if error.code != "audit-identity-wrong":
                raise
            continue
        return wrap, digest
    return None, ""


def _read_whole(log: LogFolder, identity: Any, wanted: dict[str, Segment]) -> Iterator[tuple[str, str, int]]:
    """Yield (segment, digest of its segment.open, entries) of every wanted segment that the identity opens whole."""
    current, opened, entries, sealed = "", "", 0, False
    for keyed in keyed_entries(log, identity):
        entry = open_keyed(keyed)
        if entry.kind == "segment.open":
            if current in wanted and not sealed:
                yield current, opened, entries
            current, opened, entries, sealed = entry.segment, sha256_digest(keyed.data), 0, False
        elif entry.kind == "sealed":
            sealed = True
        elif entry.kind == "unreadable" and entry.segment in wanted:
            raise VerificationError(
                "log-entry-unreadable",
                f"an audit entry cannot be read: entry {entry.index}: {entry.problem}",
                next_step="do not acknowledge; keep the log and tell the hospitals and the operator",
            )
        elif not entry.kind.startswith("segment."):
            entries += 1
    if current in wanted and not sealed:
        yield current, opened, entries


def _reason(text: str) -> ShredReason:
    reasons: dict[str, ShredReason] = {
        "retention-ended": "retention-ended",
        "erasure-request": "erasure-request",
        "key-compromised": "key-compromised",
    }
    if text not in reasons:
        raise ConfigError(
            "shred-reason-unknown", f"{text} is no reason to shred", next_step=f"use one of {', '.join(reasons)}"
        )
    return reasons[text]


def _require_some(made: list[str], why: str) -> None:
    if not made:
        raise ConfigError(
            "segment-none-opened", f"nothing was written: {why}", next_step="use the identity of a reviewer of this log"
        )


def _say(out: Output, what: str, segments: list[str], folder: Path) -> None:
    out.say(f"wrote {len(segments)} {what} request{'s' if len(segments) != 1 else ''} in {folder}")
    out.say("next: the operator hands them in: wardround server audit submit FILE...")
    out.result({"segments": segments, "folder": str(folder), "request": what})


COMMANDS = (rewrap, shred, acknowledge)
