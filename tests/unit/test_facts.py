"""The facts of a stage are read by one typed model for each stage."""

from __future__ import annotations

import pytest
from pydantic import JsonValue, ValidationError

from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.checked_facts import stage_facts_by_file
from quantyard.protocol.facts import CalibrateFacts, Facts, VerifyFacts
from quantyard.protocol.measuring_facts import DivergenceFacts, EvaluateFacts, SpeedFacts
from quantyard.store.manifest import StageRecord
from tests.manifests import manifest_of

_VERIFIED: dict[str, JsonValue] = {"bits_per_weight": 4.5}


def test_an_absent_fact_has_its_default() -> None:
    verified = VerifyFacts.read(_VERIFIED)
    assert (verified.probes, verified.chats, verified.mismatches_allowed) == (None, None, [])
    assert CalibrateFacts.read({}).text_sha256 is None and EvaluateFacts.read({}).n_questions == 0
    assert SpeedFacts.read({}).prompt_tokens_per_s is DivergenceFacts.read({}).mean_kld is None
    assert Facts.read({}).n_params is None


def test_a_fact_that_no_model_names_is_kept() -> None:
    assert VerifyFacts.read(_VERIFIED | {"tensors": 2}).model_dump()["tensors"] == 2


@pytest.mark.parametrize(
    ("kind", "facts", "says"),
    [
        (VerifyFacts, {}, "facts.bits_per_weight: Field required"),
        (VerifyFacts, _VERIFIED | {"probes": "565"}, "facts.probes: .* integer"),
        (VerifyFacts, _VERIFIED | {"probes": -1}, "facts.probes: .* greater than or equal to 0"),
        (EvaluateFacts, {"tasks": {"arc_easy": {"acc": "0.5"}}}, "facts.tasks.arc_easy.acc: .* number"),
        (SpeedFacts, {"prompt_tokens_per_s": float("nan")}, "facts.prompt_tokens_per_s: .* finite"),
        (Facts, [], "facts: .* dictionary"),
    ],
)
def test_a_fact_of_another_type_or_out_of_range_is_refused_by_name(
    kind: type[Facts], facts: JsonValue, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        kind.read(facts)


def test_a_record_with_facts_that_cannot_be_read_is_refused() -> None:
    record = manifest_of().stages["verify Q8_0"].model_dump()
    assert StageRecord.model_validate(record).facts == record["facts"]
    with pytest.raises(ValidationError, match=r"facts\.chats"):
        StageRecord.model_validate(record | {"facts": _VERIFIED | {"chats": "ten"}})


def test_a_shared_run_has_the_facts_of_each_file() -> None:
    one: dict[str, JsonValue] = {"perplexity": 9.0, "mean_kld": None}
    shared = StageResult(stage="divergence", exit_code=ExitCode.DONE, facts={"BF16": one, "Q8_0": one})
    assert stage_facts_by_file(shared) == {"BF16": one, "Q8_0": one}
    assert stage_facts_by_file(shared.model_copy(update={"facts": one})) == {}
