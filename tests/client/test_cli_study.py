"""What a person reads before approving, about whose records they are."""

import pytest
from peers.studies import Cast, make_study

from wardround_client.cli_study import _show_identifiers
from wardround_common.output import Output

STUDY = make_study(Cast())


@pytest.mark.parametrize(("unit", "repeated", "lines"), [("record", 3, 0), ("patient", 0, 1), ("patient", 3, 2)])
def test_what_cannot_be_checked_is_said(capsys, unit, repeated, lines):
    study = STUDY.model_copy(update={"privacy": STUDY.privacy.model_copy(update={"unit": unit})})
    _show_identifiers(Output(), study, repeated)
    said = capsys.readouterr().out
    assert len(said.splitlines()) == lines
    assert ("two unrelated identifiers cannot be found" in said) == (unit == "patient")
    assert ("3 short texts" in said) == (lines == 2)
