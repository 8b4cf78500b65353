"""The guides are followed literally: operator, three hospitals, reviewer; each in a folder and processes of its own.

The slow test walks and compares what the screens said with the committed transcript; what varies is masked there.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peers.auditing import Scene, play_round, started
from peers.disks import FastFiles

from wardround_common.config_text import render_yaml

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = DOCS / "guides"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_transcript", DOCS / "build_transcript.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


walk = _load()


@pytest.mark.slow
@pytest.mark.timeout(2400)  # some machines are shared by many
def test_the_guides_lead_from_nothing_to_a_released_adapter_and_a_verified_report(tmp_path: Path) -> None:
    parties = walk.walk(tmp_path / "parties")
    reviewer = parties["reviewer"]
    assert (parties["operator"].folder / "release" / "adapter_model.safetensors").stat().st_size > 0
    assert "content intact" in "".join(reviewer.lines)
    assert (reviewer.folder / "report.html").stat().st_size > 10_000
    _require_what_people_compare(parties)
    assert walk.render(parties) == walk.PAGE.read_text(encoding="utf-8"), (
        "the screens differ from docs/guides/transcript.md; if they should: .venv/bin/python docs/build_transcript.py"
    )


def _require_what_people_compare(parties: dict[str, Any]) -> None:
    """Every fingerprint that somebody reads out is on the screen of everybody who is to compare it."""
    screens = {name: "".join(party.screens) for name, party in parties.items()}
    (operator,) = set(re.findall(r"^operator +(SHA256:\S+)", screens["operator"], re.M))
    assert all(operator in screen for screen in screens.values())
    for site in walk.HOSPITALS:
        (own,) = set(re.findall(r"^this site +(SHA256:\S+)", screens[site], re.M))
        assert all(own in screens[name] for name in (*walk.HOSPITALS, "operator", "reviewer")), site


def _guide(role: str) -> list[object]:
    steps: list[object] = walk.steps((GUIDES / f"{role}.md").read_text(encoding="utf-8"))
    return steps


def test_everything_that_a_guide_waits_for_is_handed_over_by_another_guide() -> None:
    """And nothing is handed over that nobody waits for."""
    given, wanted = set(), set()
    for name, role in walk.ROLES.items():
        party = walk.Party(name=name, base=Path("/nowhere"), address="")
        for step in walk.steps(party.own((GUIDES / f"{role}.md").read_text(encoding="utf-8"))):
            if isinstance(step, walk.Carry) and step.verb == "Hand over":
                given |= {(other, Path(file).name) for other in walk._named(step.whom, name) for file in step.files}
            elif isinstance(step, walk.Carry):
                wanted |= {(name, Path(file).name) for file in step.files}
    assert wanted == given
    assert len(wanted) > 20


def test_a_guide_is_read_as_a_person_reads_it() -> None:
    text = (
        "## 1. Begin\n```console\noperator$ wardround server doctor   # until: fine\n"
        "operator$ wardround server revoke x   # not in the rehearsal\noperator$ false   # exit: 1\n```\n"
        '> **Hand over to the reviewer:** `a.txt`, `b` – `not this`\n\n```yaml title="study.yaml"\nname: x\n```\n'
    )
    assert walk.steps(text) == [
        walk.Heading(text="1. Begin"),
        walk.Command(prompt="operator", line="wardround server doctor", until="fine"),
        walk.Command(prompt="operator", line="false", exit=1),
        walk.Carry(verb="Hand over", whom="reviewer", files=("a.txt", "b")),
        walk.Change(file="study.yaml", text="name: x"),
    ]


def test_a_line_that_is_no_command_is_not_skipped() -> None:
    with pytest.raises(ValueError, match="not a command"):
        walk.steps("```console\nwardround server doctor\n```\n")


def test_the_second_hospital_is_called_by_its_name() -> None:
    party = walk.Party(name="south-ward", base=Path("/nowhere"), address="")
    assert party.own("north-ward and south-ward and west-ward") == "south-ward and north-ward and west-ward"


def test_every_guide_has_steps_for_its_own_role_only() -> None:
    for role in ("operator", "hospital", "reviewer"):
        commands = [step for step in _guide(role) if isinstance(step, walk.Command)]
        assert len(commands) >= 10
        assert {command.prompt for command in commands} == {role}


def test_keys_and_times_are_masked() -> None:
    text = f"SHA256:{'a' * 43} sha256:{'0' * 64} ed25519:{'A' * 43}= 127.0.0.1:4711 2026-11-22 10:00 UTC /base/x"
    assert walk.masked(text, Path("/base")) == "SHA256:… sha256:… ed25519:… ward.example.org:8443 (time) /x"


@pytest.mark.skipif(not walk._can_hide(), reason="the system has no unshare, or does not let this user mount")
def test_a_party_cannot_see_the_others_folders(tmp_path: Path) -> None:
    for name in walk.ROLES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    party = walk.Party(name="north-ward", base=tmp_path, address="")
    assert party._shell("ls . ../operator ../reviewer ../south-ward").stdout.count("mine") == 1
    assert (tmp_path / "operator" / "mine").exists()


def test_a_screen_that_another_hospital_has_too_is_not_repeated() -> None:
    step = walk.Command(prompt="hospital", line="wardround client status")
    parties = {name: walk.Party(name=name, base=Path("/nowhere"), address="") for name in walk.ROLES}
    for number, site in enumerate(walk.HOSPITALS):
        parties[site].lines = [walk._console(step, f"I am {site}"), walk._console(step, f"{number} of 3")]
    page = walk.render(parties)
    assert "I am north-ward" in page
    assert "I am south-ward" not in page
    assert page.count("(as at north-ward, but for names)") == 2
    assert all(f"{number} of 3" in page for number in range(3))


# -- practising


COPIES = {"edited": 16, "shortened": 16, "resigned": 16, "unwitnessed": 64, "too-few": 64, "rolled-back": 0}


def test_every_altered_copy_ends_with_the_exit_code_that_the_guide_names(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "home")
    with scene.open(files=FastFiles()) as log:
        log.append([started()] * 3)
        play_round(scene, log, 1)
        scene.cosign(log)
        log.append([started()] * 2)
    trust = tmp_path / "trust.yaml"
    trust.write_text(render_yaml(scene.trust(quorum=2)))
    script = [sys.executable, GUIDES / "tampered_copies.py", scene.folder, tmp_path / "practice"]
    subprocess.run(script, check=True, capture_output=True)
    assert _verified(scene.folder, trust, tmp_path / "seen") == 0
    assert {path.name for path in (tmp_path / "practice").iterdir()} == set(COPIES)  # `old` needs a release
    for name, code in COPIES.items():
        assert _verified(tmp_path / "practice" / name, trust, tmp_path / f"first-{name}") == code, name
    assert _verified(tmp_path / "practice" / "rolled-back", trust, tmp_path / "seen") == 32
    guide = (GUIDES / "reviewer.md").read_text(encoding="utf-8")
    for name, code in COPIES.items():
        assert f"practice/{name} --trust trust.yaml" in guide
        assert f"# exit: {code or 32}" in guide


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, GUIDES / "tampered_copies.py", tmp_path, tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no audit trail" in done.stderr


def _verified(folder: Path, trust: Path, seen: Path) -> int:
    from peers.federation import wardround

    return wardround("audit", "verify", folder, "--trust", trust, "--last-seen", seen).code


def test_made_up_notes_fit_the_guides_study(tmp_path: Path) -> None:
    file = tmp_path / "data" / "notes.csv"
    subprocess.run([sys.executable, GUIDES / "made_up_notes.py", file], check=True, capture_output=True)
    header, *rows = file.read_text(encoding="utf-8").splitlines()
    assert header == "patient_id,text,label"
    assert len({row.split(",")[0] for row in rows}) == 60
    assert "labels: [bone, chest, heart]" in (GUIDES / "operator.md").read_text(encoding="utf-8")
    assert {row.rsplit(",", 1)[1] for row in rows} == {"bone", "chest", "heart"}
