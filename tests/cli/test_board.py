from flux_klein_async.cli.board import Board, Standing
from flux_klein_async.events import Cancelled, Failed, Finished, StateChanged, Submitted, Uncertain
from flux_klein_async.models import RequestState


def submitted(index: int) -> Submitted:
    return Submitted(at=0.0, request_id=f"r{index}", tag=index, seconds=0.1)


def changed(index: int, state: RequestState) -> StateChanged:
    return StateChanged(at=0.0, request_id=f"r{index}", tag=index, state=state, queue_position=None)


def finished(index: int) -> Finished:
    return Finished(at=0.0, request_id=f"r{index}", tag=index, seconds=1.0, polls=1, lag_max=None, cost_usd=None)


def counts(board: Board) -> tuple[int, int, int, int]:
    return board.queued, board.running, board.done, board.failed


def test_counts_items_from_queue_to_end() -> None:
    board = Board(3)
    board.note(submitted(0))
    board.note(submitted(1))
    assert counts(board) == (2, 0, 0, 0)
    board.note(changed(0, RequestState.IN_PROGRESS))
    assert counts(board) == (1, 1, 0, 0)
    board.note(finished(0))
    assert counts(board) == (1, 1, 0, 0), "it runs until its files are saved"
    board.end(0, failed=False)
    board.end(1, failed=True)
    assert counts(board) == (0, 0, 1, 1)
    assert board.ended == 2
    assert board.is_ended(1)
    assert not board.is_ended(2)


def test_items_under_way_are_known_with_their_last_state() -> None:
    board = Board(3)
    for index in (2, 1, 0):
        board.note(submitted(index))
    board.note(Cancelled(at=0.0, request_id="r1", tag=1, cancelled=True))
    board.note(Cancelled(at=0.0, request_id="r2", tag=2, cancelled=False))
    board.end(0, failed=True)
    assert list(board.under_way()) == [
        (1, Standing("r1", RequestState.CANCELLED)),
        (2, Standing("r2", RequestState.IN_PROGRESS)),
    ]


def test_what_comes_after_an_end_changes_nothing() -> None:
    board = Board(1)
    board.end(0, failed=True)
    board.note(submitted(0))
    assert counts(board) == (0, 0, 0, 1)


def test_other_events_and_other_calls_are_no_items() -> None:
    board = Board(1)
    board.note(Submitted(at=0.0, request_id="r", seconds=0.1))
    board.note(Failed(at=0.0, request_id="r0", tag=0, error_type="E", error="e"))
    board.note(Uncertain(at=0.0, tag=0, error="lost"))
    assert counts(board) == (0, 0, 0, 0)
    assert board.uncertain == 1
