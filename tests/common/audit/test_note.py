import base64
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround_common.audit.note import (
    Checkpoint,
    add_lines,
    cosigned_times,
    cosigner_key_of,
    log_key_of,
    open_checkpoint,
    open_note,
    parse_verifier_key,
    sign_checkpoint,
    sign_cosignature,
)
from wardround_common.errors import VerificationError
from wardround_common.signing import public_key_text

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LOG = log_key_of("operator.wardround", KEY.public_key())
HEAD = Checkpoint(origin="operator.wardround", size=7, root=bytes(range(32)))
NOTE = sign_checkpoint(HEAD, KEY)
SITE = Ed25519PrivateKey.from_private_bytes(bytes(32))
MEMBERS = {"st-elsewhere": public_key_text(SITE.public_key())}


def test_example_of_gos_note_package():
    # Package documentation of golang.org/x/mod/sumdb/note: verifier key and signed text.
    key = parse_verifier_key("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    note = text + (
        "\n— PeterNeumann "
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    assert open_note(note, key) == text
    assert str(key) == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    with pytest.raises(VerificationError):
        open_note(note.replace("answer", "answers"), key)


def test_checkpoint_comes_back_and_signing_is_deterministic():
    assert open_checkpoint(NOTE, LOG) == HEAD
    assert sign_checkpoint(HEAD, KEY) == NOTE
    assert NOTE.startswith(
        "operator.wardround\n7\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n— operator.wardround "
    )


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_openssl_verifies_the_checkpoint(tmp_path):
    body, _, line = NOTE.partition("\n\n")
    (tmp_path / "body").write_text(body + "\n")
    (tmp_path / "sig").write_bytes(base64.b64decode(line.split(" ")[2])[4:])
    pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(pem)
    command = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "key.pem",
        "-rawin",
        "-in",
        "body",
        "-sigfile",
        "sig",
    ]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    (tmp_path / "body").write_text(body + "!\n")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode != 0


def test_cosignature_is_the_text_that_c2sp_says():
    line = sign_cosignature(HEAD, "st-elsewhere", SITE, 1_679_315_147)
    raw = base64.b64decode(line.split(" ")[2])
    assert raw[4:12] == (1_679_315_147).to_bytes(8, "big")
    signed = f"cosignature/v1\ntime 1679315147\n{HEAD.body}".encode()
    Ed25519PublicKey.from_public_bytes(SITE.public_key().public_bytes_raw()).verify(raw[12:], signed)
    assert cosigned_times(add_lines(NOTE, [line]), MEMBERS) == {"st-elsewhere": 1_679_315_147}


def test_cosigner_of_the_c2sp_example_is_found_by_its_key_id():
    # The note of C2SP tlog-cosignature.md; its witness key is not published, so only the framing is checked.
    note = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "— example.com/behind-the-sofa "
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
        "— witness.example.com/w1 "
        "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
    )
    assert cosigned_times(note, MEMBERS) == {}
    with pytest.raises(VerificationError) as caught:
        open_checkpoint(note, LOG)
    assert caught.value.code == "note-not-signed"


def test_a_cosignature_counts_for_its_own_site_only():
    line = sign_cosignature(HEAD, "st-elsewhere", SITE, 1)
    renamed = line.replace("st-elsewhere", "northside")
    note = add_lines(NOTE, [line, renamed])
    both = MEMBERS | {"northside": public_key_text(KEY.public_key())}
    assert set(cosigned_times(note, both)) == {"st-elsewhere"}


@pytest.mark.parametrize("altered", [
    lambda n: n.replace("\n7\n", "\n8\n"),
    lambda n: n.replace("\n7\n", "\n07\n"),
    lambda n: n.replace("operator.wardround\n7", "other.wardround\n7"),
    lambda n: n.replace("\n\n", "\n"),
    lambda n: n.replace("\n\n", "\nextension line\n\n"),
    lambda n: n.rstrip("\n"),
    lambda n: n.replace("— ", "- "),
    lambda n: n + "— operator.wardround AAAA\n",
    lambda n: n + "\n",
    lambda n: n + "\x00",
    lambda n: n + "\ud800",
    lambda n: n + "— x AAAAAAAA\n" * 300,
    lambda n: n.replace("=\n\n", "\n\n"),
    lambda n: "",
    lambda n: "x" * 70_000,
])  # fmt: skip
def test_altered_notes_are_refused(altered):
    with pytest.raises(VerificationError):
        open_checkpoint(altered(NOTE), LOG)


def test_a_known_keys_wrong_second_line_spoils_the_note():
    wrong = base64.b64encode(LOG.key_id + bytes(64)).decode()
    with pytest.raises(VerificationError) as caught:
        open_checkpoint(NOTE + f"— {LOG.name} {wrong}\n", LOG)
    assert caught.value.code == "note-signature-invalid"


def test_unknown_lines_are_ignored():
    extra = base64.b64encode(b"????" + bytes(2420)).decode()
    assert open_checkpoint(NOTE + f"— someone.example {extra}\n", LOG) == HEAD


def test_a_body_signed_by_the_log_that_is_no_checkpoint():
    for body in ("a\n", "operator.wardround\n7\nAAAA\n", "other\n7\n" + base64.b64encode(bytes(32)).decode() + "\n"):
        sig = base64.b64encode(LOG.key_id + KEY.sign(body.encode())).decode()
        with pytest.raises(VerificationError) as caught:
            open_checkpoint(f"{body}\n— {LOG.name} {sig}\n", LOG)
        assert caught.value.code == "note-malformed"


@pytest.mark.parametrize(
    "text", ["", "a+b", "name+00000000+AAAA", str(LOG).replace("+", "+0", 1), str(LOG)[:-4] + "AAA="]
)
def test_malformed_verifier_keys(text):
    with pytest.raises(VerificationError) as caught:
        parse_verifier_key(text)
    assert caught.value.code == "note-malformed"


def test_keys_come_back():
    assert parse_verifier_key(str(LOG)) == LOG
    site = cosigner_key_of("st-elsewhere", MEMBERS["st-elsewhere"])
    assert parse_verifier_key(str(site)) == site
    with pytest.raises(ValueError, match="key name"):
        log_key_of("two words", KEY.public_key())


@settings(max_examples=300)
@given(st.data())
def test_no_mutation_of_a_note_is_accepted_or_leaks(data):
    line = sign_cosignature(HEAD, "st-elsewhere", SITE, 1)
    note = list(add_lines(NOTE, [line]))
    at = data.draw(st.integers(0, len(note) - 1))
    what = data.draw(st.sampled_from(["change", "drop", "insert"]))
    letter = data.draw(st.characters())
    if what == "change":
        note[at] = letter
    elif what == "drop":
        del note[at]
    else:
        note.insert(at, letter)
    text = "".join(note)
    if text == add_lines(NOTE, [line]):
        return
    try:
        opened = open_checkpoint(text, LOG), cosigned_times(text, MEMBERS)
    except VerificationError:
        return
    assert opened == (HEAD, {})  # at most a line became an unknown one


@given(st.text(max_size=300))
def test_arbitrary_text_is_refused(text):
    with pytest.raises(VerificationError):
        open_checkpoint(text, LOG)
    with pytest.raises(VerificationError):
        parse_verifier_key(text)
