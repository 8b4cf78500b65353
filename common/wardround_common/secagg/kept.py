"""A masked round on disk, for a reviewer to recompute its sum (`keep_vectors`; docs/spec/secagg.md, rule 23).

Rules.
- One folder a round: `plan.json`, `survivors.json`, and the folders `offers`, `parcels`, `headers`, `vectors` and
  `openings` with one file for each site, every file as it came. There is no secret in it that opens more than the sum.
- Nothing in the folder is believed: `recompute.opened_mean` verifies all of it against the study's keys.

    >>> plan, kept = load_round(Path("server/studies/icd/sums/3"))  # doctest: +SKIP
    >>> opened_mean(secagg_rules(study, specs), plan, kept)  # doctest: +SKIP
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from wardround_common.errors import StorageError
from wardround_common.files import write_durably, write_parts
from wardround_common.rounds import RoundPlan
from wardround_common.secagg.recompute import Kept
from wardround_common.signing import Envelope

PIECE = 1 << 20
"""Bytes of a vector that are copied at a time."""


def store_round(folder: Path, plan: RoundPlan, kept: Kept) -> None:
    """Write a round durably; doing it again changes nothing.

    Raises:
        StorageError: it could not be written.
    """
    for name, files in _small(kept).items():
        for site, data in files.items():
            write_durably(folder / name / site, data)
    for site, path in kept.vectors.items():
        write_parts(folder / "vectors" / site, _pieces(path))
    write_durably(folder / "survivors.json", kept.survivors.to_bytes())
    write_durably(folder / "plan.json", plan.to_bytes())


def load_round(folder: Path) -> tuple[RoundPlan, Kept]:
    """Return what `store_round` wrote, unverified.

    Raises:
        StorageError: a file is missing or cannot be read.
        ProtocolError: a file is not what its name says.
    """
    try:
        kept = Kept(
            offers=_read(folder / "offers"),
            parcels=_read(folder / "parcels"),
            headers={site: Envelope.from_bytes(data) for site, data in _read(folder / "headers").items()},
            vectors={path.name: path for path in _files(folder / "vectors")},
            survivors=Envelope.from_bytes((folder / "survivors.json").read_bytes()),
            openings=_read(folder / "openings"),
        )
        return RoundPlan.from_bytes((folder / "plan.json").read_bytes()), kept
    except OSError as error:
        raise StorageError(
            "kept-round-unreadable",
            f"cannot read a kept round: {error.strerror}: {error.filename}",
            next_step="ask the operator for the whole folder of the round",
        ) from None


def _small(kept: Kept) -> dict[str, Mapping[str, bytes]]:
    headers = {site: header.to_bytes() for site, header in kept.headers.items()}
    return {"offers": kept.offers, "parcels": kept.parcels, "headers": headers, "openings": kept.openings}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in _files(folder)}


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
