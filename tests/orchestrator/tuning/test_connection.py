"""The connection to Ray."""

import os
import time

import pytest

from orchestrator.tuning import connection
from orchestrator.tuning.connection import connected


def test_a_cluster_that_is_not_there_is_said_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"Cannot join .*127.0.0.1:1.*Start one with `ray start"):
        connection._join("127.0.0.1:1")
    with pytest.raises(ValueError, match="ray job submit"):
        connection._join("ray://127.0.0.1:10001")
    assert time.monotonic() - started < 10


def test_settings_of_the_user_stand_and_ours_go_again(
    two_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", raising=False)

    with connected(None):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
        assert os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"
    assert "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO" not in os.environ
