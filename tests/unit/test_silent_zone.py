"""Files in the silent zone are equal in quality: then the worst domain, behaviours, size and speed decide, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from quantyard.metrics.choice import SILENT_ZONE_NATS, best_file, silent_zone_of
from quantyard.metrics.pareto import ParetoEntry
from quantyard.protocol.estimates import Estimate, Interval


@dataclass(frozen=True)
class File:
    """What the rule looks at."""

    label: str
    size_bytes: int
    kld: float
    tokens_per_s: float = 60.0
    worst_domain: Interval | None = None
    worse_behaviours: int | None = None

    @property
    def quality(self) -> Estimate:
        return Estimate(value=self.kld, stderr=self.kld / 100)  # so no two values tie by their intervals alone

    @property
    def entry(self) -> ParetoEntry:
        return ParetoEntry(self.label, self.size_bytes, self.kld, self.tokens_per_s)


Q8, Q6 = File("Q8_0", 800, 0.001), File("Q6_K", 600, 0.005)
Q5, Q4 = File("Q5_K_M", 500, 0.0099), File("Q4_K_M", 400, 0.05)


def _taken(*files: File) -> tuple[str, str]:
    found = best_file(files, SILENT_ZONE_NATS)
    assert found is not None
    return found.best.label, found.decided_by


def test_the_smallest_file_of_the_silent_zone_is_taken_and_none_beyond_it() -> None:
    assert _taken(Q8, Q6, Q5, Q4) == ("Q5_K_M", "size")
    assert _taken(Q8, Q4) == ("Q8_0", "quality")
    assert _taken(Q8, replace(Q5, kld=0.0101)) == ("Q8_0", "quality"), "just beyond it"
    found = best_file((Q8, Q6, Q5, Q4), SILENT_ZONE_NATS)
    assert found is not None and [file.label for file in found.equal] == ["Q8_0", "Q6_K"]
    assert found.runner_up == Q4, "the next one is not a file that is equal"


def test_a_worse_domain_or_behaviour_weighs_more_than_size() -> None:
    low, high = (Interval(value=x, low=x * 0.9, high=x * 1.1) for x in (0.02, 0.2))
    same = replace(Q6, worst_domain=low), replace(Q5, worst_domain=high)
    assert _taken(*same) == ("Q6_K", "worst domain")
    assert _taken(replace(Q6, worst_domain=low), replace(Q5, worst_domain=low)) == ("Q5_K_M", "size")
    assert _taken(replace(Q6, worse_behaviours=0), replace(Q5, worse_behaviours=1)) == ("Q6_K", "behaviours")
    mixed = replace(same[0], worse_behaviours=2), replace(same[1], worse_behaviours=0)
    assert _taken(*mixed) == ("Q6_K", "worst domain"), "domains come first"


@pytest.mark.parametrize("what", ["worst_domain", "worse_behaviours"])
def test_what_was_not_measured_of_all_equal_files_decides_nothing(what: str) -> None:
    value = Interval(value=0.2, low=0.19, high=0.21) if what == "worst_domain" else 3
    assert _taken(Q6, replace(Q5, **{what: value})) == ("Q5_K_M", "size")  # type: ignore[arg-type]


def test_of_equal_sizes_the_faster_file_is_taken() -> None:
    assert _taken(Q5, replace(Q5, label="other", kld=0.00995, tokens_per_s=70.0)) == ("other", "speed")


def test_only_divergences_have_a_silent_zone() -> None:
    assert silent_zone_of("mean KLD") == silent_zone_of("KLD of the file") == 0.01
    assert silent_zone_of("ΔPPL") == silent_zone_of("cosine distance") == 0.0
