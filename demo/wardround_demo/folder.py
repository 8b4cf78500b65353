"""Where the demo's files lie: one folder that looks like four machines, a reviewer's and a shared disk.

    OUT/server/                  the operator's home
    OUT/hospitals/<name>/        a hospital's home
    OUT/people/<name>.key        the hospital's responsible person: outside the daemon's home
    OUT/reviewer/                the reviewer's age identity, trust.yaml, and what hospitals handed over themselves
    OUT/invites/<name>.json      handed over out of band
    OUT/data/                    public texts (`dataset`)
    OUT/release/                 the adapter, in PEFT's layout
    OUT/logs/                    one file per process
    OUT/results.json             everything in the table

Rules. `prepare` replaces a folder only if it carries our marker, so `--out` can never delete a
folder that the demo did not make.

    >>> prepare(Path("demo-out")).server
    PosixPath('demo-out/server')
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from wardround_demo.processes import DemoError
from wardround_demo.settings import STUDY_NAME

MARKER = ".wardround-demo"
"""File that says: made by `./run demo`, may be replaced by the next one."""


@dataclass(frozen=True)
class Folder:
    """Paths below OUT. Only paths; nothing is opened."""

    root: Path

    @property
    def server(self) -> Path:
        """Home of the aggregation server."""
        return self.root / "server"

    @property
    def audit(self) -> Path:
        """The audit trail."""
        return self.server / "audit"

    @property
    def server_status(self) -> Path:
        """What the server is doing now."""
        return self.server / "state" / "status.json"

    @property
    def identity(self) -> Path:
        """The reviewer's age identity."""
        return self.root / "reviewer" / "identity.age"

    @property
    def trust(self) -> Path:
        """The keys that the reviewer compared out of band."""
        return self.root / "reviewer" / "trust.yaml"

    @property
    def handed_over(self) -> Path:
        """What hospitals gave the reviewer themselves: heads of the audit log, and their own ε."""
        return self.root / "reviewer" / "from-hospitals"

    @property
    def signed_study(self) -> Path:
        """The study as the operator and every hospital signed it."""
        return self.server / "studies" / STUDY_NAME / "study.json"

    @property
    def study(self) -> Path:
        """What the operator wrote."""
        return self.root / "study.yaml"

    @property
    def data(self) -> Path:
        """The public data set."""
        return self.root / "data"

    @property
    def release(self) -> Path:
        """The released adapter."""
        return self.root / "release"

    @property
    def logs(self) -> Path:
        """Log files of all processes."""
        return self.root / "logs"

    @property
    def work(self) -> Path:
        """Results that worker processes hand to the harness."""
        return self.root / "work"

    @property
    def results(self) -> Path:
        """Everything in the table."""
        return self.root / "results.json"

    def hospital(self, name: str) -> Path:
        """Home of hospital `name`."""
        return self.root / "hospitals" / name

    def hospital_status(self, name: str) -> Path:
        """What hospital `name` is doing now."""
        return self.hospital(name) / "state" / "status.json"

    def approver(self, name: str) -> Path:
        """Key of the person responsible at hospital `name`."""
        return self.root / "people" / f"{name}.key"

    def invite(self, name: str) -> Path:
        """The invite of hospital `name`."""
        return self.root / "invites" / f"{name}.json"


def prepare(root: Path) -> Folder:
    """Return an empty demo folder at `root`, replacing an earlier demo's.

    Raises:
        DemoError: there is something else at `root`.
    """
    if root.exists() and not (root.is_dir() and ((root / MARKER).is_file() or not any(root.iterdir()))):
        raise DemoError(
            "demo-folder-foreign",
            f"{root} is not empty and was not made by the demo",
            next_step="give another folder with --out, or remove this one yourself",
        )
    try:
        if root.exists():
            shutil.rmtree(root)
        folder = Folder(root)
        for part in (
            folder.server,
            folder.identity.parent,
            folder.logs,
            folder.work,
            root / "people",
            root / "invites",
        ):
            part.mkdir(parents=True, mode=0o700)
        (root / MARKER).write_text("Made by ./run demo; the next ./run demo replaces this folder.\n")
    except OSError as error:
        raise DemoError(
            "demo-folder-unusable",
            f"cannot write {root}: {error.strerror}",
            next_step="give a folder on a disk with 1 GB free, with --out",
        ) from None
    return folder
