"""Every export is valid for the format's own library or schema, and its proofs verify."""

import base64
import csv
import io
import json

import pytest
from peers.big_log import all_answer, make_big_log, make_unstarted_log
from typer.testing import CliRunner

from wardround_common.audit.cli import audit_app
from wardround_common.audit.exports import Export, ExportSource, Format
from wardround_common.audit.exports import export as export_module
from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.prover import Prover
from wardround_common.audit.reader import LogFolder, load_identity
from wardround_common.audit.redact import Redact
from wardround_common.audit.tiles import RightEdge, leaf_hash, verify_inclusion
from wardround_common.audit.trust import load_trust
from wardround_common.errors import ConfigError
from wardround_common.signing import fingerprint, public_key_text


def export_of(big, *redact):
    source = ExportSource(
        folder=LogFolder(big.folder),
        identity=load_identity(big.identity),
        trust=load_trust(big.trust),
        redact=frozenset(redact),
    )
    return Export(source)


def bytes_of(export, format_):
    return b"".join(export.parts(format_))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """30-odd entries: the libraries that validate are slow."""
    return make_big_log(tmp_path_factory.mktemp("export"), hospitals=2, rounds=2, drop=all_answer)


@pytest.fixture(scope="module")
def export(small):
    return export_of(small)


@pytest.fixture(scope="module")
def size(small):
    return open_checkpoint(LogFolder(small.folder).checkpoint(), load_trust(small.trust).log_key()).size


def check_proof(big, proof, index):
    """Verify one exported proof with the log's own entry."""
    folder = LogFolder(big.folder)
    assert proof["index"] == index
    entry = folder.entry(index, open_checkpoint(folder.checkpoint(), load_trust(big.trust).log_key()).size)
    leaf = leaf_hash(entry)
    assert base64.b64decode(proof["leaf_hash"]) == leaf
    hashes = [base64.b64decode(text) for text in proof["proof"]]
    verify_inclusion(leaf, index, proof["tree_size"], hashes, base64.b64decode(proof["root"]))


def tiles_of(leaves):
    """Return the tiles of a tree in memory."""
    edge, tiles = RightEdge(), {}
    for tile in [*(full for leaf in leaves for full in edge.add(leaf)), *edge.partial_tiles()]:
        tiles[tile.name.level, tile.name.index] = tile.data
    return lambda level, index, width: tiles[level, index][: 32 * width]


