"""Figures that report, card, page, gate and `choose` share: intervals, Pareto front, the file to take, plots' layout."""
