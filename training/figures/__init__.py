"""The paper's figures as commands: `python -m training figure ...`, a PNG and its numbers as JSON beside it."""
