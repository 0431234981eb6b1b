"""`python -m benchmarks.engines`: every engine beside the others, with parity, time, memory, and the floor."""
