"""What deploy/ builds and starts is well-formed for the tools that read it, and as closed as docs/deploying.md says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardround_common import __version__

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
UNITS = DEPLOY / "systemd"
MANIFESTS = DEPLOY / "kubernetes"
PAGE = ROOT / "docs" / "deploying.md"
TOOLS = Path(sys.executable).parent


def tool(name: str) -> str:
    """Return the path of a development tool that pip installed beside this Python, or on the path."""
    found = shutil.which(name, path=str(TOOLS)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install -e '.[dev]')")
    return found


# -- containers


def test_the_dockerfile_has_no_finding() -> None:
    done = subprocess.run([tool("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_the_linter_of_dockerfiles_finds_something_where_there_is_something() -> None:
    bad = "FROM python:latest\nRUN cd /tmp && apt-get install curl\n"
    done = subprocess.run([tool("hadolint"), "-"], input=bad, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DL3007" in done.stdout


def stages() -> dict[str, str]:
    """Return each stage of the Dockerfile by name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


def test_the_base_is_one_pinned_release_of_the_python_that_is_tested() -> None:
    text = DOCKERFILE.read_text()
    (base,) = re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert base in PAGE.read_text()
    sources = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert set(sources) <= {"${BASE}", *stages()}, "every stage starts from the pinned base or from another stage"


@pytest.mark.parametrize("role", ["server", "client", "auditor"])
def test_an_image_runs_as_nobody_and_holds_no_build_tools(role: str) -> None:
    runtime, final = stages()["runtime"], stages()[role]
    assert re.search(r"^USER 10001:10001$", runtime, re.MULTILINE)
    assert not re.search(r"^(USER|RUN|ADD)\b", final, re.MULTILINE), "nothing undoes the shared stage"
    assert re.findall(r"^COPY (.*)$", final, re.MULTILINE) == [
        f"--from={role}-environment /opt/wardround /opt/wardround"
    ]
    assert "HEALTHCHECK" in final
    extra = "." if role == "auditor" else f"'.[{role}]'"
    environment = stages()[f"{role}-environment"]
    assert f"/opt/wardround/bin/pip install -c constraints.txt {extra} \\\n && finish" in environment


def test_the_build_context_is_what_is_copied_and_nothing_else() -> None:
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text(), re.MULTILINE):
        copied |= set(re.sub(r"--chmod=\S+ ", "", line).split()[:-1])
    assert allowed == copied
    assert all((ROOT / name).exists() for name in copied)
    assert (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()[1] == "*"


# -- compose


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def test_the_compose_file_is_of_its_schema(tmp_path: Path) -> None:
    checker = tool("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", COMPOSE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "bad.yaml"
    bad.write_text(COMPOSE.read_text().replace("read_only: true", "readonly: true"))
    done = subprocess.run([checker, "--builtin-schema", "vendor.compose-spec", bad], capture_output=True, check=False)
    assert done.returncode == 1


def test_no_two_hospitals_share_a_network_and_none_leads_outside() -> None:
    found = compose()
    hospitals = {name: set(s["networks"]) for name, s in found["services"].items() if name.endswith("-ward")}
    assert len(hospitals) == 3
    assert sum(len(networks) for networks in hospitals.values()) == len(set.union(*hospitals.values())) == 3
    assert set(found["services"]["server"]["networks"]) == set.union(*hospitals.values())
    assert all(network["internal"] for network in found["networks"].values())
    assert not any("ports" in service for service in found["services"].values())
    assert found["services"]["auditor"]["network_mode"] == "none"


def test_no_two_services_share_a_volume_that_one_can_write_to() -> None:
    writable = []
    for service in compose()["services"].values():
        writable += [volume.split(":")[0] for volume in service.get("volumes", ()) if not volume.endswith(":ro")]
    assert sorted(writable) == sorted(compose()["volumes"])


@pytest.mark.parametrize("name", sorted(compose()["services"]))
def test_a_service_is_closed_and_names_an_image_of_this_version(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "cap_add", "pid", "ipc", "environment"} & set(service)
    role = {"server": "server", "auditor": "auditor"}.get(name, "client")
    assert service["image"] == f"wardround-{role}:{__version__}"
    assert service["build"]["target"] == role
    assert service["build"]["target"] in stages()


def test_the_scripts_are_shell() -> None:
    for script in (DEPLOY / "compose" / "setup.sh", DEPLOY / "finish.sh"):
        subprocess.run(["sh", "-n", script], check=True)
        assert script.stat().st_mode & 0o111


# -- systemd


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root folder with the units where an administrator puts them, and something to execute."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    units, own = tmp_path / "etc" / "systemd" / "system", tmp_path / "usr" / "lib" / "systemd" / "system"
    units.mkdir(parents=True)
    own.mkdir(parents=True)
    for path in Path("/usr/lib/systemd/system").glob("*.target"):
        shutil.copy(path, own, follow_symlinks=False)
    for name in ("opt/wardround/bin/wardround", "bin/sh"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / name)
    for path in UNITS.glob("wardround*.[st]*[er]"):
        shutil.copy(path, units)
    return tmp_path


def drop_in(machine: Path, name: str) -> None:
    folder = machine / "etc" / "systemd" / "system" / "wardround-client.service.d"
    folder.mkdir(exist_ok=True)
    shutil.copy(UNITS / f"wardround-client-{name}.conf", folder / f"{name}.conf")


def analyze(machine: Path, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", verb, f"--root={machine}", *arguments], capture_output=True, text=True, check=False
    )


def score(machine: Path, unit: str) -> str:
    found = analyze(machine, "security", "--offline=yes", "--no-pager", unit)
    return re.findall(rf"exposure level for {unit}: (\d+\.\d)", found.stdout)[0]


def test_the_units_are_well_formed(machine: Path) -> None:
    names = sorted(path.name for path in (machine / "etc" / "systemd" / "system").iterdir())
    assert len(names) == 4
    done = analyze(machine, "verify", "--man=no", *names)
    assert done.stderr == ""
    for name in ("network", "gpu"):
        drop_in(machine, name)
        assert analyze(machine, "verify", "--man=no", "wardround-client.service").stderr == ""


def test_a_unit_that_is_not_well_formed_is_found(machine: Path) -> None:
    unit = machine / "etc" / "systemd" / "system" / "wardround-client.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=very"))
    assert "protect system" in analyze(machine, "verify", "--man=no", unit.name).stderr


