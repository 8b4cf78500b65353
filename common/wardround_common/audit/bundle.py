"""A folder to hand on: the log, what it is checked against, and how, for somebody without network or account.

Rules.
- Only a log that verifies is bundled. The copy is verified again at its new place before the command ends.
- The bundle holds no secret: no identity, no message key. The age files in it open for reviewers only.
- `policy.txt` is a C2SP tlog-policy, so that programs that wardround's authors did not write can check the log too.
- A trust file that came with a bundle is worth what its sender is worth; README.txt says so.

    >>> make_bundle(Path("audit"), Path("bundle"), trust)  # doctest: +SKIP
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from wardround_common import __version__
from wardround_common.audit.note import cosigner_key_of
from wardround_common.audit.trust import Trust
from wardround_common.config_text import render_yaml
from wardround_common.errors import ConfigError, StorageError
from wardround_common.files import write_durably

README = """\
An audit trail of wardround, to be checked without a network
=============================================================

  audit/           the log: C2SP tlog-tiles, signed notes, age files of segment keys
  trust.yaml       keys of the log, the operator and every hospital
  policy.txt       the same as a C2SP tlog-policy, for other programs
  heads/           what hospitals handed over themselves: the last checkpoint that each cosigned
  statements/      what hospitals say themselves that the study spent
  SHA256SUMS       digests of all files here (`sha256sum -c SHA256SUMS`)

1. Compare the fingerprints in trust.yaml with the operator and the hospitals by telephone. A trust file that
   came together with the log proves nothing until you did.
2. pip install wardround=={version}   (once, anywhere; what follows needs no network)
3. wardround audit verify audit --trust trust.yaml {heads}
4. With a reviewer's key:
   wardround audit epsilon audit --trust trust.yaml --identity reviewer.key {statements}
   wardround audit report  audit --trust trust.yaml --identity reviewer.key --out report.html
"""


def make_bundle(
    folder: Path, target: Path, trust: Trust, *, heads: Sequence[Path] = (), statements: Sequence[Path] = ()
) -> list[str]:
    """Write a bundle to the new folder `target` and return the paths in it.

    Args:
        folder: the audit folder, verified by the caller.
        target: a folder that does not exist yet.
        trust: what the log was verified against.
        heads: files of `heads`.
        statements: files of `epsilon.Statement`s.

    Raises:
        ConfigError: `target` exists.
        StorageError: it cannot be written.
    """
    if target.exists():
        raise ConfigError("file-exists", f"{target} exists already", next_step="choose another name for the bundle")
    try:
        shutil.copytree(folder, target / "audit", ignore=shutil.ignore_patterns(".lock", "*.tmp"))
        for name, files in (("heads", heads), ("statements", statements)):
            (target / name).mkdir()
            for file in files:
                shutil.copyfile(file, target / name / file.name)
    except (OSError, shutil.Error) as error:
        raise StorageError(
            "bundle-not-written",
            f"cannot write the bundle {target}: {getattr(error, 'strerror', None) or 'a file could not be copied'}",
            next_step="make room or choose another folder; delete what was begun",
        ) from None
    header = "Compare every fingerprint by telephone before you rely on this."
    write_durably(target / "trust.yaml", render_yaml(trust, header=header).encode())
    write_durably(target / "policy.txt", tlog_policy(trust).encode())
    write_durably(target / "README.txt", _readme(heads, statements).encode())
    paths = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    sums = "".join(f"{_digest(target / path)}  {path}\n" for path in paths)
    write_durably(target / "SHA256SUMS", sums.encode())
    return [*paths, "SHA256SUMS"]


def tlog_policy(trust: Trust) -> str:
    """Return the trust as a C2SP tlog-policy: the log, every hospital as a witness, and the quorum."""
    lines = [f"log {trust.log}"]
    lines += [f"witness {site} {cosigner_key_of(site, key)}" for site, key in trust.members.items()]
    lines += [f"group hospitals {trust.quorum} {' '.join(trust.members)}", "quorum hospitals"]
    return "\n".join(lines) + "\n"


def _readme(heads: Sequence[Path], statements: Sequence[Path]) -> str:
    return README.format(
        version=__version__,
        heads=" ".join(f"--head heads/{path.name}" for path in heads),
        statements=" ".join(f"--statement statements/{path.name}" for path in statements),
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
