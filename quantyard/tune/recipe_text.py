"""A recipe as a file."""

from __future__ import annotations

from quantyard.quants.recipe import Recipe


def tuned_recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML for `read_quant_recipe`; types and patterns are plain text, so that no quoting is needed."""
    lines = [
        f"name: {recipe.name}",
        f"base: {recipe.base}",
        f'description: "{_quoted_recipe_text(recipe.description)}"',
    ]
    lines += [f"output: {recipe.output}"] if recipe.output else []
    lines += [f"token_embedding: {recipe.token_embedding}"] if recipe.token_embedding else []
    if recipe.tensors:
        lines += ["tensors:", *(f'  "{pattern}": {kind}' for pattern, kind in recipe.tensors.items())]
    return "\n".join(lines) + "\n"


def _quoted_recipe_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
