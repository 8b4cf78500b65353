"""Warnings of libraries about each other (our own stay errors, see pyproject), and Hypothesis without deadlines."""

import pytest
from hypothesis import HealthCheck, settings

# Before any test imports grpc, as both roles' packages do: gRPC reads its environment once.
from wardround_common.wire import settings as settings_of_grpc  # noqa: F401

# Over Hypothesis' own choice of profile, which repeats the same examples where the variable CI is set.
settings.register_profile("wardround", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wardround")


def pytest_configure(config: pytest.Config) -> None:
    # typer 0.20 (flwr 1.41.0 allows no newer one) imports names that click 8.5 calls deprecated; both are pinned.
    config.addinivalue_line(
        "filterwarnings", r"ignore:'click\..*' is deprecated and will be removed in Click 9:DeprecationWarning"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long rows of the fault matrix belong to a tier of their own: they kill, wait and starve for many minutes."""
    for item in items:
        if "faults" in item.path.parts and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.matrix)
