"""What would be released: one version everywhere, whole archives, and every role from them in a fresh environment."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from wardround_common import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = {"wardround_common": "common", "wardround_client": "client", "wardround_server": "server"}


def test_one_version_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    for page in ("docs/deploying.md", "deploy/compose/compose.yaml"):
        assert set(re.findall(r"wardround-(?:server|client|auditor):(\d+\.\d+\.\d+)", (ROOT / page).read_text())) == {
            __version__
        }


def test_the_citation_is_of_its_schema() -> None:
    checker = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent)) or shutil.which(
        "check-jsonschema"
    )
    if checker is None:
        pytest.skip("check-jsonschema is not installed (pip install -e '.[dev]')")
    command = [checker, "--builtin-schema", "vendor.citation-file-format", ROOT / "CITATION.cff"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@dataclass(frozen=True)
class Built:
    """The archives of one build, and what was installed to make it."""

    python: Path
    wheel: Path
    sdist: Path


def clean() -> dict[str, str]:
    """Return this environment without what would lead an interpreter back to the sources."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=clean(), capture_output=True, text=True, timeout=1200, check=False)


def done(*command: object, cwd: Path) -> str:
    outcome = run(*command, cwd=cwd)
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-3000:]
    return outcome.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build as CONTRIBUTING.md says, from a copy of what git holds."""
    folder = tmp_path_factory.mktemp("release")
    venv.create(folder / "venv", with_pip=True)
    python, source, dist = folder / "venv" / "bin" / "python", folder / "source", folder / "dist"
    names = done("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    done(python, "-m", "pip", "install", "-q", "hatchling>=1.27", cwd=folder)
    done(python, "-m", "hatchling", "build", "-d", dist, cwd=source)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return Built(python=python, wheel=wheel, sdist=sdist)


def record(wheel: Path) -> dict[str, str]:
    """Return name and digest of each file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        rows = csv.reader(archive.read(name).decode().splitlines())
        return {row[0]: row[1] for row in rows if row[1]}


@pytest.mark.release
def test_the_wheel_holds_the_packages_their_types_and_the_licence_and_nothing_else(built: Built) -> None:
    held = record(built.wheel)
    assert built.wheel.name == f"wardround-{__version__}-py3-none-any.whl"
    for package, tree in PACKAGES.items():
        assert f"{package}/py.typed" in held
        sources = {p.relative_to(ROOT / tree).as_posix() for p in (ROOT / tree / package).rglob("*.py")}
        assert sources <= set(held)
    info = f"wardround-{__version__}.dist-info/"
    assert {f"{info}licenses/LICENSE", f"{info}licenses/NOTICE"} <= set(held)
    assert {name.split("/")[0] for name in held} == {*PACKAGES, info.rstrip("/")}
    with zipfile.ZipFile(built.wheel) as archive:
        metadata = archive.read(f"{info}METADATA").decode()
    assert "License-Expression: Apache-2.0\n" in metadata


@pytest.mark.release
def test_the_sdist_makes_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    done(built.python, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=source)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert record(again) == record(built.wheel)
    assert (source / "tests" / "deploy" / Path(__file__).name).exists()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Path]:
    """A fresh virtual environment, which is removed again: a client's has more than a gigabyte."""
    venv.create(tmp_path / "venv", with_pip=True)
    yield tmp_path / "venv"
    shutil.rmtree(tmp_path / "venv")


def install(environment: Path, built: Built, extra: str, cwd: Path) -> Path:
    pip = [environment / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    if extra == "client":  # alone and first, as ./run does it: where a CPU wheel is at hand, it is taken
        index = os.environ.get("TORCH_INDEX")
        done(*pip, *(["--no-deps", "--index-url", index] if index else []), "torch==2.13.0", cwd=cwd)
    done(*pip, f"wardround[{extra}] @ {built.wheel.as_uri()}" if extra else built.wheel, cwd=cwd)
    done(environment / "bin" / "python", "-m", "pip", "check", cwd=cwd)
    return environment / "bin" / "wardround"


@pytest.mark.release
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("role", ["auditor", "server", "client"])
def test_a_role_from_the_wheel_in_a_fresh_environment(
    role: str, built: Built, environment: Path, tmp_path: Path
) -> None:
    """Installed, asked what it is, used, and finished as the image's build does it: with an SBOM, without pip."""
    wardround = install(environment, built, "" if role == "auditor" else role, tmp_path)
    assert done(wardround, "--version", cwd=tmp_path) == f"wardround {__version__}\n"
    where = done(environment / "bin" / "python", "-c", "import wardround_common as w; print(w.__file__)", cwd=tmp_path)
    assert str(environment) in where
    recipient = done(wardround, "audit", "keygen", "reviewer.key", cwd=tmp_path).strip()
    _USE[role](wardround, recipient, tmp_path)
    components = finished(environment, tmp_path)
    assert components["wardround"] == __version__
    assert {"pip", "setuptools"}.isdisjoint(components)
    assert ("flwr" in components) is (role != "auditor")
    assert ("torch" in components) is (role == "client")


def _use_auditor(wardround: Path, recipient: str, folder: Path) -> None:
    refused = run(wardround, "server", "status", cwd=folder)
    assert refused.returncode == 2
    assert "pip install 'wardround[server]'" in refused.stderr


def _use_server(wardround: Path, recipient: str, folder: Path) -> None:
    words = ("server", "init", "--home", "server", "--name", "operator", "--address", "127.0.0.1:8443")
    done(wardround, *words, "--reviewer", f"board={recipient}", cwd=folder)
    assert "FAIL" not in done(wardround, "server", "doctor", "--home", "server", cwd=folder)
    assert run(wardround, "client", "status", cwd=folder).returncode == 2


def _use_client(wardround: Path, recipient: str, folder: Path) -> None:
    report = run(wardround, "client", "doctor", "--home", "nowhere", "--json", cwd=folder)
    assert report.returncode == 1
    findings = {f["name"]: f for f in json.loads(report.stdout)["findings"]}
    assert f"wardround {__version__}" in findings["software"]["says"]
    python = wardround.with_name("python")
    done(python, "-c", "import wardround_client.training.engine, torch; print(torch.__version__)", cwd=folder)


_USE = {"auditor": _use_auditor, "server": _use_server, "client": _use_client}


def finished(environment: Path, folder: Path) -> dict[str, str]:
    """Run deploy/finish.sh on the environment and return the SBOM's components by name."""
    tool = shutil.which("cyclonedx-py", path=str(Path(sys.executable).parent)) or shutil.which("cyclonedx-py")
    if tool is None:
        pytest.skip("cyclonedx-py is not installed (pip install -e '.[dev]')")
    done(ROOT / "deploy" / "finish.sh", environment, tool, cwd=folder)
    text = (environment / "sbom.cdx.json").read_text()
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return {found["name"]: found["version"] for found in json.loads(text)["components"]}


@pytest.mark.release
def test_a_build_is_the_same_twice(built: Built, tmp_path: Path) -> None:
    """Byte for byte, so that whoever builds the tag can compare."""
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    digests = set()
    for name in ("one", "two"):
        done(built.python, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / name, cwd=source)
        (wheel,) = (tmp_path / name).glob("*.whl")
        digests.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(digests) == 1
