"""What a plan says besides its steps: chunks as short as the model's training, and quants that narrow rows turn into
others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from quantyard.execution.runner import PlanRunner
from quantyard.plan.notes import plan_notes
from quantyard.quants.catalog import QUANTS, find_quant
from quantyard.quants.file_size import TensorShape, quant_type_counts, sized_model
from quantyard.quants.narrow_rows import find_narrow_rows, narrow_rows_of_counts, type_counts_bits
from quantyard.sources.resolve import Source
from tests.unit.conftest import MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine

MakeMeasured = Callable[..., PlanRunner]


def shapes(hidden: int, wide: int, vocab: int = 1000) -> tuple[TensorShape, ...]:
    layer = "model.layers.0."
    sizes = {
        "model.embed_tokens.weight": (vocab, hidden), layer + "self_attn.q_proj.weight": (hidden, hidden),
        layer + "mlp.up_proj.weight": (wide, hidden), layer + "mlp.down_proj.weight": (hidden, wide),
        layer + "input_layernorm.weight": (hidden,),
    }  # fmt: skip
    return tuple(TensorShape(name, shape, "BF16") for name, shape in sizes.items())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 256}, ["a chunk of the divergence has 256 in place of 512",
                                            "the timed prompt has 256 in place of 512"]),
        ({"text_config": {"max_position_embeddings": 128}}, ["has 128 in place of 512"] * 2),
        ({"n_positions": 511}, ["has 511 in place of 512"] * 2), ({"max_position_embeddings": 512}, []), ({}, []),
        ({"max_position_embeddings": "many"}, []),
    ],
)  # fmt: skip
def test_a_context_shorter_than_a_chunk_is_told_once_for_each_kind_of_stage(
    config: dict[str, Any], expected: list[str], local_source: Source, measured: MakeMeasured
) -> None:
    source = replace(local_source, config=config)
    notes = plan_notes(measured(source, FakeEngine(), "Q4_K_M,Q8_0").plan)
    assert len(notes) == len(expected)
    assert all(says in note for says, note in zip(expected, notes, strict=True))


@pytest.mark.parametrize(
    ("quant", "says"),
    [
        ("Q4_K_M", "Q4_K_M holds no Q4_K tensor here: the rows of this model are not multiples of 256."),
        ("Q6_K", "It holds Q8_0"), ("Q3_K_S", "QUANT=Q4_0 says what it is"), ("IQ4_XS", "QUANT=IQ4_NL"),
        ("Q8_0", ""), ("Q4_0", ""), ("IQ4_NL", ""), ("F16", ""), ("BF16", ""),
    ],
)  # fmt: skip
def test_a_quant_of_blocks_of_256_is_told_to_hold_none_where_rows_are_narrow(
    quant: str, says: str, local_source: Source, measured: MakeMeasured
) -> None:
    source = replace(local_source, tensors=shapes(64, 128))
    notes = plan_notes(measured(source, FakeEngine(), quant).plan)
    assert (says in notes[0] and "bits per weight" in notes[0]) if says else notes == ()


@pytest.mark.parametrize(("hidden", "wide", "says"), [(256, 512, ""), (64, 512, "of Q4_K_M are Q4_K or its kind"),
                                                      (256, 500, "")])  # fmt: skip
def test_a_model_with_some_wide_rows_is_told_how_much_is_of_that_kind(
    hidden: int, wide: int, says: str, local_source: Source, measured: MakeMeasured
) -> None:
    notes = plan_notes(measured(replace(local_source, tensors=shapes(hidden, wide)), FakeEngine(), "Q4_K_M").plan)
    assert says in notes[0] if says else notes == ()


def test_the_types_of_a_built_file_are_told_only_where_none_is_of_the_name() -> None:
    quant = find_quant("Q4_K_M")
    told = narrow_rows_of_counts(quant, {"Q5_0": 10, "Q8_0": 3, "F32": 40}, 5.97, by_weight=False)
    assert told is not None
    assert told.sentence.endswith("It holds Q5_0, Q8_0, 5.97 bits per weight; QUANT=Q5_0 says what it is.")
    assert narrow_rows_of_counts(quant, {"Q5_0": 10, "Q4_K": 1}, 5.9, by_weight=False) is None
    assert narrow_rows_of_counts(quant, {}, 5.9, by_weight=False) is None


@pytest.mark.parametrize("quant", QUANTS, ids=lambda quant: quant.name)
def test_every_quant_has_an_answer(quant: Any) -> None:
    found = narrow_rows_of_counts(quant, {"Q5_0": 10}, 5.5)
    assert found is None or found.short


# The layers of SmolLM2-135M, a model whose rows are multiples of 256, one where only some are, and one whose rows no
# block divides.
_SMOL = (576, 1536, 49152)
_ADVICE = [
    (_SMOL, "Q4_K_M", "IQ4_NL"), (_SMOL, "Q5_K_M", "Q5_0"), (_SMOL, "Q6_K", "Q5_1"), (_SMOL, "Q3_K_L", "Q4_0"),
    (_SMOL, "Q2_K", "Q4_0"), (_SMOL, "IQ2_XXS", "IQ4_NL"), (_SMOL, "IQ4_NL", None), (_SMOL, "Q8_0", None),
    (_SMOL, "BF16", None), (_SMOL, "COPY", None),
    ((512, 1536, 4096), "Q4_K_M", None), ((512, 1536, 4096), "IQ1_S", None),
    ((64, 1536, 100), "Q4_K_M", "IQ4_NL"), ((100, 200, 1000), "Q4_K_M", "F16"), ((100, 200, 1000), "Q8_0", "F16"),
    ((100, 200, 1000), "Q4_0", "F16"), ((100, 200, 1000), "F16", None), ((48, 80, 1000), "IQ4_NL", "F16"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "quant", "instead"), _ADVICE, ids=str)
def test_what_to_take_instead_is_a_quant_that_is_what_it_says_on_this_model(
    model: tuple[int, int, int], quant: str, instead: str | None
) -> None:
    hidden, wide, vocab = model
    config = {"num_hidden_layers": 1, "num_attention_heads": 1, "tie_word_embeddings": True}

    def types_of(other: Any) -> Mapping[str, int]:
        return quant_type_counts(sized_model(shapes(hidden, wide, vocab), config), other)

    found = find_narrow_rows(find_quant(quant), types_of)
    assert (found.instead if found else None) == instead
    if found is None or not found.instead_bits_per_weight:
        return
    taken = find_quant(found.instead)
    assert find_narrow_rows(taken, types_of) is None
    assert found.instead_bits_per_weight == type_counts_bits(types_of(taken))
    assert found.instead_bits_per_weight <= 1.02 * found.bits_per_weight
    assert found.instead in found.sentence and f"not multiples of {found.block}" in found.sentence


def test_what_several_quants_have_in_common_is_said_once(local_source: Source, measured: MakeMeasured) -> None:
    source = replace(local_source, tensors=shapes(576, 1536))
    head, first, second = plan_notes(measured(source, FakeEngine(), "Q4_K_M,Q6_K,Q8_0").plan)[:3]
    assert head == "Most rows of this model are not multiples of 256, so these are not what their names say:"
    assert first.startswith("Q4_K_M has ") and "QUANT=IQ4_NL is what its name says, with " in first
    assert second.startswith("Q6_K has ") and "QUANT=Q5_1" in second


def test_what_a_name_does_not_say_is_recorded_with_the_file_and_told_at_the_end_of_the_build(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    source = replace(local_source, tensors=shapes(*_SMOL))
    built = {file.quant: file for file in make_runner(source, FakeEngine(), "Q4_K_M,Q8_0").run(notes)}
    found = built["Q4_K_M"].record.narrow_rows
    assert found is not None and found.instead == "IQ4_NL" and built["Q4_K_M"].note == found.sentence
    assert built["Q8_0"].record.narrow_rows is None and built["Q8_0"].note == ""
    assert "narrow_rows" not in built["Q8_0"].record.model_dump()
