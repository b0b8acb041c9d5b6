"""Check by its headers that a request comes from this machine, against DNS rebinding and cross-site requests.

A web page that a user of this machine visits can send requests to a server on loopback. They name the page's host in `Host`
(after DNS rebinding) or in `Origin`.
"""

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from zephyr_jax.errors import truncate_repr
from zephyr_jax.serve.protocol import ApiError


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without a port) is this machine's loopback."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_local(hosts: Iterable[str], origins: Iterable[str]) -> None:
    """Raise ApiError (403) unless all values of the headers `Host` and `Origin` name this machine's loopback."""
    for host in hosts:
        if not is_loopback(_host_of(f"//{host}")):
            raise ApiError(403, _message("Host", host), "permission_error")
    for origin in origins:
        if not is_loopback(_host_of(origin)):
            raise ApiError(403, _message("Origin", origin), "permission_error")


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _message(name: str, value: str) -> str:
    return (
        f"Expected a loopback address in the header `{name}`, got {truncate_repr(value)}. This server has no API key, so it "
        "answers this machine only; start it with `--api_key_env NAME` to serve others."
    )
