"""What the reviewer's commands share: options, opening the inputs, ending with a result.

Rules. With `--json` there is one document, and a failed check is its `error`; without, the error is raised and the root
app shows it. Either way the exit code is the error's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from wardround_common.audit.derive import Progress
from wardround_common.audit.heads import load_heads
from wardround_common.audit.reader import LogFolder, claimed_size
from wardround_common.audit.tiles import TILE_WIDTH
from wardround_common.audit.trust import Trust
from wardround_common.audit.verify import LastSeen, LogReport, verify_log
from wardround_common.errors import ConfigError, WardroundError
from wardround_common.output import Output, progress

PROGRESS_FROM = 20_000
"""Entries; smaller logs are checked before a bar could be read."""

MAX_LAST_SEEN_BYTES = 4_096
"""A last-seen file has about 300 bytes."""

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's audit folder, or a whole copy of it.", show_default=False)
]
TrustFile = Annotated[
    Path, typer.Option("--trust", help="Your trust file: log key, members and quorum.", show_default=False)
]
IdentityFile = Annotated[Path, typer.Option("--identity", help="Your identity file, from keygen.", show_default=False)]
Heads = Annotated[
    list[Path] | None,
    typer.Option("--head", help="A head that a hospital handed to you itself; repeat it.", metavar="FILE"),
]
Statements = Annotated[
    list[Path] | None,
    typer.Option("--statement", help="A hospital's own figure, handed to you by it; repeat it.", metavar="FILE"),
]
LastSeenFile = Annotated[
    Path | None, typer.Option(help="What your last visit saw; beside the trust file unless given.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def error_of(check: Callable[[], None]) -> WardroundError | None:
    """Return the error that `check` raises, if it does."""
    try:
        check()
    except WardroundError as error:
        return error
    return None


def finish(out: Output, document: dict[str, Any], error: WardroundError | None = None) -> None:
    """Print the JSON document, with the error in it; without --json, raise the error."""
    if error and not out.as_json:
        raise error
    shown = {"code": error.code, "message": error.message, "next_step": error.next_step} if error else None
    out.result(document | ({"error": shown} if error else {}))
    if error:
        raise typer.Exit(error.exit_code)


def visit(log: LogFolder, trust: Trust, remembered: Path, heads: Sequence[Path] | None) -> LogReport:
    """Verify a folder against what an earlier visit saw; nothing is remembered here.

    Raises:
        WardroundError: an input of the reviewer's own cannot be used.
    """
    given = load_heads(heads or (), trust)
    with checking(log) as advance:
        return verify_log(log, trust, load_last_seen(remembered), heads=given, progress=advance)


def remembered_beside(trust_file: Path, last_seen: Path | None) -> Path:
    """Return the last-seen file of a trust file."""
    return last_seen or trust_file.with_suffix(".last-seen.json")


def load_last_seen(path: Path) -> LastSeen | None:
    """Return what the last visit saw, None on a first.

    Raises:
        ConfigError: the file is there but cannot be used.
    """
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


@contextmanager
def checking(log: LogFolder) -> Iterator[Progress | None]:
    """Show a bar while a large log is checked."""
    size = size_hint(log)
    if size < PROGRESS_FROM:
        yield None
        return
    with progress("checking entries", size) as advance:
        yield lambda done, total: advance(min(TILE_WIDTH, total))


def size_hint(log: LogFolder) -> int:
    """Return the number of entries that the folder claims, 0 if it claims nothing."""
    try:
        return claimed_size(log.checkpoint())
    except WardroundError:
        return 0  # whoever verifies reports it
