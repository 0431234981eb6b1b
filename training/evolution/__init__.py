"""The genetic search for a family under latency budgets, over a supernet's slices (paper, 4.3.2 and 5.4)."""