def test_a_prover_gives_the_proofs_of_the_tiles():
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 1_200), st.data())
    def each(count, data):
        leaves = [leaf_hash(bytes([n % 256, n // 256])) for n in range(count)]
        prover = Prover(count, tiles_of(leaves))
        for _ in range(3):
            index = data.draw(st.integers(0, count - 1))
            assert prover.leaf(index) == leaves[index]
            verify_inclusion(leaves[index], index, count, prover.proof(index), prover.root())
        with pytest.raises(ValueError, match="no entry"):
            prover.proof(count)

    each()


def test_csv(small, export, size):
    rows = list(csv.DictReader(io.StringIO(bytes_of(export, Format.CSV).decode(), newline="")))
    assert [int(row["index"]) for row in rows] == list(range(size))
    for row in rows:
        proof = {
            "index": int(row["index"]),
            "leaf_hash": base64.b64encode(bytes.fromhex(row["leaf_hash"])),
            "tree_size": int(row["tree_size"]),
            "root": base64.b64encode(bytes.fromhex(row["root"])),
            "proof": [base64.b64encode(bytes.fromhex(text)) for text in row["proof"].split()],
        }
        check_proof(small, proof, proof["index"])
        assert not [cell for cell in row.values() if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert {row["signature"] for row in rows if row["kind"] == "dp.spent"} == {"valid"}


def test_ocsf(small, export, size):
    from py_ocsf_models.events.base_event import BaseEvent

    lines = bytes_of(export, Format.OCSF).splitlines()
    assert len(lines) == size
    for index, line in enumerate(lines):
        found = json.loads(line)
        event = BaseEvent.model_validate(found)
        assert (event.metadata.sequence, event.metadata.event_code) == (index, found["activity_name"])
        # What OCSF demands of every class and this library's base model does not check.
        assert found["type_uid"] == found["class_uid"] * 100 + found["activity_id"]
        assert {"category_uid", "time", "severity_id", "metadata"} <= set(found)
        check_proof(small, found["unmapped"]["inclusion"], index)


def test_fhir(small, export, size):
    from fhir.resources.R4B.auditevent import AuditEvent
    from fhir.resources.R4B.bundle import Bundle

    bundle = json.loads(bytes_of(export, Format.FHIR))
    assert Bundle.model_validate(bundle).type == "collection"
    assert len(bundle["entry"]) == size
    for index, entry in enumerate(bundle["entry"]):
        event = AuditEvent.model_validate(entry["resource"])
        assert event.recorded is not None
        assert [agent.requestor for agent in event.agent] == [True]
        details = {detail["type"]: detail for detail in entry["resource"]["entity"][0]["detail"]}
        assert details["index"]["valueString"] == str(index)
        check_proof(small, json.loads(base64.b64decode(details["inclusion-proof"]["valueBase64Binary"])), index)


@pytest.mark.parametrize(
    "change", [{"outcome": 7}, {"agent": [{"requestor": "maybe"}]}, {"recorded": "yesterday"}, {"patient": "x"}]
)
def test_the_fhir_library_would_notice(export, change):
    """The validation above can fail."""
    from fhir.resources.R4B.auditevent import AuditEvent
    from pydantic import ValidationError

    resource = json.loads(bytes_of(export, Format.FHIR))["entry"][3]["resource"]
    with pytest.raises((ValidationError, ValueError)):
        AuditEvent.model_validate(resource | change)


def test_prov(small, export, size):
    from prov.model import ProvActivity, ProvDocument, ProvEntity

    text = bytes_of(export, Format.PROV).decode()
    document = ProvDocument.deserialize(content=text, format="json")
    entities = {str(record.identifier): record for record in document.get_records(ProvEntity)}
    assert sum(name.startswith("wr:entry-") for name in entities) == size
    assert len(list(document.get_records(ProvActivity))) == 2
    for index in range(size):
        (proof,) = (json.loads(v) for k, v in entities[f"wr:entry-{index}"].attributes if str(k) == "wr:proof")
        check_proof(small, proof, index)
    notation = document.get_provn()
    assert "wasGeneratedBy(" in notation
    assert "wasAssociatedWith(" in notation


def test_cyclonedx(small, export):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = bytes_of(export, Format.CYCLONEDX).decode()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    wrong = {"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"type": "potion", "name": "x"}]}
    assert validator.validate_str(json.dumps(wrong)) is not None
    adapter, base = json.loads(text)["components"]
    assert adapter["bom-ref"] == small.adapter
    assert base["bom-ref"] == small.study.model.content
    entries = {p["name"]: p["value"] for p in adapter["properties"] if p["name"].startswith("wardround:entry:")}
    assert len(entries) > 10
    for name, value in entries.items():
        check_proof(small, json.loads(value), int(name.rpartition(":")[2]))


def test_in_toto(small, export, size):
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    data = bytes_of(export, Format.IN_TOTO)
    Statement.copy_from_pb(json_format.Parse(data, statement_pb2.Statement())).validate()
    found = json.loads(data)
    assert found["subject"][0]["digest"]["sha256"] == small.adapter.removeprefix("sha256:")
    assert len(found["predicate"]["entries"]) == size
    for index, entry in enumerate(found["predicate"]["entries"]):
        check_proof(small, entry["inclusion"], index)


def test_formats_about_a_release_need_one(tmp_path):
    early = export_of(make_unstarted_log(tmp_path / "early"))
    for format_ in (Format.CYCLONEDX, Format.IN_TOTO):
        with pytest.raises(ConfigError) as caught:
            bytes_of(early, format_)
        assert caught.value.code == "export-nothing-released"
    assert bytes_of(early, Format.PROV)


@pytest.mark.parametrize("format_", list(Format))
def test_redacted_exports_name_nobody(small, format_):
    text = bytes_of(export_of(small, Redact.NAMES), format_).decode()
    for secret in (*small.sites, small.study.name, small.study.purpose, "operator.wardround"):
        assert secret not in text
    for key in small.cast.members.values():
        assert public_key_text(key.public_key()) not in text
        assert fingerprint(key.public_key()) not in text
    if format_ is not Format.CYCLONEDX:
        assert "hospital-1" in text.replace("hospital-01", "")


@pytest.mark.parametrize("format_", list(Format))
def test_exports_on_the_command_line(small, tmp_path, format_):
    options = ["--trust", str(small.trust), "--identity", str(small.identity), "--format", format_.value]
    command = ["export", str(small.folder), *options, "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(audit_app, command)
    assert result.exit_code == 0, result.exception
    notes = (tmp_path / "x.checkpoint").read_text()
    assert LogFolder(small.folder).cosigned() in notes
    assert LogFolder(small.folder).checkpoint() in notes
    assert CliRunner().invoke(audit_app, command).exception.code == "file-exists"


def test_a_log_too_large_for_one_document_goes_line_by_line(export, monkeypatch):
    monkeypatch.setattr(export_module, "MAX_DOCUMENT_ENTRIES", 10)
    for format_ in (Format.FHIR, Format.PROV, Format.CYCLONEDX, Format.IN_TOTO):
        with pytest.raises(ConfigError) as caught:
            bytes_of(export, format_)
        assert caught.value.code == "export-too-large"
    assert bytes_of(export, Format.CSV)
    assert bytes_of(export, Format.OCSF)
