"""The table of systems holds together."""

import sys
from pathlib import Path

import pytest

from benchmarks.load.__main__ import PROTOCOLS, parse
from benchmarks.peers.inprocess import LOOPS
from benchmarks.peers.plot import COLOURS
from benchmarks.peers.systems import BY_NAME, SYSTEMS, Place, System
from benchmarks.peers.table import RATIOS

PLACE = Path("/place")
SERVERS = [system for system in SYSTEMS if system.start]


def started(system: System) -> list[str]:
    assert system.start is not None
    return system.start(Place(PLACE), 4321, system.name).command


def test_names_are_distinct_and_every_ratio_is_of_systems_that_there_are() -> None:
    assert len(BY_NAME) == len(SYSTEMS)
    assert {name for ratio in RATIOS for name in (ratio.over, ratio.under)} <= BY_NAME.keys()


def test_every_system_has_a_reference_and_every_server_a_client() -> None:
    for system in SYSTEMS:
        assert system.reference in LOOPS
        assert bool(system.protocol) == bool(system.start)
        assert not system.protocol or system.protocol in PROTOCOLS


def test_plot_has_a_colour_for_each_line() -> None:
    assert 1 < sum(system.swept for system in SYSTEMS) <= len(COLOURS)


@pytest.mark.parametrize("system", SERVERS, ids=lambda system: system.name)
def test_server_gets_its_port_and_runs_in_its_own_environment(system: System) -> None:
    command = started(system)
    assert any("4321" in word for word in command)
    program = Path(command[0])
    assert program == Path(sys.executable) or program.is_relative_to(system.venvs[0].path)


def test_mesh_over_tcp_differs_from_the_mesh_in_nothing_else() -> None:
    assert started(BY_NAME["mesh-tcp"]) == [*started(BY_NAME["mesh"]), "--tcp"]
    assert started(BY_NAME["mesh-stream"]) == started(BY_NAME["mesh"])


def test_fastapi_has_the_workers_of_its_name() -> None:
    assert started(BY_NAME["fastapi"])[-1] == "1"
    assert started(BY_NAME["fastapi-2"])[-1] == "2"


def test_loop_cannot_be_served() -> None:
    with pytest.raises(ValueError, match="wanted a server"):
        with BY_NAME["loop"].serve(Place(PLACE)):
            pass


@pytest.mark.parametrize("mode", ["closed", "open", "nothing"])
def test_client_without_its_figures_is_refused(mode: str) -> None:
    with pytest.raises(SystemExit):
        parse(["--protocol", "oip", "--address", "a", "--inputs", "i", mode])
