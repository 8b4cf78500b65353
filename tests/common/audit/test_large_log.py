"""A log larger than the machine's memory: every command answers, within it or in one line."""

import os
import resource
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from peers.auditing import NOW, ORIGIN, SITES, STUDY, Scene
from peers.disks import FastFiles

from wardround_common.audit.events import UpdateReceived
from wardround_common.audit.note import add_lines, open_checkpoint, sign_cosignature
from wardround_common.config_text import render_yaml
from wardround_common.documents import canonical_json
from wardround_common.rounds import UPDATE_HEADER_TYPE
from wardround_common.signing import sign_document
from wardround_server.auditsegments import Segments
from wardround_server.audittree import TreeFolder

MB, GB = 1_000_000, 1_000_000_000
RANDOM_BYTES = 30_000  # of an entry; they do not compress, so it comes to 40 kB


def make(home: Path, size: int) -> Scene:
    """Write a log of `size` bytes: few entries, each near the largest that a bundle takes."""
    home.mkdir()
    scene, files = Scene(home), FastFiles()
    tree = TreeFolder(folder=scene.folder, log_key=scene.log_key, origin=ORIGIN, files=files)
    scene.folder.mkdir()
    tree.load(full=False, witnessed=0)
    segments = Segments(keys=scene.folder / "keys", files=files, reviewers=scene.reviewers, random_bytes=os.urandom)
    written = 0
    while written < size:
        batch: list[bytes] = []
        for _ in range(64):
            batch += segments.entries_for(1, now=NOW)
            batch.append(segments.seal(_large(scene, tree.size + len(batch)), now=NOW)[0])
        tree.commit(batch)
        written += sum(map(len, batch))
    head = open_checkpoint(tree.checkpoint, tree.key)
    lines = [sign_cosignature(head, site, key, NOW) for site, key in scene.sites.items()]
    tree.store_cosigned(add_lines(tree.checkpoint, lines), tree.size)
    (home / "trust.yaml").write_text(render_yaml(scene.trust(), header="For a test."))
    (home / "reviewer.key").write_text(f"{scene.reviewer}\n")
    return scene


def _large(scene: Scene, number: int) -> UpdateReceived:
    content = {"round": 1, "site": SITES[0], "study": STUDY, "text": b64encode(os.urandom(RANDOM_BYTES)).decode()}
    header = sign_document(canonical_json(content), UPDATE_HEADER_TYPE, scene.sites[SITES[0]])
    return UpdateReceived(study=STUDY, round=1, site=SITES[0], header=header)


def ask(scene: Scene, memory: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `wardround audit` with at most `memory` bytes of addresses for each of its processes."""
    return subprocess.run(
        [sys.executable, "-m", "wardround_common", "audit", *arguments],
        capture_output=True,
        text=True,
        cwd=scene.home,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
    )


def check(scene: Scene, memory: int) -> None:
    """Ask everything that a reviewer asks."""
    keys = ("--trust", "trust.yaml", "--identity", "reviewer.key")
    verified = ask(scene, memory, "verify", "audit", "--trust", "trust.yaml")
    assert "content intact" in verified.stdout, verified.stderr
    assert "Traceback" not in verified.stderr
    shown = ask(scene, memory, "show", "audit", "--identity", "reviewer.key", "--kind", "segment.open")
    assert shown.returncode == 0, shown.stderr
    assert "segment.open" in shown.stdout
    found = ask(scene, memory, "search", "audit", "round:1", *keys)
    assert found.returncode == 0, found.stderr
    assert "entries; not verified here" in found.stdout.splitlines()[-1]
    exported = ask(scene, memory, "export", "audit", "--format", "csv", "--out", "log.csv", *keys)
    assert exported.returncode == 0, exported.stderr
    assert (scene.home / "log.csv").stat().st_size > 0
    spent = ask(scene, memory, "epsilon", "audit", *keys)
    assert "Traceback" not in spent.stderr
    refused = ask(scene, memory, "report", "audit", "--out", "report.html", *keys)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-2:] == [
        "error: the entries hold more than 100 million characters, too much for one page",
        "next: list fewer of the newest ones with --from; export --format csv takes all",
    ]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_log(tmp_path: Path):
    check(make(tmp_path / "log", 200 * MB), 900 * MB)


@pytest.mark.matrix
@pytest.mark.timeout(7_200)
def test_five_gigabytes_on_a_machine_of_one(tmp_path: Path):
    check(make(tmp_path / "log", 5 * GB), 1 * GB)
