"""Real load: traces of requests against the running service, beside the simulator's word on the same traces."""
