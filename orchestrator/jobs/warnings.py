"""Warnings that a job logs on its way, for the driver to show."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected(warnings: list[str]) -> Iterator[None]:
    """Collects what the testbed warns of in its log, which nobody sees in a worker."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("testbed")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
