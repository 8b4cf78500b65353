"""study.yaml becomes a study, and a study becomes sentences."""

import base64
from typing import Any

import pytest
from peers.studies import REVIEWER, Cast, make_study

from wardround_common.config import parse_yaml
from wardround_common.documents import sha256_digest
from wardround_common.errors import ConfigError
from wardround_common.plain_words import LEAVES_THE_HOSPITAL, cost, explain, vanishing
from wardround_common.privacy.accountant import price
from wardround_common.privacy.mechanism import Evaluation
from wardround_common.study import Cohort, Member, Reviewer, Server, Study
from wardround_common.study_file import StudyFile, compile_study, render_study_file, thresholds
from wardround_common.study_template import template_study

KEYS = {name: "ed25519:" + base64.b64encode(bytes([i]) * 32).decode() for i, name in enumerate("abcde")}
FILE = template_study(name="demo", members=("a", "b", "c"), model="minilm")
CALLS: list[tuple[float, float, float, int]] = []


def calibrate(epsilon: float, delta: float, sample_rate: float, steps: int, beside: object) -> float:
    CALLS.append((epsilon, delta, sample_rate, steps))
    return 0.8


def compiled(file: StudyFile, **changes: Any) -> Study:
    arguments: dict[str, Any] = {
        "server": Server(name="operator", identity=KEYS["e"], log="log+01020304+AQ==", update_key="AAAA"),
        "members": KEYS,
        "reviewers": (Reviewer(name="board", recipient=REVIEWER),),
        "model_content": sha256_digest(b"model"),
        "adapter_initial": sha256_digest(b"adapter"),
        "adapter_parameters": 63_381,
        "calibrate": calibrate,
    }
    return compile_study(file, **{**arguments, **changes})


def changed(section: str, **fields: Any) -> StudyFile:
    return FILE.model_copy(update={section: getattr(FILE, section).model_copy(update=fields)})


def test_compiles_to_a_study_with_keys_digests_and_constants() -> None:
    study = compiled(FILE)
    assert Study.from_bytes(study.to_bytes()) == study
    assert [m.identity for m in study.cohort.members] == [KEYS["a"], KEYS["b"], KEYS["c"]]
    assert (study.model.content, study.adapter.initial, study.adapter.parameters) == (
        sha256_digest(b"model"), sha256_digest(b"adapter"), 63_381
    )  # fmt: skip
    assert study.privacy.divisor == pytest.approx(0.05 * 5_000)


def test_noise_is_calibrated_for_all_rounds_and_spare_attempts() -> None:
    CALLS.clear()
    assert compiled(FILE).privacy.noise_multiplier == 0.8
    assert CALLS == [(4.0, 1e-5, 0.05, (20 + 2) * 6)]


def test_noise_that_is_given_is_taken() -> None:
    CALLS.clear()
    assert compiled(changed("privacy", noise_multiplier=1.25)).privacy.noise_multiplier == 1.25
    assert CALLS == []


