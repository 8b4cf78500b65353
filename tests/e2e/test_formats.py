"""Three hospitals with three formats and their own names of columns train one adapter, patient by patient."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from peers.federation import WORDS, Federation, federation, ok
from peers.hospital_files import Row, write

from wardround_client import config as client_config

SUFFIXES = {"north": ".parquet", "south": ".ndjson", "west": ".jsonl"}


def notes(seed: int) -> list[Row]:
    """Return 60 records of 30 patients in the words of the tiny model."""
    chooser = random.Random(seed)
    labels = [list(WORDS)[number % 3] for number in range(60)]
    texts = [" ".join(chooser.choices(WORDS[label].split(), k=4)) for label in labels]
    return [
        {"text": t, "label": w, "patient": f"p{n // 2}"} for n, (t, w) in enumerate(zip(texts, labels, strict=True))
    ]


def configure(fed: Federation, site: str, seed: int) -> None:
    """Give `site` its notes in its format; the columns are named as its system names them."""
    home, suffix = fed.home(site), SUFFIXES[site]
    write(home / f"notes{suffix}", notes(seed))
    label, owner = ("type", None) if suffix == ".ndjson" else ("label", "patient")
    dataset = client_config.Dataset(path=f"notes{suffix}", label_column=label, unit_column=owner)
    config = client_config.load(home).model_copy(update={"datasets": {"notes": dataset}})
    (home / "client.toml").write_text(client_config.render(config))


def spawn(fed: Federation, name: str) -> subprocess.Popen[bytes]:
    """Start a daemon with this interpreter's own search path."""
    role, home = ("server", fed.server) if name == "server" else ("client", fed.home(name))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {"PATH": os.environ["PATH"], "HOME": str(fed.folder), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "wardround_common", role, "start", "--home", str(home)]
    with (fed.folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


@pytest.mark.slow
def test_three_formats_in_one_study(tmp_path: Path, model: Path):
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'wardround[parquet]'")
    with federation(tmp_path, model) as fed:
        fed.stop("server", signal.SIGTERM)
        fed.spawn = spawn
        fed.start("server")
        for seed, site in enumerate(fed.sites):
            fed.write_policy(site, units=("patient",), min_units=20)
            configure(fed, site, seed)
        fed.propose(unit="patient", nominal_size=30, records_per_unit=2)
        fed.wait_for_offer()
        for site in fed.sites:
            checked = ok(
                "client", "data", "check", "notes", "--home", fed.home(site), "--study", fed.folder / "tiny.yaml"
            )
            assert (checked["trained"], checked["units"], checked["unit"]) == (60, 30, "patient")
        fed.approve_all()
        fed.run_study()
        assert ok("server", "release", "tiny", "--home", fed.server, "--out", tmp_path / "release")
