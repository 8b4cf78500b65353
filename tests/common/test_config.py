"""Configuration files: what is read, what is refused and how it is said."""

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.studies import REVIEWER
from pydantic import BaseModel

import wardround_client.config as client
import wardround_server.config as server
from wardround_common.config import MAX_CONFIG_BYTES, load_toml, load_yaml, parse_toml, parse_yaml
from wardround_common.config_text import keys_of, reference_table, render_toml
from wardround_common.documents import Document
from wardround_common.errors import ConfigError
from wardround_common.policy import Policy, require
from wardround_common.policy_file import cautious_policy, render_policy
from wardround_common.study_file import DESCRIPTIONS, StudyFile, render_study_file
from wardround_common.study_template import template_study

KEY = "ed25519:" + base64.b64encode(bytes(32)).decode()
CLIENT = client.ClientConfig(site="general", server="h.example:8443")
FULL_CLIENT = client.ClientConfig(
    site="general",
    server="[2001:db8::1]:8443",
    proxy="http://user:hunter2@proxy.example:3128",
    datasets={"notes": client.Dataset(path="a b.csv"), "titles": client.Dataset(path="t", unit_column='"pat" ε')},
    runtime=client.Runtime(device="cuda", dtype="bfloat16", threads=2),
)
SERVER = server.ServerConfig(name="operator", address="h.example:8443")
FULL_SERVER = server.ServerConfig(
    name="operator", address="10.0.0.1:1", listen="0.0.0.0:8443", reviewers={"board": REVIEWER}, invite_hours=1
)
POLICY = cautious_policy(operator=KEY, log="log+01020304+AQ==", members={"general": KEY}, approver=KEY)
STUDY = template_study(name="demo", members=("a", "no", "true"), model="minilm")


class Inner(Document):
    epsilon: float = 1.0
    names: tuple[str, ...] = ()


class Outer(Document):
    flag: bool = False
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}  # noqa: RUF012
    maybe: Inner | None = None
    text: str = ""


def refusal(text: str, model: type[BaseModel] = Outer, *, toml: bool = False) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "x.toml", model) if toml else parse_yaml(text, "x.yaml", model)
    assert caught.value.message.isprintable()
    assert caught.value.next_step
    return caught.value


@pytest.mark.parametrize("config", [CLIENT, FULL_CLIENT], ids=["minimal", "full"])
def test_client_toml_round_trips(config: client.ClientConfig) -> None:
    assert parse_toml(client.render(config), "client.toml", client.ClientConfig) == config


@pytest.mark.parametrize("config", [SERVER, FULL_SERVER], ids=["minimal", "full"])
def test_server_toml_round_trips(config: server.ServerConfig) -> None:
    assert parse_toml(server.render(config), "server.toml", server.ServerConfig) == config


def test_policy_yaml_round_trips() -> None:
    assert parse_yaml(render_policy(POLICY), "policy.yaml", Policy) == POLICY


@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_study_yaml_round_trips(model: str) -> None:
    study = template_study(name="demo", members=("a", "no", "true"), model=model)
    assert parse_yaml(render_study_file(study), "study.yaml", StudyFile) == study


FILES: dict[str, tuple[str, type[BaseModel], Any]] = {
    "client.toml": (client.render(CLIENT), client.ClientConfig, None),
    "server.toml": (server.render(SERVER), server.ServerConfig, None),
    "policy.yaml": (render_policy(POLICY), Policy, None),
    "study.yaml": (render_study_file(STUDY), StudyFile, DESCRIPTIONS),
}


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_generated_file_has_every_key_with_its_description(file: str) -> None:
    text, model, descriptions = FILES[file]
    lines = [line.strip().lstrip("# ") for line in text.splitlines()]
    prose = " ".join(line.strip().lstrip("# ") for line in text.splitlines() if "#" in line)
    for key in keys_of(model, descriptions):
        name = key.path.split(".")[-1]
        assert any(line.startswith((f"{name} =", f"{name}:")) or line.endswith(f"{name}]") for line in lines), key.path
        assert " ".join(key.description.split()) in " ".join(prose.split()), key.path


def test_the_first_policy_refuses_every_study_until_a_person_fills_it_in() -> None:
    from peers.studies import Cast, make_study

    study = make_study(Cast())
    with pytest.raises(Exception, match="policy refuses"):
        require(POLICY, study)


def test_unknown_key_names_the_nearest() -> None:
    error = refusal("inner:\n  epsilonn: 3")
    assert (error.code, error.message) == (
        "config-unknown-key", "x.yaml: unknown key 'epsilonn' at inner; nearest is 'epsilon'"
    )  # fmt: skip
    assert error.next_step == "known keys there: epsilon, names"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("flagg: true", "unknown key 'flagg'; nearest is 'flag'"),
        ("many: [{}, {nmaes: []}]", "unknown key 'nmaes' at many.1; nearest is 'names'"),
        ("named: {x: {epsilno: 1}}", "unknown key 'epsilno' at named.x; nearest is 'epsilon'"),
        ("maybe: {epsilno: 1}", "unknown key 'epsilno' at maybe; nearest is 'epsilon'"),
        ("zzzzzz: 1", "unknown key 'zzzzzz'"),
    ],
)
def test_unknown_keys_are_found_at_every_depth(text: str, where: str) -> None:
    assert refusal(text).message == f"x.yaml: {where}"


