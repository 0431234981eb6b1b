"""What a scheduling policy would do to a trace of requests, on measured latencies and without an engine."""
