"""A turn counts only if the answers are right and the client ran."""

import sys

import pytest

from benchmarks.peers.systems import BY_NAME
from benchmarks.peers.turn import ClientFailed, Turn, WrongAnswers, _compare, _run


def test_system_with_another_best_class_is_no_peer() -> None:
    with pytest.raises(WrongAnswers, match=r"fastapi: payloads \[1\] of 1 .* 'plain'"):
        _compare(BY_NAME["fastapi"], [[1, 2], [3, 4]], [[1, 9], [4, 3]])


def test_system_with_fewer_answers_is_no_peer() -> None:
    with pytest.raises(WrongAnswers, match=r"payloads \[1\] of 1"):
        _compare(BY_NAME["fastapi"], [[1]], [[1], [2]])


def test_client_that_fails_is_told_by_its_last_line() -> None:
    with pytest.raises(ClientFailed, match=r"^ValueError: no answer$"):
        _run([sys.executable, "-c", "raise ValueError('no answer')"])


def test_client_prints_its_report_as_json() -> None:
    assert _run([sys.executable, "-c", "print('[1, 2]')"]) == [1, 2]


def test_cpu_of_a_turn_is_that_of_all_processes() -> None:
    turn = Turn({}, {}, {"gateway": 10.5, "infer_svc": 20.0})
    assert turn.record()["total_cpu_us"] == 30.5
