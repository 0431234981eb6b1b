"""Measurements of accuracy beside other detectors, and of latency. Tests never assert speed; these files hold it."""
