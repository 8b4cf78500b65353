"""docs/backup.md and what the commands take: every file of a home is in a backup, or the page says why not."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from peers.retention import patterns

from wardround_client.cli_backup import TAKE as CLIENT
from wardround_server.cli_backup import TAKE as SERVER

PAGE = (Path(__file__).parents[2] / "docs" / "backup.md").read_text()


def left_out() -> set[str]:
    """Return the globs of the page's table of what a hospital's backup leaves out."""
    table = PAGE.split("| left out |")[1].split("\n\n")[0]
    return {glob for line in table.splitlines()[2:] for glob in re.findall(r"`([^`]+)`", line.split("|")[1])}


def taken(place: str, take: tuple[str, ...]) -> bool:
    example = place.replace("**", "a/b").replace("*", "a")
    return any(fnmatch(example, glob.replace("**/*", "*")) for glob in take) and not example.endswith((".lock", "-wal"))


def test_every_file_of_a_hospital_is_taken_or_the_page_says_why_not() -> None:
    said = left_out()
    for place in patterns("Hospital"):
        is_said = any(fnmatch(place, glob) for glob in said) or place in said
        assert taken(place, CLIENT) is not is_said, place


def test_what_must_die_is_taken_by_no_backup() -> None:
    for secret in ("keys/local.key", "state/sealed/0123456789abcdef-seed-1", "texts.csv", "data/notes.csv"):
        assert not taken(secret, CLIENT)


def test_every_file_of_the_server_is_taken_but_for_status_and_locks() -> None:
    missing = [place for place in patterns("Server") if not taken(place, SERVER)]
    assert missing == [
        "state/server.db-wal",
        "state/server.db-shm",
        "state/status.json",
        "audit/.lock",
        "audit/**/.lock",
    ]


@pytest.mark.parametrize("first", ["approvals/*.json", "state/agreed-*.json", "state/witness-*.json"])
def test_the_ledger_of_a_backup_is_never_older_than_what_was_cosigned_or_approved(first: str) -> None:
    assert CLIENT.index(first) < CLIENT.index("state/ledger.db") < CLIENT.index("state/blobs/*")
    assert CLIENT.index("state/witness-*.json") < CLIENT.index("state/agreed-*.json"), "stored in the other order"
