"""Histograms as plain numbers, and as a scrape has them."""

from infer_svc.tally import Tally, histogram


def test_tally_counts_a_value_at_its_bound_and_one_beyond_the_last() -> None:
    tally = Tally((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        tally.add(value)
    assert (tally.counts, tally.total) == ([2, 2, 1], 7.5)


def test_family_has_what_is_up_to_each_bound_and_the_sum() -> None:
    tally = Tally((1.0, 2.0))
    for value in (0.5, 1.5, 1.75, 9.0):
        tally.add(value)
    family = histogram("seconds", "Waiting", ("model", "version"), {("a", "1"): tally})
    found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    assert found == {
        "1.0": 1, "2.0": 3, "+Inf": 4, "seconds_count": 4, "seconds_sum": 12.75,
    }  # fmt: skip
    assert all(sample.labels["model"] == "a" for sample in family.samples)
