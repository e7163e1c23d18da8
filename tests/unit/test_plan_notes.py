"""What a plan says besides its steps: chunks as short as the model's training, and quants that narrow rows turn into
others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from quantyard.execution.runner import PlanRunner
from quantyard.plan.notes import plan_notes
from quantyard.quants.catalog import QUANTS, find_quant
from quantyard.quants.file_size import TensorShape
from quantyard.quants.narrow_rows import narrow_rows_note
from quantyard.sources.resolve import Source
from tests.unit.fake_engine import FakeEngine

MakeMeasured = Callable[..., PlanRunner]


def shapes(hidden: int, wide: int) -> tuple[TensorShape, ...]:
    layer = "model.layers.0."
    sizes = {
        "model.embed_tokens.weight": (1000, hidden), layer + "self_attn.q_proj.weight": (hidden, hidden),
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


@pytest.mark.parametrize(("hidden", "wide", "says"), [(256, 512, ""), (64, 512, "of its quantized weights alone"),
                                                      (256, 500, "")])  # fmt: skip
def test_a_model_with_some_wide_rows_is_told_how_much_is_of_that_kind(
    hidden: int, wide: int, says: str, local_source: Source, measured: MakeMeasured
) -> None:
    notes = plan_notes(measured(replace(local_source, tensors=shapes(hidden, wide)), FakeEngine(), "Q4_K_M").plan)
    assert says in notes[0] if says else notes == ()


def test_the_types_of_a_built_file_are_told_only_where_none_is_of_the_name() -> None:
    quant = find_quant("Q4_K_M")
    told = narrow_rows_note(quant, {"Q5_0": 10, "Q8_0": 3, "F32": 40}, 5.97, by_weight=False)
    assert told.endswith("It holds Q5_0, Q8_0, 5.97 bits per weight; QUANT=Q5_0 says what it is.")
    assert narrow_rows_note(quant, {"Q5_0": 10, "Q4_K": 1}, 5.9, by_weight=False) == ""
    assert narrow_rows_note(quant, {}, 5.9, by_weight=False) == ""


@pytest.mark.parametrize("quant", QUANTS, ids=lambda quant: quant.name)
def test_every_quant_has_an_answer(quant: Any) -> None:
    assert isinstance(narrow_rows_note(quant, {"Q5_0": 10}, 5.5), str)
