"""A connection to Ray: to a running cluster, or to a local one that is started and stopped."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a job that asks for no GPU sees none
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # jobs import from where the sweep was started
}

SILENT = logging.CRITICAL  # for Ray's loggers: what goes wrong is raised or goes to a callback


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to Ray, for `tuner.run_jobs`.

    Args:
        address: of a running cluster. Without it one is started on this machine, with all its
            cores, and stopped again. A Ray that this process is connected to already is used and
            left as it is.

    Raises:
        ValueError: if no cluster can be joined at the address.
    """
    with settings(_SETTINGS):
        if ray.is_initialized():
            yield
            return
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            if address is None:
                ray.init(
                    "local", include_dashboard=False, log_to_driver=False, logging_level=SILENT
                )
            else:
                _join(address)
            if in_main_thread():
                signal.signal(signal.SIGTERM, terminate)  # ray.init has put its own in the place
            yield
        finally:
            ray.shutdown()


def _join(address: str) -> None:
    """Connects to a running cluster."""
    if address.startswith("ray://"):
        raise ValueError(
            f"Expected the address of a cluster that this machine belongs to, got {address!r}. "
            "Start the sweep on one of the cluster's machines, or as a Ray job (`ray job submit`)."
        )
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would try for two minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(
            address,
            log_to_driver=False,
            logging_level=SILENT,
            # Workers of a local cluster inherit these; to be told costs them 2.5 s.
            runtime_env={"env_vars": _SETTINGS},
        )
    except OSError as error:  # of which ConnectionError is one
        advice = (
            "Start one with `ray start --head`, or leave the address out for this machine alone."
        )
        if "AuthenticationError" in str(error.__cause__):
            advice = (
                "It wants a token: set RAY_AUTH_MODE=token, and have the token of its head node in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN."
            )
        raise ValueError(f"Cannot join a Ray cluster at {address!r}: {error}. {advice}") from error


@contextmanager
def settings(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for this process, where the user has set nothing else."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def in_main_thread() -> bool:
    """Only there may Python set signal handlers."""
    return threading.current_thread() is threading.main_thread()
