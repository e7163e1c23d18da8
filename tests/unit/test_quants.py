"""The table of quants: its shape, how names are found, and which tensor types a quant is made of."""

from __future__ import annotations

import pytest

from quantyard.errors import BadRequest, UnknownQuant
from quantyard.formats.ggml_types import FALLBACKS
from quantyard.quants.catalog import NICKNAMES, QUANTS, find_quant
from quantyard.quants.selection import parse_quants
from quantyard.quants.tensor_types import BASE_TYPES, BLOCKS, RULES, TensorPlace, quant_tensor_type

# llama-quantize refused these, and only these, without an imatrix on a llama with rows of 256 and of 512.
REFUSED_WITHOUT_IMATRIX = {
    "Q2_K_S", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS",
}  # fmt: skip


def test_no_two_rows_share_a_name() -> None:
    assert len({quant.name for quant in QUANTS}) == len(QUANTS)


def test_only_aliases_and_copy_share_an_id() -> None:
    ids = [quant.ftype for quant in QUANTS if not quant.alias_of and quant.name != "COPY"]
    assert len(set(ids)) == len(ids)


def test_an_alias_has_the_figures_of_what_it_stands_for() -> None:
    for alias in (quant for quant in QUANTS if quant.alias_of):
        whole = find_quant(alias.name)
        assert whole.alias_of is None
        assert (alias.ftype, alias.bits_per_weight) == (whole.ftype, whole.bits_per_weight)


def test_every_row_says_when_to_choose_it_in_one_short_line() -> None:
    for quant in QUANTS:
        assert 0 < len(quant.use) <= 90
        assert "\n" not in quant.use


def test_rows_run_from_the_largest_to_the_smallest() -> None:
    sizes = [quant.bits_per_weight for quant in QUANTS if quant.name != "COPY"]
    assert sizes == sorted(sizes, reverse=True)


def test_the_types_that_llama_quantize_refuses_without_an_imatrix_are_marked() -> None:
    assert {quant.name for quant in QUANTS if quant.needs_imatrix} == REFUSED_WITHOUT_IMATRIX


def test_the_tables_name_only_types_and_quants_that_exist() -> None:
    names = {quant.name for quant in QUANTS}
    assert set(BASE_TYPES) | {name for row in RULES for name in row[0]} | set(NICKNAMES.values()) <= names
    assert {row[3] for row in RULES} | set(FALLBACKS) | set(FALLBACKS.values()) <= set(BLOCKS)
    assert {BASE_TYPES.get(name, name) for name in names - {"COPY"} if not find_quant(name).alias_of} <= set(
        BLOCKS
    ) | names


@pytest.mark.parametrize("text", ["Q4_K_M", "q4_k_m", " Q4_K_M ", "Q4_K", "q4_k"])
def test_a_name_is_found_in_any_case_and_by_its_shorthand(text: str) -> None:
    assert find_quant(text).name == "Q4_K_M"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Q4_KM", "Q4_K_M"),
        ("Q4KM", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("Q4_K_XL", "Q4_K_M"),
        ("Q4_K_N", "Q4_K_M"),
        ("Q5KS", "Q5_K_S"),
        ("Q8", "Q8_0"),
        ("Q4.0", "Q4_0"),
        ("IQ4XS", "IQ4_XS"),
        ("IQ3XX", "IQ3_XXS"),
        ("4bit", "Q4_K_M"),
        ("int4", "Q4_K_M"),
        ("INT8", "Q8_0"),
        ("fp16", "F16"),
        ("GPTQ", "Q4_K_M"),
    ],
)
def test_a_misspelt_quant_gets_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(UnknownQuant) as caught:
        find_quant(typed)
    assert caught.value.message == f"Unknown quant {typed!r}. Did you mean {meant!r}?"
    assert caught.value.hint == "List them: make quants"


def test_a_name_like_no_other_gets_the_usual_choice_not_a_guess() -> None:
    with pytest.raises(UnknownQuant, match=r"^Unknown quant 'xyz'\. The usual choice is 'Q4_K_M'\.$"):
        find_quant("xyz")


@pytest.mark.parametrize("text", ["Q4_K_M,Q8_0", "q4_k_m, q8_0", " Q4_K_M Q8_0,", "Q4_K_M,Q4_K,Q8_0,Q8_0"])
def test_a_list_is_split_at_commas_and_spaces_and_keeps_the_first_of_duplicates(text: str) -> None:
    assert [quant.name for quant in parse_quants(text)] == ["Q4_K_M", "Q8_0"]


@pytest.mark.parametrize("text", ["", "  ", ","])
def test_an_empty_list_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest, match="empty"):
        parse_quants(text)


def test_one_unknown_name_in_a_list_is_named() -> None:
    with pytest.raises(UnknownQuant, match="'Q9_K'"):
        parse_quants("Q8_0,Q9_K")


def test_a_row_that_a_type_cannot_hold_gets_its_stand_in_and_an_odd_row_f16() -> None:
    place = TensorPlace(i=10, n=30)
    assert quant_tensor_type(find_quant("Q4_K_M"), "gate", 4096, place) == "Q4_K"
    assert quant_tensor_type(find_quant("Q4_K_M"), "gate", 576, place) == "Q5_0"
    assert quant_tensor_type(find_quant("Q4_K_M"), "gate", 577, place) == "F16"


def test_a_row_that_q1_0_cannot_hold_is_refused_as_llama_quantize_does() -> None:
    with pytest.raises(BadRequest, match="Q1_0 needs rows of a multiple of 128 weights; this model has rows of 576"):
        quant_tensor_type(find_quant("Q1_0"), "gate", 576, TensorPlace(i=0, n=30))


def test_a_quant_is_marked_exactly_when_its_mixture_holds_a_type_that_needs_an_imatrix() -> None:
    cannot_do_without = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}
    for quant in (quant for quant in QUANTS if quant.name != "COPY" and not quant.alias_of):
        kinds = {
            quant_tensor_type(quant, c, 4096, TensorPlace(i=10, n=32))
            for c in ("q", "k", "v", "attn_out", "up", "down")
        }
        expected = bool(kinds & cannot_do_without) or quant.name == "Q2_K_S"
        assert quant.needs_imatrix == expected, quant.name
