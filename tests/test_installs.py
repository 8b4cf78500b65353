"""What each role's install must be able to import, with the other roles' packages out of reach.

A child process refuses the forbidden imports outright, so a lazy or guarded import cannot hide behind an installed
package.
"""

import ast
import os
import pkgutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wardround_common

ROOT = Path(__file__).parents[1]

REVIEWER_FORBIDDEN = (
    "torch", "flwr", "grpc", "opacus", "peft", "transformers", "gguf", "safetensors", "sklearn",
    "wardround_server", "wardround_client", "wardround_demo",
)  # fmt: skip
SHELL_FORBIDDEN = ("torch", "opacus", "peft", "transformers", "sklearn", "wardround_demo")

NEEDS_A_ROLE = {
    "wardround_common.adapter": "numpy and safetensors: what both sides do with tensors",
    "wardround_common.models": "huggingface_hub and safetensors: base models",
    "wardround_common.wire.wardround_pb2": "protobuf",
    "wardround_common.wire.wardround_pb2_grpc": "grpc",
}
"""Modules of common that are no part of the reviewer's tool, and why."""

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

FORBIDDEN = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocker())
"""


def child(forbidden: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code, ",".join(forbidden)],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


IMPORT_ALL = """
import importlib
for name in MODULES:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {error}")
"""


def failed_imports(forbidden: tuple[str, ...], modules: list[str]) -> list[str]:
    """Return `module: why` for each of `modules` that cannot be imported in one child process."""
    done = child(forbidden, f"MODULES = {modules!r}" + IMPORT_ALL)
    assert done.stderr == ""
    return done.stdout.splitlines()


def common_modules() -> list[str]:
    prefix = f"{wardround_common.__name__}."
    names = (found.name for found in pkgutil.walk_packages(wardround_common.__path__, prefix))
    return sorted(name for name in names if not name.endswith(".__main__"))  # importing that one runs it


def reviewer_modules() -> list[str]:
    """Everything in common that does not itself import a role's packages, directly or through common."""
    return [name for name in common_modules() if name not in NEEDS_A_ROLE and not _needs_a_role(name)]


def _needs_a_role(name: str) -> bool:
    """Whether a module under wire/ imports grpc, flwr or protobuf: the wire is between roles, not the reviewer's."""
    if not name.startswith("wardround_common.wire."):
        return False
    path = Path(wardround_common.__path__[0], *name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = {
        alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    return any(found.split(".")[0] in ("grpc", "flwr") or "wardround_pb2" in found for found in names)


def test_the_blocker_blocks() -> None:
    assert child(("json",), "import json").returncode != 0
    assert child(("torch",), "import json").returncode == 0


def test_every_module_of_the_reviewers_tool_imports_without_any_role() -> None:
    modules = reviewer_modules()
    assert "wardround_common.audit.events" in modules
    assert failed_imports(REVIEWER_FORBIDDEN, modules) == []


def test_modules_that_need_a_role_exist() -> None:
    assert set(NEEDS_A_ROLE) <= set(common_modules())


def test_the_reviewers_command_runs_without_any_role() -> None:
    done = child(
        REVIEWER_FORBIDDEN,
        "sys.argv = ['wardround', 'audit', '--help']\nfrom wardround_common.cli import main\nmain()",
    )
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_missing_role_says_which_extra_to_install(role: str) -> None:
    forbidden = tuple(name for name in REVIEWER_FORBIDDEN if not name.startswith("wardround"))
    done = child(
        forbidden, f"sys.argv = ['wardround', '{role}', 'status']\nfrom wardround_common.cli import main\nmain()"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: the {role} role is not installed",
        f"next: pip install 'wardround[{role}]'",
    ]


def role_modules(tree: str, package: str) -> list[str]:
    """Return the modules of a role except those whose work is training."""
    root = ROOT / tree
    names = (".".join(path.relative_to(root).with_suffix("").parts) for path in (root / package).rglob("*.py"))
    unwanted = ("wardround_client.training", "wardround_client.scoring", f"{package}.__main__")
    return sorted(name.removesuffix(".__init__") for name in names if not name.startswith(unwanted))


@pytest.mark.parametrize("role", ["client", "server"])
def test_the_daemons_shells_import_no_torch(role: str) -> None:
    """Importing torch, peft and Opacus costs seconds and hundreds of megabytes; only training needs them."""
    modules = role_modules(role, f"wardround_{role}")
    assert len(modules) > 3
    assert failed_imports(SHELL_FORBIDDEN, modules) == []


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], Path]:
    """Install the distribution with some extras into a new virtual environment and return its `bin` folder."""

    def install(extras: str) -> Path:
        home = tmp_path / "venv"
        venv.create(home, with_pip=True)
        command = [home / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
        subprocess.run([*command, f"{ROOT}{extras}"], check=True, timeout=900, cwd=tmp_path)
        return home / "bin"

    return install


def run(command: list[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, env=clean)  # type: ignore[arg-type]


def packages(bin_: Path, cwd: Path) -> set[str]:
    lines = run([bin_ / "python", "-m", "pip", "list"], cwd).stdout.splitlines()
    return {line.split()[0].lower() for line in lines}


@pytest.mark.slow
def test_a_fresh_reviewers_install(fresh: Callable[[str], Path], tmp_path: Path) -> None:
    """`pip install .` without extras, as a reviewer does it, has the audit command and none of the roles' packages."""
    bin_ = fresh("")
    installed = packages(bin_, tmp_path)
    assert "wardround" in installed
    assert installed.isdisjoint({"torch", "flwr", "grpcio", "opacus", "peft", "transformers"})
    audit = run([bin_ / "wardround", "audit", "--help"], tmp_path)
    assert audit.returncode == 0, audit.stderr
    server = run([bin_ / "wardround", "server", "status"], tmp_path)
    assert server.returncode == 2
    assert server.stderr.splitlines()[-1] == "next: pip install 'wardround[server]'"


def closure(extra: str) -> set[str]:
    """Return the normalised names of every distribution that `wardround[extra]` brings, itself included."""
    found, todo = set[tuple[str, str]](), [("wardround", extra)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        for text in requirements:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(wanted.name), more) for more in ("", *wanted.extras)]
    return {name for name, _ in found}


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a module imports anywhere, also inside functions."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_roles_extra_brings_all_that_its_modules_import(role: str) -> None:
    brought, known = closure(role), metadata.packages_distributions()
    assert ("torch" in brought) is (role == "client")
    assert "scikit-learn" in closure("demo") - brought
    own = {"wardround_common", "wardround_server", "wardround_client", *sys.stdlib_module_names}
    for path in [*(ROOT / role).rglob("*.py"), *(ROOT / "common").rglob("*.py")]:
        for package in imported(path) - own - {"matplotlib", "pyarrow"}:  # extras; their absence is an error of its own
            assert {str(canonicalize_name(name)) for name in known[package]} & brought, f"{path.name}: {package}"
