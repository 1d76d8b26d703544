"""Answers of the servers under measurement, sampled under load and compared with ONNX Runtime in process."""

from __future__ import annotations

from typing import Final

from fitserve_benchmarks.serve_load import own_turn
from fitserve_benchmarks.serve_requests import Traffic, is_right
from fitserve_benchmarks.serve_rows import Check
from fitserve_benchmarks.serve_servers import Contestant, Launch

_CHECK_S: Final = 0.5
_CHECK_IN_FLIGHT: Final = 8
_HTTP_CHECKS: Final = 8


def check_answers(contestant: Contestant, traffic: Traffic, in_flight: int = _CHECK_IN_FLIGHT) -> tuple[int, Check]:
    """Checks sampled answers under load, which brings several requests into one run.

    Args:
        contestant: Who answers.
        traffic: Different requests and their right answers.
        in_flight: Calls in flight.

    Returns:
        Length of the answer to the first request, and what the check found.

    Raises:
        OSError: the contestant did not answer, or with an error.
        LoadFailedError: the load could not be put on.
    """
    launch = contestant.launch
    size = len(contestant.ask(launch.request_of(traffic.messages[0])))
    samples = _samples(contestant, traffic, in_flight)
    wrong_count = sum(not _is_right(launch, traffic, index, answer) for index, answer in samples)
    return size, Check(traffic.model, traffic.batch_size, contestant.name, len(samples), wrong_count)


def _samples(contestant: Contestant, traffic: Traffic, in_flight: int) -> list[tuple[int, bytes]]:
    launch = contestant.launch
    if launch.target.protocol == "grpc":
        return list(own_turn(launch.target, traffic.messages, in_flight, _CHECK_S).samples)
    count = min(_HTTP_CHECKS, len(traffic.messages))
    return [(index, contestant.ask(launch.request_of(traffic.messages[index]))) for index in range(count)]


def _is_right(launch: Launch, traffic: Traffic, index: int, answer: bytes) -> bool:
    if launch.is_echo:
        return answer == traffic.messages[index]
    try:
        return is_right(launch.message_of(answer), traffic.expected[index])
    except (ValueError, KeyError):
        return False