def test_an_unknown_key_is_reported_before_a_wrong_value() -> None:
    """The wrong key often is the reason why another one is missing."""
    error = refusal("flag: maybe\nepsilon: 1")
    assert error.code == "config-unknown-key"
    assert error.message.endswith("(and 1 more)")


def test_a_wrong_value_names_file_path_and_reason_and_not_the_value() -> None:
    error = refusal("named:\n  x:\n    epsilon: hunter2")
    assert (error.code, error.message) == (
        "config-invalid-value", "x.yaml: named.x.epsilon: Input should be a valid number"
    )  # fmt: skip


def test_a_password_in_a_wrong_proxy_is_not_shown() -> None:
    text = client.render(CLIENT) + "\n"
    text = text.replace("# proxy", "proxy").replace("http://proxy", "https://u:hunter2@proxy")
    error = refusal(text, client.ClientConfig, toml=True)
    assert error.message.startswith("x.toml: proxy: ")
    assert "hunter2" not in error.message
    assert "hunter2" not in repr(FULL_CLIENT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner: {epsilon: 1e-5}", Outer(inner=Inner(epsilon=1e-5))),  # YAML 1.1 reads a string
        ("text: no", Outer(text="no")),  # YAML 1.1 reads false
        ("text: 12:30", Outer(text="12:30")),  # YAML 1.1 reads 750
        ("text: 2026-11-22", Outer(text="2026-11-22")),  # YAML 1.1 reads a date
        ("named: {1: {}, true: {}, ~: {}}", Outer(named={"1": Inner(), "true": Inner(), "~": Inner()})),
        ("inner: {epsilon: 010}", Outer(inner=Inner(epsilon=10))),  # YAML 1.1 reads 8
        ("inner:\n  names: [a, b]", Outer(inner=Inner(names=("a", "b")))),
        ("maybe: null", Outer()),
    ],
)
def test_yaml_is_read_as_it_looks(text: str, expected: Outer) -> None:
    assert parse_yaml(text, "x.yaml", Outer) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "just words",
        "a: [",
        "a: 'x",
        "\ta: 1",
        "flag: true\n---\nflag: false",
        "inner: &x {}\nmaybe: *x",
        "text: !!python/object/apply:os.system [id]",
        "text: !!binary aGk=",
        "text: !custom x",
        "? [1]\n: 2",
        "text: \x00",
        "[" * 5_000,
        "{a: " * 5_000,
    ],
)
def test_malformed_yaml_is_refused(text: str) -> None:
    assert refusal(text).code == "config-malformed"


@pytest.mark.parametrize(
    "text",
    ["a", "a = ", "a = 1\na = 2", "text = 2026-11-22", "text = 12:30:00", "a = " + "[" * 5_000, "a = " + "9" * 5_000],
)
def test_malformed_toml_is_refused(text: str) -> None:
    assert refusal(text, toml=True).code == "config-malformed"


def test_numbers_that_are_none_are_refused() -> None:
    for text in ("inner.epsilon = nan", "inner.epsilon = inf"):
        assert refusal(text, toml=True).code == "config-invalid-value"


def test_duplicate_keys_are_refused_with_their_line() -> None:
    error = refusal("flag: true\ninner:\n  epsilon: 1\n  epsilon: 2")
    assert (error.code, error.message) == ("config-duplicate-key", "x.yaml: key 'epsilon' is written twice (line 4)")


def test_merge_keys_mean_nothing() -> None:
    assert refusal("inner: {<<: {epsilon: 3}}").code == "config-unknown-key"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_toml(tmp_path / "client.toml", Outer)
    assert caught.value.code == "config-missing"


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path, Outer)
    assert caught.value.code == "config-unreadable"


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes("text: Ä".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 at byte 6") as caught:
        load_yaml(tmp_path / "x.yaml", Outer)
    assert caught.value.code == "config-not-utf8"


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError) as caught:
        load_toml(tmp_path / "x.toml", Outer)
    assert caught.value.code == "config-too-large"


def test_load_reads_from_the_homes(tmp_path: Path) -> None:
    (tmp_path / "client.toml").write_text(client.render(FULL_CLIENT))
    (tmp_path / "server.toml").write_text(server.render(FULL_SERVER))
    assert client.load(tmp_path) == FULL_CLIENT
    assert server.load(tmp_path) == FULL_SERVER


def test_an_unknown_dataset_says_which_section_to_add() -> None:
    assert FULL_CLIENT.dataset("notes").path == "a b.csv"
    with pytest.raises(ConfigError, match="no data set scans") as caught:
        FULL_CLIENT.dataset("scans")
    assert "[datasets.scans]" in caught.value.next_step


@pytest.mark.parametrize(
    "address", ["h", "h:", ":1", "h:0", "h:65536", "http://h:1", "h h:1", "h:1 ", "::1:80", "h:1\n"]
)
def test_wrong_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="server"):
        client.ClientConfig(site="general", server=address)


def test_a_key_without_description_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="flag has no description"):
        render_toml(Outer())
    with pytest.raises(ValueError, match="flag has no description"):
        reference_table(Outer)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet="ab:,{}[]&*!?|>-'\"# \n\t012.e", max_size=60))
def test_any_text_only_raises_our_errors(text: str) -> None:
    for parse in (parse_toml, parse_yaml):
        message = ""
        try:
            parse(text, "x", Outer)
        except ConfigError as error:
            message = error.message
        assert message.isprintable()
