"""Programs that we did not write check a log that our server wrote, and reject a tampered copy.

Go's x/mod sumdb packages (Debian golang-golang-x-mod-dev), openssl, age (Debian), sigstore's Merkle code and
proofbundle's C2SP tlog-proof verifier. Where a tool is absent the test says which, and is skipped; CI installs all.
"""

import base64
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from peers.auditing import SITES, Scene, play_round, started
from peers.disks import FastFiles

from wardround_common.audit.framing import RecordEntry, parse_entry
from wardround_common.audit.note import cosigner_key_of, open_checkpoint, parse_verifier_key
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.seal import message_keys, open_entry
from wardround_common.audit.segment import _seed_commitment
from wardround_common.audit.tiles import inclusion_proof

GO_PATH = Path("/usr/share/gocode")  # where Debian's golang-*-dev packages lie


def need(tool: str, package: str) -> str:
    found = shutil.which(tool)
    if not found:
        pytest.skip(f"{tool} is not installed (Debian: apt-get install {package})")
    return found


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A log of 523 entries, all members' cosignatures over the first 522."""
    scene = Scene(tmp_path_factory.mktemp("written"))
    with scene.open(files=FastFiles()) as log:
        log.append([started()] * 514)
        play_round(scene, log, 1)
        scene.cosign(log)
        log.append([started()])
    return scene


@pytest.fixture
def scene(written, tmp_path):
    shutil.copytree(written.home, tmp_path / "copy")
    return Scene(tmp_path / "copy", log_key=written.log_key, reviewer=written.reviewer)


def change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    go = need("go", "golang-go golang-golang-x-mod-dev")
    if not (GO_PATH / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("Go's x/mod sumdb packages are not installed (Debian: golang-golang-x-mod-dev)")
    folder = tmp_path_factory.mktemp("go")
    environment = {
        **os.environ, "GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "", "CGO_ENABLED": "0",
    }  # fmt: skip
    source = Path(__file__).parents[2] / "outside/verify.go"
    built = run(go, "build", "-o", folder / "verify", source, env=environment)
    assert built.returncode == 0, built.stderr
    return folder / "verify"


@pytest.mark.slow
class TestGo:
    """The reference implementation of the format's ancestor, by the authors of Go's checksum database."""

    def test_it_verifies_the_log(self, program, scene):
        found = run(program, scene.folder, scene.trust().log)
        assert (found.returncode, found.stdout) == (0, "verified 520 entries\n")

    @pytest.mark.parametrize(
        "name", ["log/checkpoint", "log/checkpoint.cosigned", "log/tile/0/001", "log/tile/entries/000",
                 "log/tile/1/000.p/2", "log/tile/entries/002.p/8"],
    )  # fmt: skip
    def test_it_rejects_a_tampered_copy(self, program, scene, name):
        change(scene.folder / name, 40)
        found = run(program, scene.folder, scene.trust().log)
        assert found.returncode != 0

    def test_it_rejects_another_key(self, program, scene):
        other = Scene(scene.home, log_key=scene.sites[SITES[0]])
        assert run(program, scene.folder, other.trust().log).returncode == 1


class TestOpenssl:
    @pytest.fixture
    def verify(self, scene, tmp_path):
        openssl = need("openssl", "openssl")

        def verify(body: bytes, signature: bytes, key) -> bool:
            (tmp_path / "body").write_bytes(body)
            (tmp_path / "signature").write_bytes(signature)
            pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (tmp_path / "key.pem").write_bytes(pem)
            found = run(
                *(openssl, "pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "key.pem", "-rawin"),
                *("-in", tmp_path / "body", "-sigfile", tmp_path / "signature"),
            )
            return found.returncode == 0

        return verify

    def test_the_logs_signature(self, scene, verify):
        body, _, line = LogFolder(scene.folder).checkpoint().partition("\n\n")
        signature = base64.b64decode(line.split(" ")[2])[4:]
        assert verify((body + "\n").encode(), signature, scene.log_key)
        assert not verify((body + "\n").replace("520", "521").encode(), signature, scene.log_key)

    def test_the_hospitals_cosignatures(self, scene, verify):
        body, _, lines = LogFolder(scene.folder).cosigned().partition("\n\n")
        for line, site in zip(lines.splitlines()[1:], SITES, strict=True):
            raw = base64.b64decode(line.split(" ")[2])[4:]
            time, signature = int.from_bytes(raw[:8], "big"), raw[8:]
            text = f"cosignature/v1\ntime {time}\n{body}\n".encode()
            assert verify(text, signature, scene.sites[site])
            assert not verify(text.replace(b"time 1", b"time 2"), signature, scene.sites[site])


class TestAge:
    def test_debians_age_opens_a_segments_seed_and_no_other_key_does(self, scene, tmp_path):
        age = need("age", "age")
        (wrap,) = (scene.folder / "keys").iterdir()
        (tmp_path / "identity").write_text(str(scene.reviewer) + "\n")
        opened = run(age, "--decrypt", "-i", tmp_path / "identity", wrap)
        seed = bytes.fromhex(opened.stdout)
        entries = [parse_entry(entry) for entry in LogFolder(scene.folder).entries(520)]
        assert isinstance(entries[0], RecordEntry)
        assert entries[0].record.seed == _seed_commitment(seed)
        for entry, key in zip(entries[1:], message_keys(seed), strict=False):
            assert open_entry(entry, key).startswith(b'{"')
        change(wrap, -1)
        assert run(age, "--decrypt", "-i", tmp_path / "identity", wrap).returncode != 0
        stranger = Scene(tmp_path)
        (tmp_path / "identity").write_text(str(stranger.reviewer) + "\n")
        assert run(age, "--decrypt", "-i", tmp_path / "identity", wrap).returncode != 0


class TestSigstore:
    """sigstore-python's Merkle code, which checks Rekor's inclusion proofs."""

    def test_its_merkle_code_accepts_every_entry_and_no_other(self, scene):
        merkle = pytest.importorskip("sigstore._internal.merkle", reason="the PyPI package sigstore is not installed")
        from sigstore.errors import VerificationError as Refused

        log = LogFolder(scene.folder)
        head = open_checkpoint(log.checkpoint(), parse_verifier_key(scene.trust().log))
        entries = list(log.entries(head.size))
        for index in range(0, head.size, 7):
            proof = SimpleNamespace(
                log_index=index, tree_size=head.size, root_hash=head.root,
                hashes=list(inclusion_proof(index, head.size, log.tile)),
            )  # fmt: skip
            entry = SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=proof, canonicalized_body=entries[index]))
            merkle.verify_merkle_inclusion(entry)
            entry._inner.canonicalized_body = entries[index][:-1] + bytes([entries[index][-1] ^ 1])
            with pytest.raises(Refused):
                merkle.verify_merkle_inclusion(entry)


