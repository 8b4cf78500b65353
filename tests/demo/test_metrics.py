"""Own metrics against scikit-learn, and the re-weighted accuracy against a hand count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from wardround_demo.metrics import accuracy, accuracy_under, macro_f1

pairs = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=60)


@given(pairs)
def test_both_measures_are_scikit_learns(found):
    truth, predicted = zip(*found, strict=True)
    assert accuracy(truth, predicted) == pytest.approx(accuracy_score(truth, predicted))
    reference = f1_score(truth, predicted, average="macro", zero_division=0)
    assert macro_f1(truth, predicted) == pytest.approx(reference)


def test_accuracy_under_a_case_mix_by_hand():
    truth = ["a", "a", "a", "a", "b", "b"]
    predicted = ["a", "a", "a", "b", "b", "a"]  # a: 3 of 4, b: 1 of 2
    assert accuracy_under({"a": 0.2, "b": 0.8}, truth, predicted) == pytest.approx(0.2 * 0.75 + 0.8 * 0.5)
    assert accuracy_under({"a": 1.0, "b": 0.0}, truth, predicted) == pytest.approx(0.75)


def test_the_test_sets_own_mix_gives_plain_accuracy():
    truth, predicted = list("aaabbc"), list("aabbcc")
    mix = {label: truth.count(label) / len(truth) for label in "abc"}
    assert accuracy_under(mix, truth, predicted) == pytest.approx(accuracy(truth, predicted))


def test_a_chapter_without_test_texts_is_left_out():
    assert accuracy_under({"a": 0.5, "z": 0.5}, ["a", "a"], ["a", "b"]) == pytest.approx(0.5)


@pytest.mark.parametrize(("truth", "predicted"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_nothing_to_compare_is_misuse(truth, predicted):
    for measure in (accuracy, macro_f1, lambda t, p: accuracy_under({"a": 1.0}, t, p)):
        with pytest.raises(ValueError, match="cannot be compared"):
            measure(truth, predicted)


def test_a_mix_that_the_test_set_does_not_have_is_misuse():
    with pytest.raises(ValueError, match="no text of this case mix"):
        accuracy_under({"z": 1.0}, ["a"], ["a"])
