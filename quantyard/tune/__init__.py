"""Mixed precision: recipes, which give tensors types of their own, and the search that finds one for a model.

`recipe.py` reads a recipe. The search: `groups.py` → `probes.py` → `search.py` → `tuned.py`.
"""
