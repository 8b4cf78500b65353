"""Every way in which an answer can be wrong, and the reason that the audit trail gets."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import pytest
from peers.answers import (
    MemoryBlobs,
    header_for,
    honest_answer,
    seal_plain,
    sign_answer,
    small_update,
    unseal_plain,
)
from peers.studies import SITES, Cast, make_adapter, make_study, study_task

from wardround_common.adapter import encode_tensors, initial_tensors
from wardround_common.documents import canonical_json, sha256_digest
from wardround_common.errors import VerificationError
from wardround_common.rounds import BlobRef, Refused, RoundPlan
from wardround_server.rounds.answers import AcceptedAnswer, AnswerChecker, AnswerRefused, AnswerRejected

SITE = SITES[0]
OTHER = "sha256:" + "0" * 64


class Bench:
    def __init__(self) -> None:
        self.cast = Cast()
        self.study = make_study(self.cast)
        _, self.layout = make_adapter(study_task())
        self.blobs = MemoryBlobs()
        first = initial_tensors(self.layout, 7)
        adapter = self.blobs.put(encode_tensors({s.name: first[s.name] for s in self.layout.trained}))
        self.plan = RoundPlan(study=self.study.sha256(), round=1, cohort=SITES, adapter=adapter)
        self.checker = AnswerChecker(
            study=self.study, plan=self.plan, specs=self.layout.trained, open=self._open, unseal=unseal_plain
        )

    def _open(self, ref: BlobRef) -> BinaryIO:
        try:
            return self.blobs.open(ref)
        except KeyError:
            raise VerificationError("blob-missing", "no such blob", next_step="-") from None

    def sealed(self, data: bytes, site: str = SITE, round_: int = 1) -> BlobRef:
        return self.blobs.put(seal_plain(data, round_, site))

    def answer(self, sealed: BlobRef, signer: str = SITE, record: object = None, **changes: object) -> bytes:
        header = header_for(self.study, self.plan, SITE, sealed, **changes)
        return sign_answer(self.cast, self.study, signer, header, record).to_bytes()

    def good(self) -> BlobRef:
        return self.sealed(encode_tensors(small_update(self.layout)))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_honest_answer_is_accepted_with_its_tensors(bench: Bench):
    answer, sealed = honest_answer(
        bench.cast, bench.study, bench.plan, SITE, bench.blobs, small_update(bench.layout, 0.25)
    )
    accepted, values = bench.checker.check(SITE, answer.to_bytes(), (sealed,))
    assert isinstance(accepted, AcceptedAnswer)
    for _ in range(2):
        assert all(np.all(piece == 0.25) for piece in values())
    assert accepted.header.plan == bench.plan.sha256()


@pytest.mark.parametrize("code", ["refused", "failed-locally", "busy"])
def test_refusal_is_passed_on(bench: Bench, code: str):
    with pytest.raises(AnswerRefused) as caught:
        bench.checker.check(SITE, Refused(code=code).to_bytes(), ())
    assert caught.value.code == code


HEADER_ATTACKS = {
    "another study": ({"study": OTHER}, "wrong-study"),
    "another site": ({"site": SITES[1]}, "wrong-study"),
    "another round": ({"round": 2}, "replayed"),
    "another plan": ({"plan": OTHER}, "replayed"),
    "another adapter": ({"adapter": OTHER}, "wrong-model"),
    "another length": ({"parameters": 1}, "bad-shape"),
}


@pytest.mark.parametrize("attack", HEADER_ATTACKS)
def test_header_that_names_something_else_is_rejected(bench: Bench, attack: str):
    changes, reason = HEADER_ATTACKS[attack]
    sealed = bench.good()
    # The record of the true site and round is signed along, so that only the header is at fault.
    record = bench.study.mechanism(SITE, 1)
    with pytest.raises(AnswerRejected) as caught:
        bench.checker.check(SITE, bench.answer(sealed, record=record, **changes), (sealed,))
    assert caught.value.reason == reason


def test_signature_of_another_member_is_rejected(bench: Bench):
    sealed = bench.good()
    with pytest.raises(AnswerRejected) as caught:
        bench.checker.check(SITE, bench.answer(sealed, signer=SITES[1]), (sealed,))
    assert caught.value.reason == "bad-signature"


def test_record_with_less_noise_is_rejected(bench: Bench):
    weaker = bench.study.mechanism(SITE, 1).model_copy(update={"noise_multiplier": 0.5})
    sealed = bench.good()
    with pytest.raises(AnswerRejected) as caught:
        bench.checker.check(SITE, bench.answer(sealed, record=weaker), (sealed,))
    assert caught.value.reason == "wrong-study"


def test_blob_that_the_header_does_not_name_is_rejected(bench: Bench):
    other = bench.sealed(b"else")
    with pytest.raises(AnswerRejected) as caught:
        bench.checker.check(SITE, bench.answer(bench.good()), (other,))
    assert caught.value.reason == "bad-digest"


def test_missing_blob_is_rejected(bench: Bench):
    missing = BlobRef(digest=sha256_digest(b"never sent"), length=10)
    with pytest.raises(AnswerRejected) as caught:
        bench.checker.check(SITE, bench.answer(missing), (missing,))
    assert caught.value.reason == "bad-digest"


def test_update_sealed_for_another_round_is_rejected(bench: Bench):
    sealed = bench.sealed(encode_tensors(small_update(bench.layout)), round_=2)
    with pytest.raises(AnswerRejected) as caught:
        bench.checker.check(SITE, bench.answer(sealed), (sealed,))
    assert caught.value.reason == "undecryptable"


def _nan(bench: Bench) -> bytes:
    tensors = small_update(bench.layout)
    next(iter(tensors.values())).flat[0] = np.nan
    return encode_tensors(tensors)


def _wrong_shape(bench: Bench) -> bytes:
    tensors = small_update(bench.layout)
    name = next(iter(tensors))
    return encode_tensors({**tensors, name: np.zeros((1, 1), np.float32)})


def _one_tensor_missing(bench: Bench) -> bytes:
    return encode_tensors(dict(list(small_update(bench.layout).items())[1:]))


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (_nan, "not-finite"),
        (_wrong_shape, "bad-shape"),
        (_one_tensor_missing, "bad-shape"),
        (lambda b: b"", "bad-shape"),
    ],
)
def test_update_with_wrong_content_is_rejected(bench: Bench, forge: Callable[[Bench], bytes], reason: str):
    sealed = bench.sealed(forge(bench))
    _, values = bench.checker.check(SITE, bench.answer(sealed), (sealed,))
    with pytest.raises(AnswerRejected) as caught:
        list(values())
    assert caught.value.reason == reason


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"{}", canonical_json({"format": "wardround/round-answer/1"})])
def test_garbage_is_malformed(bench: Bench, document: bytes):
    with pytest.raises(AnswerRejected) as caught:
        bench.checker.check(SITE, document, ())
    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("code", "reason"), [("blob-wrong-digest", "bad-digest"), ("sealed-update-unreadable", "undecryptable")]
)
def test_what_breaks_only_while_the_content_is_read_keeps_its_reason(bench: Bench, code: str, reason: str):
    def broken() -> Iterator[bytes]:
        raise VerificationError(code, "changed on disk", next_step="-")
        yield b""

    sealed = bench.good()
    checker = replace(bench.checker, unseal=lambda source, round_, site: broken)
    _, values = checker.check(SITE, bench.answer(sealed), (sealed,))
    with pytest.raises(AnswerRejected) as caught:
        list(values())
    assert caught.value.reason == reason
