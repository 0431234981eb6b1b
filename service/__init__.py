"""asfd's serving side: pick the most accurate detector that still meets a request's latency budget."""

__version__ = "0.1.0"
