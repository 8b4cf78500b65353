"""What `client status` shows: the phase, also before, while and after there is no line to the server."""

import pytest

from wardround_client.screen import _DOING
from wardround_client.status import PHASES, StatusBoard, read_status


@pytest.fixture
def board(tmp_path):
    board = StatusBoard(tmp_path / "status.json", clock=lambda: 100.0)
    board.shown = lambda: (read_status(tmp_path / "status.json").phase, read_status(tmp_path / "status.json").message)
    return board


def test_every_phase_has_words():
    assert set(_DOING) == set(PHASES)


def test_a_client_that_has_found_the_server_waits(board):
    board.away("connecting", "connecting to ward:8443")
    assert board.shown() == ("connecting", "connecting to ward:8443")
    board.back()
    assert board.shown() == ("waiting", "")


@pytest.mark.parametrize("phase", ["done", "aborted", "failed", "waiting"])
def test_after_an_interruption_it_is_shown_again_what_was_shown_before(board, phase):
    board.show(phase=phase, message="as it was", round=7)
    board.away("connecting", "server not reachable, retrying in 1 s")
    board.away("paused", "paused by this hospital")
    board.away("connecting", "connecting to ward:8443")
    board.back()
    assert board.shown() == (phase, "as it was")


def test_a_work_that_goes_on_while_the_line_is_down_is_not_overwritten(board):
    board.show(phase="training", message="")
    board.away("connecting", "retrying in 1 s")
    board.show(phase="sealing", message="")
    board.back()
    assert board.shown() == ("sealing", "")
