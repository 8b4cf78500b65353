"""The fourth answer: complete up to T, by what hospitals hand over themselves."""

import json

import pytest
from peers.big_log import START
from typer.testing import CliRunner

from wardround_common.audit.cli import audit_app
from wardround_common.audit.heads import load_heads, open_head
from wardround_common.audit.note import Checkpoint, sign_checkpoint, sign_cosignature
from wardround_common.audit.reader import LogFolder
from wardround_common.audit.trust import load_trust
from wardround_common.audit.verify import verify_log
from wardround_common.errors import ConfigError, VerificationError

LATER = START + 100_000


@pytest.fixture
def trust(big):
    return load_trust(big.trust)


def heads_of(big, count, *, time=LATER):
    return [open_head(big.head(site, time=time + n), load_trust(big.trust)) for n, site in enumerate(big.sites[:count])]


def test_enough_heads_say_up_to_when_the_log_is_complete(big, trust):
    report = verify_log(LogFolder(big.folder), trust, heads=heads_of(big, 3))
    report.require()
    assert report.complete.status == "yes"
    assert report.complete_until == LATER  # the third newest of three: the time that k = 3 hospitals reach
    assert "hospital-01, hospital-02, hospital-03" in report.complete.text


def test_too_few_heads_leave_it_unknown(big, trust):
    for heads in ([], heads_of(big, 2)):
        report = verify_log(LogFolder(big.folder), trust, heads=heads)
        report.require()
        assert (report.complete.status, report.complete_until) == ("unknown", None)
        assert f"{len(heads)} of 3 needed heads" in report.complete.text
        assert "later entries unknown" in report.complete.text


def foreign(big, size, root):
    head = Checkpoint(origin="operator.wardround", size=size, root=root)
    line = sign_cosignature(head, "hospital-01", big.cast.members["hospital-01"], LATER)
    return sign_checkpoint(head, big.cast.log) + line + "\n"


@pytest.mark.parametrize(("more", "code"), [(5, "log-rolled-back"), (0, "log-forked"), (-3, "log-forked")])
def test_one_head_that_does_not_fit_is_a_no(big, trust, more, code):
    size = verify_log(LogFolder(big.folder), trust).size
    head = open_head(foreign(big, size + more, b"\x07" * 32), trust)
    report = verify_log(LogFolder(big.folder), trust, heads=[head])
    assert report.complete.status == "no"
    assert report.last_seen is None  # a contradicted visit is not remembered
    with pytest.raises(VerificationError) as caught:
        report.require()
    assert caught.value.code == code
    assert "hospital-01" in caught.value.message


def test_the_operators_own_cosigned_checkpoint_is_no_head(big, trust):
    with pytest.raises(VerificationError) as caught:
        open_head(LogFolder(big.folder).cosigned(), trust)
    assert caught.value.code == "head-not-of-one-hospital"
    with pytest.raises(VerificationError) as caught:
        open_head(LogFolder(big.folder).checkpoint(), trust)
    assert caught.value.code == "head-not-of-one-hospital"


def test_of_two_heads_by_one_hospital_the_later_counts(big, trust, tmp_path):
    for name, time in (("a", LATER), ("b", LATER + 9), ("c", LATER + 3)):
        (tmp_path / name).write_text(big.head("hospital-02", time=time))
    (head,) = load_heads([tmp_path / name for name in "abc"], trust)
    assert head.time == LATER + 9


def test_a_head_that_cannot_be_read(trust, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path / "binary", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load_heads([path], trust)
        assert caught.value.code == "head-unreadable"


def test_the_exit_code_tells_which_answer_is_no(big, tmp_path):
    size = verify_log(LogFolder(big.folder), load_trust(big.trust)).size
    (tmp_path / "h.head").write_text(foreign(big, size + 1, bytes(32)))
    command = ["verify", str(big.folder), "--trust", str(big.trust), "--last-seen", str(tmp_path / "seen.json")]
    assert CliRunner().invoke(audit_app, command).exit_code == 0
    seen = json.loads((tmp_path / "seen.json").read_text())
    result = CliRunner().invoke(audit_app, [*command, "--head", str(tmp_path / "h.head"), "--json"])
    assert result.exit_code == 128
    assert json.loads(result.stdout)["answers"]["complete"]["status"] == "no"
    (tmp_path / "seen.json").write_text(json.dumps(seen | {"size": size + 2}, sort_keys=True, separators=(",", ":")))
    result = CliRunner().invoke(audit_app, [*command, "--head", str(tmp_path / "h.head"), "--json"])
    assert result.exit_code == 32 + 128
    result = CliRunner().invoke(audit_app, [*command, "--head", str(tmp_path / "h.head")])
    assert isinstance(result.exception, VerificationError)  # the root app shows it and exits with its code
    assert result.exception.exit_code == 32 + 128