def test_a_member_that_is_not_enrolled_is_named() -> None:
    with pytest.raises(ConfigError, match="not enrolled: zoo") as caught:
        compiled(changed("cohort", members=("a", "b", "zoo")))
    assert caught.value.code == "study-unknown-member"
    assert "a, b, c, d, e" in caught.value.next_step


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (changed("cohort", witness_quorum=2), "witness_quorum k must satisfy"),
        (changed("cohort", min_cohort=2), "min_cohort must lie between"),
        (changed("cohort", members=("a", "a", "b")), "distinct names"),
        (changed("privacy", unit="record"), "records_per_unit must be 1"),
        (FILE.model_copy(update={"released_round": 21}), "released_round lies after the last round"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(file: StudyFile, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        compiled(file)
    assert caught.value.code == "study-inconsistent"


def test_no_reviewer_is_refused() -> None:
    with pytest.raises(ConfigError, match="reviewers"):
        compiled(FILE, reviewers=())


@pytest.mark.parametrize("n", range(2, 101))
def test_suggested_thresholds_are_the_smallest_that_a_study_accepts(n: int) -> None:
    members = tuple(
        Member(name=f"s{i}", identity="ed25519:" + base64.b64encode(bytes([i]) * 32).decode()) for i in range(n)
    )
    for c in range(n):
        least, quorum = thresholds(n, c)
        Cohort(members=members, colluders=c, min_cohort=least, witness_quorum=quorum)
        with pytest.raises(ValueError, match="witness_quorum"):
            Cohort(members=members, colluders=c, min_cohort=least, witness_quorum=quorum - 1)


def test_a_template_for_an_unknown_model() -> None:
    with pytest.raises(ConfigError) as caught:
        template_study(name="demo", members=("a", "b"), model="gpt", colluders=0)
    assert caught.value.code == "study-no-template"


@pytest.mark.parametrize(("members", "colluders"), [(("a",), 0), ((), 0), (("a", "b"), 2)])
def test_a_template_for_too_few_members(members: tuple[str, ...], colluders: int) -> None:
    with pytest.raises(ConfigError) as caught:
        template_study(name="demo", members=members, model="minilm", colluders=colluders)
    assert caught.value.code == "study-too-few-members"


@pytest.mark.parametrize(
    ("members", "colluders", "sentence"),
    [
        ("abc", 1, "No hospital may vanish: while one of the 3 is away, the round pauses until it returns."),
        ("abc", 0, "1 of the 3 hospitals may vanish; if more are away, the round pauses until they return."),
        ("abcde", 1, "1 of the 5 hospitals may vanish; if more are away, the round pauses until they return."),
    ],
)
def test_how_many_hospitals_may_vanish(members: str, colluders: int, sentence: str) -> None:
    file = template_study(name="demo", members=tuple(members), model="minilm", colluders=colluders)
    assert vanishing(file.cohort) == vanishing(compiled(file).cohort) == sentence


def test_explains_everything_that_a_person_decides_on() -> None:
    text = "\n".join(explain(compiled(FILE)))
    for words in (
        "proposed by operator",
        "“say here what the model is for”",
        "column 'text' into 2 labels, learnt from 'label', on data set notes",
        "ffa-lora adapter of rank 8 with 63,381 values",
        "one patient at one hospital at most ε = 4 at δ = 1e-05 (add-or-remove-one)",
        "20 rounds and 2 spare attempts of 6 steps",
        "noise of 0.8 ×",
        "Members: a, b, c. A round counts only with answers of at least 3 of 3 hospitals.",
        "up to 1 member may collude",
        "No hospital may vanish",
        "the server learns their sum, and a single update only if more than 1 of the members help it",
        "3 hospitals open a sum, once",
        "the adapter of round 20 of 20, fixed now; no evaluation",
        "encrypted to board; 3 of 3 hospitals must cosign",
        *LEAVES_THE_HOSPITAL,
    ):
        assert words in text


def test_epsilon_never_stands_alone() -> None:
    for sentence in explain(make_study(Cast())):
        if "ε =" in sentence:
            assert "δ =" in sentence
            assert "record" in sentence
            assert "add-or-remove-one" in sentence


def test_explains_an_instruction_study() -> None:
    study = compiled(template_study(name="demo", members=("a", "b"), model="smollm2", colluders=0))
    text = "\n".join(explain(study))
    assert "answer column 'prompt' as column 'response' does" in text
    assert "no member colludes" in text


def test_the_cost_in_words_has_both_relations_and_the_worst_case_over_all_members() -> None:
    study = make_study(Cast())
    rounds = study.privacy.rounds * len(study.cohort.members)
    everywhere = price([study.mechanism("general", 1)] * rounds, study.privacy.delta).epsilon
    alone = price([study.mechanism("general", 1)] * study.privacy.rounds, study.privacy.delta)
    said = cost(study)
    for number in (alone.epsilon, alone.epsilon_replaced, everywhere):
        assert f"ε = {number:.3f}" in said
    assert alone.epsilon < alone.epsilon_replaced
    assert "add-or-remove-one" in said
    loud = study.privacy.model_copy(update={"noise_multiplier": 0.2, "sample_rate": 1.0, "rounds": 1})
    assert "ε above 100, not protected" in cost(study.model_copy(update={"privacy": loud}))


EVALUATION = Evaluation(every=5, held_out=0.2, noise_multiplier=6.0, loss_bound=4.0)


def test_a_charged_evaluation_is_told_in_plain_words() -> None:
    study = compiled(changed("privacy", evaluation=EVALUATION))
    told = " ".join(explain(study))
    for fact in (
        "about 20% of the patients here are never trained on",
        "In every round whose number 5 divides, at most 4 times",
        "adds noise of 6 × the most that one patient can change",
        "paid for in the ε above, per patient at one hospital (add-or-remove-one)",
        "The released adapter is not among those measured",
        "in its update, three sums over held-out units, noised at the hospital and charged to its budget",
    ):
        assert fact in told, fact
    measured = study.model_copy(update={"released_round": 19})
    assert "The released adapter is among those measured" in " ".join(explain(measured))
    assert "fixed now; no evaluation on public data." in told
    assert "valuation:" not in " ".join(explain(compiled(FILE)))
    assert "held-out" not in " ".join(explain(compiled(FILE)))


def test_the_noise_of_training_is_calibrated_beside_the_evaluation() -> None:
    beside: list[object] = []

    def taking(*arguments: object) -> float:
        beside.append(arguments[-1])
        return 0.8

    compiled(changed("privacy", evaluation=EVALUATION), calibrate=taking)
    compiled(FILE, calibrate=taking)
    assert beside == [{(1.0, 6.0): 22 // 5}, {}]


def test_an_evaluation_in_the_file_round_trips_and_an_unset_one_is_explained() -> None:
    file = changed("privacy", evaluation=EVALUATION)
    assert parse_yaml(render_study_file(file), "study.yaml", StudyFile) == file
    text = render_study_file(FILE)
    assert "# evaluation:" in text
    start = text.index("  # evaluation:")
    example = "\n".join(line.replace("  # ", "  ", 1) for line in text[start:].split("\n\n")[0].splitlines())
    privacy = text[:start] + example + "\n" + text[start:].partition("\n\n")[2]
    assert parse_yaml(privacy, "study.yaml", StudyFile) == file
