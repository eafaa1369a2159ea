"""Model hubs: whether they answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_TIMEOUT_SECONDS = 5


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Inside the block the Hugging Face Hub is not asked where it can't answer; cached files are still found.

    Its client would try each file for half a minute first.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    if any(os.environ.get(name) for name in _PROXIES):
        return True  # the proxy connects, and may know names that this machine does not
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=_TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True
