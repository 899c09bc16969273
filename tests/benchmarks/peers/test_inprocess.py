"""The loops give real answers, and agree with the services' own steps."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.inputs import EVERYDAY
from benchmarks.peers.inprocess import LOOPS, OwnOpsLoop, PlainLoop, TextLoop, main, run_loop
from benchmarks.peers.systems import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("place"))
    made.prepare()
    return made


def payloads(place: Place, work: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(place.inputs(work).iterdir())]


def test_there_are_64_distinct_payloads_of_each_kind(place: Place) -> None:
    for work in ("jpeg", "text"):
        assert len(set(payloads(place, work))) == len(payloads(place, work)) == 64


@pytest.mark.parametrize("kind", [PlainLoop, OwnOpsLoop], ids=lambda kind: kind.__name__)
def test_pictures_have_five_classes_and_not_all_the_same(
    kind: type[PlainLoop | OwnOpsLoop], place: Place
) -> None:
    loop = kind(place.root)
    found = [loop(picture) for picture in payloads(place, "jpeg")[:16]]
    assert all(len(set(classes)) == 5 for classes in found)
    assert len({tuple(classes) for classes in found}) > 1


def test_most_texts_are_told_to_be_of_the_language_that_they_are(place: Place) -> None:
    loop = TextLoop(place.root)
    labels = (place.models / "language/labels.txt").read_text().splitlines()
    languages: dict[str, set[str]] = defaultdict(set)
    for line in EVERYDAY.read_text().splitlines():
        name, _, phrases = line.partition(": ")
        for phrase in phrases.split(" | "):
            languages[phrase].add(name)
    texts = [text.decode() for text in payloads(place, "text")]
    right = sum(labels[loop(text.encode())[0]] in languages[text] for text in texts)
    assert right > 0.9 * len(texts)


def test_two_threads_share_the_payloads_and_every_run_is_counted() -> None:
    seen: list[bytes] = []

    def loop(payload: bytes) -> list[int]:
        seen.append(payload)
        return [1]

    report = run_loop(loop, [b"even", b"odd"], threads=2, seconds=0.3)
    assert set(seen) == {b"even", b"odd"}
    assert report.answered == report.requests == len(seen)
    assert report.client_cpu_us is not None and report.client_cpu_us > 0


@pytest.mark.parametrize("name", LOOPS)
def test_loop_process_prints_the_classes_of_each_payload(
    name: str, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = payloads(place, "text" if name == "text" else "jpeg")[0]
    (tmp_path / "000").write_bytes(first)
    main([name, "--place", str(place.root), "--inputs", str(tmp_path), "--once"])
    assert json.loads(capsys.readouterr().out) == [LOOPS[name](place.root)(first)]
