"""Figures that report, card, page, gate and `choose` share: intervals, Pareto front, file to take, layout of plots."""
