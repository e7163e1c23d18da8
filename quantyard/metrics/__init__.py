"""Statistics of what was measured: intervals, Pareto front, headline metrics."""
