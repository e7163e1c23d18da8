"""The search for a mixed-precision recipe of one model.

`tensor_groups` → `sensitivity` (probes) → `knapsack` (the mix) → `goal` (the answer, and its gain).
"""
