"""Mutations of `mutate_guards.py` that no test can notice, each with the reason."""

EQUIVALENT: dict[str, str] = {}
