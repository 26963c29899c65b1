"""Whether servers that are named as this machine's own can be reached from a cluster."""

from __future__ import annotations

import json
import socket
import ssl
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from tubelet.config import UserError

_DEADLINE_S = 30


def check_loopback(servers: Sequence[str], address: str, headers: Mapping[str, str]) -> None:
    """Refuse loopback addresses of ``servers`` unless all nodes of the cluster are this machine.

    Through a port-forward or a tunnel a head far away answers at 127.0.0.1, where nothing of this machine is:
    so it is the nodes' own addresses that count, which the job server tells.

    Args:
        servers: what names them, with the address: ``AWS_ENDPOINT_URL http://127.0.0.1:9000``.
        address: of the job server.
        headers: of a request to it.

    Raises:
        UserError: a node is elsewhere, or nobody says where the nodes are.
    """
    if not servers:
        return
    for node in _nodes(address, headers):
        if not _is_here(str(node.get("nodeManagerAddress")), str(node.get("nodeManagerHostname"))):
            where = f"its node {node.get('nodeManagerHostname')} ({node.get('nodeManagerAddress')})"
            raise UserError(
                f"{servers[0]} is this machine as seen from itself, and the cluster at {address} is elsewhere"
                f" ({where}):\nname the server as the nodes see it, by its host name or a service's"
            )


def _nodes(address: str, headers: Mapping[str, str]) -> list[dict[str, Any]]:
    """The cluster's living nodes, the head first."""
    request = urllib.request.Request(f"{address}/nodes?view=summary", headers=dict(headers))  # noqa: S310
    try:
        with urllib.request.urlopen(  # noqa: S310
            request, timeout=_DEADLINE_S, context=ssl.create_default_context()
        ) as reply:
            summary = json.load(reply)["data"]["summary"]
        nodes = [node["raylet"] for node in summary if node["raylet"].get("state") == "ALIVE"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{address} does not say where its nodes are ({error}), so no server may be named as localhost"
        ) from error
    return sorted(nodes, key=lambda node: not node.get("isHeadNode"))


def _is_here(address: str, host: str) -> bool:
    """Whether a node is this machine: its address is one of ours, and so is its name.

    The name as well, since private addresses are the same in many networks.
    """
    own = {item.address.partition("%")[0] for items in psutil.net_if_addrs().values() for item in items}
    return address in own and host == socket.gethostname()
