"""Parses the quants that a user asked for: names of types and of recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from quantyard.errors import BadRequest, UnknownQuant
from quantyard.formats.names import shown_name
from quantyard.quants.catalog import LIST_THEM, Quant, find_quant

if TYPE_CHECKING:
    from quantyard.quants.recipe import Recipe


def quant_of_recipe(recipe: Recipe) -> Quant:
    """A recipe as a quant like any other, under its own name."""
    base = find_quant(recipe.base)
    needs_imatrix = base.needs_imatrix or recipe.needs_imatrix
    return replace(base, name=recipe.name, needs_imatrix=needs_imatrix, use=recipe.description, recipe=recipe)


def parse_quants(text: str, recipes: Sequence[Recipe] = (), setting: str = "QUANT") -> tuple[Quant, ...]:
    """The quants of "Q4_K_M,Q8_0": separated by commas or spaces, duplicates dropped, order kept.

    Args:
        recipes: the user's own; shipped recipes are found by name like any quant.
        setting: the setting that holds the text, for messages.

    Raises:
        BadRequest: the text holds no name.
        UnknownQuant: a name is neither a type nor a recipe.
    """
    names = [name for name in re.split(r"[,\s]+", text) if name]
    if not names:
        raise BadRequest(f"{setting} is empty.", hint=f"Name at least one: {setting}=Q4_K_M. {LIST_THEM}")
    return tuple({quant.name: quant for quant in (_find_any_quant(name, recipes) for name in names)}.values())


def _find_any_quant(name: str, recipes: Sequence[Recipe]) -> Quant:
    try:
        return find_quant(name)
    except UnknownQuant:
        from quantyard.quants.recipe_files import (  # imported late: they need a YAML parser
            find_recipe,
            nearest_recipe_name,
        )

        recipe = find_recipe(name, recipes)
        if recipe is None:
            if meant := nearest_recipe_name(name, recipes):
                hint = f"{LIST_THEM}; recipes: docs/how-to/tune.md"
                raise UnknownQuant(f"Unknown quant {shown_name(name)}. Did you mean {meant!r}?", hint) from None
            raise
        return quant_of_recipe(recipe)