def test_the_scores_are_those_of_the_page(machine: Path) -> None:
    """The score's weights are systemd's; another version may count a little differently."""
    found = {unit: float(score(machine, f"{unit}.service")) for unit in ("wardround-server", "wardround-client-backup")}
    found["wardround-client"] = float(score(machine, "wardround-client.service"))
    drop_in(machine, "network")
    found["wardround-client, network.conf"] = float(score(machine, "wardround-client.service"))
    drop_in(machine, "gpu")
    found["wardround-client, network.conf and gpu.conf"] = float(score(machine, "wardround-client.service"))
    told = dict(re.findall(r"^\| `?(wardround-[^|`]*?)`? \| (\d\.\d) \|", PAGE.read_text(), re.MULTILINE))
    assert set(told) == set(found)
    for name, value in found.items():
        assert abs(value - float(told[name])) <= 0.3, f"{name}: {value}"
        assert value < 2.0


# -- Kubernetes


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


FOLDERS = sorted(path.name for path in MANIFESTS.iterdir())
PLAIN = [p for p in sorted(MANIFESTS.glob("*/*.yaml")) if p.name not in ("kustomization.yaml", "gpu.yaml")]


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_manifest_is_of_its_schema(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in documents(path):
        kubernetes_validate.validate(document, "1.37", strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**document, "surprise": 1}, "1.37", strict=True)


def test_the_folders_are_those_of_the_page() -> None:
    assert FOLDERS == ["admin-client", "admin-server", "client", "client-gpu", "server"]
    assert all(f"deploy/kubernetes/{name}" in PAGE.read_text() for name in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_names_every_file_and_image_of_its_folder(folder: str) -> None:
    (found,) = documents(MANIFESTS / folder / "kustomization.yaml")
    assert set(found) <= {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
    assert (found["apiVersion"], found["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    named = [*found["resources"], *(patch["path"] for patch in found.get("patches", ()))]
    assert all((MANIFESTS / folder / name).exists() for name in named)
    here = {path.name for path in (MANIFESTS / folder).iterdir()} - {"kustomization.yaml"}
    assert here == {name for name in named if not name.startswith("..")}
    for image in found["images"]:
        assert image["newTag"].split("-")[0] == __version__
        assert not image["name"].startswith("registry") or folder == "client-gpu"


def test_the_gpu_patch_gives_a_valid_client_with_a_gpu() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (client,), (patch,) = (
        documents(MANIFESTS / "client" / "statefulset.yaml"),
        documents(MANIFESTS / "client-gpu" / "gpu.yaml"),
    )
    assert (client["kind"], client["metadata"]["name"]) == (patch["kind"], patch["metadata"]["name"])
    (container,) = client["spec"]["template"]["spec"]["containers"]
    (change,) = patch["spec"]["template"]["spec"]["containers"]
    assert container["name"] == change["name"]
    for kind, more in change["resources"].items():
        container["resources"][kind] |= more
    assert container["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    kubernetes_validate.validate(client, "1.37", strict=True)


def pods() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in PLAIN:
        for document in documents(path):
            if document["kind"] == "Pod":
                found.append((path.parent.name, document["spec"]))
            elif document["kind"] == "StatefulSet":
                found.append((path.parent.name, document["spec"]["template"]["spec"]))
    return found


@pytest.mark.parametrize(("folder", "pod"), pods(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_keeps_to_the_restricted_standard(folder: str, pod: dict[str, Any]) -> None:
    """Kubernetes' Pod Security Standards, level restricted, and a read-only root."""
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch", "else the group could read the keys"
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert "memory" in container["resources"]["limits"]
    claims = {v["name"] for v in pod["volumes"]} | ({"home"} if folder == "server" else set())
    assert {mount["name"] for mount in container["volumeMounts"]} <= claims


def test_the_client_may_reach_one_address_and_nobody_may_reach_it() -> None:
    (policy,) = documents(MANIFESTS / "client" / "networkpolicy.yaml")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == []
    (rule,) = policy["spec"]["egress"]
    ((to,), (port,)) = rule["to"], rule["ports"]
    assert to["ipBlock"]["cidr"].endswith("/32")
    assert port == {"protocol": "TCP", "port": 8443}
    for folder, pod in pods():
        if folder.endswith("client"):
            assert f"{pod['hostAliases'][0]['ip']}/32" == to["ipBlock"]["cidr"]
    selected = policy["spec"]["podSelector"]["matchLabels"].items()
    for path in (MANIFESTS / "client" / "statefulset.yaml", MANIFESTS / "admin-client" / "pod.yaml"):
        (document,) = documents(path)
        labels = document["spec"].get("template", document)["metadata"]["labels"]
        assert selected <= labels.items()


def test_there_is_never_a_second_of_anything() -> None:
    for role in ("server", "client"):
        (document,) = documents(MANIFESTS / role / "statefulset.yaml")
        assert document["spec"]["replicas"] == 1
