"""Figures that report, card, page, gate and `choose` share: intervals, Pareto front, headline metrics."""
