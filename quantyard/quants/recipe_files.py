"""Recipe files: strict reading, the shipped recipes, and lookup by name.

A recipe is a YAML file; docs/how-to/tune.md explains each field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from quantyard.errors import BadRequest, UnknownQuant
from quantyard.files.own_files import read_named_file
from quantyard.formats.strict_yaml import MAX_BYTES, load_strict_yaml
from quantyard.quants.catalog import QUANTS, find_quant, is_unquantized_type
from quantyard.quants.recipe import Recipe

FOLDER: Final = Path(__file__).parent / "recipes"
_HINT: Final = "How a recipe is written: docs/how-to/tune.md"


def read_quant_recipe(path: Path) -> Recipe:
    """The recipe in this file.

    Raises:
        BadRequest: the file cannot be read, or is not a valid recipe.
    """
    try:
        value = load_strict_yaml(read_named_file(path, MAX_BYTES))
    except OSError as error:
        raise BadRequest(f"The recipe {path} cannot be read: {error.strerror}.", "Type: RECIPE=file.yaml") from error
    except ValueError as error:  # too large, or a YamlProblem
        raise BadRequest(f"The recipe {path} is not usable YAML: {error}.", _HINT) from error
    if not isinstance(value, dict):
        raise BadRequest(f"The recipe {path} has no fields.", _HINT)
    return recipe_from_fields(value, str(path))


def recipe_from_fields(value: Mapping[str, object], title: str) -> Recipe:
    """The recipe of these fields, from a file or a manifest.

    Raises:
        BadRequest: a field is not valid.
    """
    try:
        recipe = Recipe.model_validate(value)
        base = find_quant(recipe.base)
    except ValidationError as error:
        raise BadRequest(f"The recipe {title}: {_recipe_error_words(error)}.", _HINT) from error
    except UnknownQuant as error:
        raise BadRequest(f"The recipe {title}: base: {error.message}", error.hint) from error
    if is_unquantized_type(base.name):
        message = f"The recipe {title}: base: {base.name} gives all tensors one type, so a recipe cannot change it."
        raise BadRequest(message, _HINT)
    if any(recipe.name.upper() == quant.name for quant in QUANTS):
        message = f"The recipe {title}: name: {recipe.name} is one of llama.cpp's own quants; choose another name."
        raise BadRequest(message, _HINT)
    return recipe.model_copy(update={"base": base.name})


def _recipe_error_words(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, Recipe.model_fields, n=1, cutoff=0.5)
        return f"it has no field {where!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    return f"{where}: {what}" if where else what


@cache
def shipped_recipes() -> tuple[Recipe, ...]:
    """The recipes that come with Quantyard, by name."""
    return tuple(read_quant_recipe(path) for path in sorted(FOLDER.glob("*.yaml")))


def find_recipe(name: str, own: Sequence[Recipe] = ()) -> Recipe | None:
    """The recipe of this name, in any case; the user's own come first. None if there is none."""
    return next((recipe for recipe in (*own, *shipped_recipes()) if recipe.name.lower() == name.strip().lower()), None)


def nearest_recipe_name(name: str, own: Sequence[Recipe] = ()) -> str | None:
    """The recipe that a misspelt name most likely means; None if none is near."""
    names = {recipe.name.lower(): recipe.name for recipe in (*own, *shipped_recipes())}
    found = difflib.get_close_matches(name.strip().lower(), names, n=1, cutoff=0.8)
    return names[found[0]] if found else None


def refuse_double_recipes(recipes: Iterable[Recipe]) -> None:
    """Refuse two recipes with the same name: their files would have the same name too.

    Raises:
        BadRequest: two recipes have the same name.
    """
    seen: set[str] = set()
    for recipe in recipes:
        if recipe.name.lower() in seen:
            raise BadRequest(f"Two recipes have the name {recipe.name}.", "Give one of them another name.")
        seen.add(recipe.name.lower())
