"""Make altered copies of an audit trail to practise on.

    python tampered_copies.py for-the-board practice --release release

Every copy is altered in one way that the reviewer's guide names; the log itself is only read. All that is needed is
what a reviewer has: no key of the log, of a hospital or of the operator.
"""

import argparse
import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wardround_common.audit.note import Checkpoint, sign_checkpoint


def edited(log: Path) -> None:
    """Flip one bit in the middle of the widest file of entries."""
    path = _entries(log)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def shortened(log: Path) -> None:
    """Take the last entry out; each has a u16 length before it."""
    path = _entries(log)
    data, at, last = path.read_bytes(), 0, 0
    while at < len(data):
        last, at = at, at + 2 + int.from_bytes(data[at : at + 2], "big")
    path.write_bytes(data[:last])


def resigned(log: Path) -> None:
    """Sign the checkpoint with a key of one's own under the log's name."""
    path = log / "checkpoint"
    origin, size, root = path.read_text(encoding="utf-8").splitlines()[:3]
    forged = Checkpoint(origin=origin, size=int(size), root=base64.b64decode(root))
    path.write_text(sign_checkpoint(forged, Ed25519PrivateKey.generate()), encoding="utf-8")


def unwitnessed(log: Path) -> None:
    """Take the hospitals' cosignatures away."""
    (log / "checkpoint.cosigned").unlink()


def too_few(log: Path) -> None:
    """Leave one hospital's cosignature beside the log's own signature, which is the first line."""
    path = log / "checkpoint.cosigned"
    head, _, lines = path.read_text(encoding="utf-8").partition("\n\n")
    own, *hospitals = lines.splitlines()
    path.write_text("\n".join([head, "", own, min(hospitals), ""]), encoding="utf-8")


def rolled_back(log: Path) -> None:
    """Show the newest checkpoint that hospitals cosigned as if nothing had been logged after it."""
    shutil.copyfile(log / "checkpoint.cosigned", log / "checkpoint")


def make_old(log: Path, release: Path) -> None:
    """Go back to the checkpoint that the release names: everything left is genuine, cosignatures too."""
    envelope = json.loads((release / "provenance.json").read_text(encoding="utf-8"))
    note = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["audit"]["checkpoint"]
    for name in ("checkpoint", "checkpoint.cosigned"):
        (log / name).write_text(note, encoding="utf-8")


COPIES: dict[str, Callable[[Path], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (edited, shortened, resigned, unwitnessed, too_few, rolled_back)
}


def _entries(log: Path) -> Path:
    return max(
        (path for path in (log / "tile" / "entries").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def main() -> None:
    """Write one folder for each way to alter a log."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("audit", type=Path, help="a copy of an audit trail")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--release", type=Path, help="the release of a study in it: also makes the copy `old`")
    given = parser.parse_args()
    if not (given.audit / "log" / "checkpoint.cosigned").exists():
        parser.error(f"{given.audit} is no audit trail that hospitals have cosigned")
    for name, alter in COPIES.items():
        shutil.copytree(given.audit, given.out / name)
        alter(given.out / name / "log")
        print(f"{given.out / name}: {(alter.__doc__ or '').split(':')[0].rstrip('.')}")
    if given.release:
        shutil.copytree(given.audit, given.out / "old")
        make_old(given.out / "old" / "log", given.release)
        print(f"{given.out / 'old'}: {(make_old.__doc__ or '').split(':')[0]}")


if __name__ == "__main__":
    main()
