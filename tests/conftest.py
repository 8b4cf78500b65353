"""Warnings of libraries about each other; our own stay errors (pyproject, filterwarnings)."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # typer 0.20 (flwr 1.41.0 allows no newer one) imports names that click 8.5 calls deprecated; both are pinned.
    config.addinivalue_line(
        "filterwarnings", r"ignore:'click\..*' is deprecated and will be removed in Click 9:DeprecationWarning"
    )