class TestProofbundle:
    """A verifier of C2SP .tlog-proof files, with a witness threshold."""

    @pytest.fixture
    def verify(self, scene, tmp_path):
        pytest.importorskip("proofbundle", reason="the PyPI package proofbundle is not installed")
        import sys

        log, trust = LogFolder(scene.folder), scene.trust()
        text = log.proof_text(300, log.cosigned(), parse_verifier_key(trust.log))
        (tmp_path / "receipt.tlog-proof").write_text(text)
        (tmp_path / "entry").write_bytes(log.entry(300, 519))
        witnesses = [str(cosigner_key_of(site, identity)) for site, identity in trust.members.items()]

        def verify(threshold: int = 3, witnesses: list[str] = witnesses) -> bool:
            arguments = [word for key in witnesses for word in ("--witness-vkey", key)]
            found = run(
                *(sys.executable, "-c", "import sys; from proofbundle.cli import main; sys.exit(main())"),
                *("verify-proof", "--payload-file", tmp_path / "entry", "--log-vkey", trust.log),
                *(*arguments, "--threshold", threshold, tmp_path / "receipt.tlog-proof"),
            )
            assert "Traceback" not in found.stderr, found.stderr
            return found.returncode == 0

        return verify

    def test_it_accepts_a_receipt_with_all_witnesses(self, verify):
        assert verify()
        assert not verify(threshold=3, witnesses=[]), "the witnesses' cosignatures must be what counts"

    def test_it_rejects_another_entry(self, verify, tmp_path):
        change(tmp_path / "entry", 60)
        assert not verify()

    def test_it_rejects_a_changed_receipt(self, verify, tmp_path):
        path = tmp_path / "receipt.tlog-proof"
        path.write_text(path.read_text().replace("index 300", "index 301"))
        assert not verify()
