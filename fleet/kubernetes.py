"""A fleet as values of the Helm chart in deploy/helm/disagfusion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from fleet.description import Fleet, Pool
from fleet.options import shutdown_seconds
from fleet.programs import gateway_settings, server, server_flags
from fleet.table import InvalidFleet
from wire.types import REQUIRED

NOT_OF_GATEWAYS = ("hub_token", "relay_key", "curve_gateways", "curve_servers")
CURVE = ("curve_public_key", "curve_secret_key", "curve_allowed_keys")


def helm_values(fleet: Fleet) -> dict[str, object]:
    """Raises ``InvalidFleet`` for what Kubernetes has no word for."""
    keys = [name for name, _ in fleet.keys.single() if name not in NOT_OF_GATEWAYS]
    return {
        "allowPlaintext": fleet.allow_plaintext,
        "keys": {
            "secret": f"{fleet.name}-keys",
            "gateway": [*keys, *(["api_keys"] if fleet.keys.api_keys else []), *(CURVE if fleet.is_encrypted else ())],
            "hubToken": fleet.keys.hub_token is not None,
            "relay": fleet.keys.relay_key is not None,
            "curve": fleet.is_encrypted,
        },
        # What the chart's own values have beside is no part of this fleet: null takes it away.
        "gateways": {
            "gateway": None,
            **{
                name: {
                    "environment": gateway_settings(fleet, name),
                    "peers": fleet.peers_of(name),
                    "shutdownSeconds": round(shutdown_seconds(gateway.settings)),
                }
                for name, gateway in fleet.gateways.items()
            },
        },
        "relays": {
            name: {"maxStreams": relay.max_streams, "drainSeconds": round(relay.drain_seconds)}
            for name, relay in fleet.relays.items()
        },
        "pools": {
            **{role.value: None for role in REQUIRED},
            **{name: values for pool in fleet.pools for name, values in _workloads(fleet, pool)},
        },
    }


def _workloads(fleet: Fleet, name: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Pods of a workload are alike, so servers that begin with different roles are different workloads."""
    pool = fleet.pools[name]
    least = Counter(pool.begins(index) for index in range(1, pool.min + 1))
    most = Counter(pool.begins(index) for index in range(1, pool.most + 1))
    for roles, servers in most.items():
        first = next(index for index in range(1, pool.most + 1) if pool.begins(index) == roles)
        full = name if len(most) == 1 else "-".join((name, *roles))
        yield (
            full,
            {
                "gateways": list(fleet.gateways_of(pool)),
                "model": pool.models[0],
                "roles": list(pool.roles),
                "args": server_flags(fleet, server(name, first)),
                "pool": name if name in fleet.predicted else "",
                "share": servers / pool.most,
                "min": least[roles],
                "max": servers,
                "gpus": _whole_gpus(name, pool),
                "resources": _resources(pool),
                "placement": pool.placement,
                "nodeSelector": dict(pool.node_labels),
                "labels": {label: _as_label(value) for label, value in pool.labels.items()},
                "drainSeconds": round(pool.drain_seconds),
            },
        )


def _whole_gpus(name: str, pool: Pool) -> int:
    number = pool.resources.num_gpus
    if number != int(number):
        raise InvalidFleet(f"pools.{name}.resources.num_gpus: Kubernetes hands out whole GPUs, not {number:g}")
    return int(number)


def _resources(pool: Pool) -> Mapping[str, object]:
    resources = pool.resources
    requests = {"cpu": f"{resources.cpus:g}"}
    if resources.memory_bytes is not None:
        requests["memory"] = str(resources.memory_bytes)
    # Extended resources have one number for both, and it is named as the limit.
    return {"requests": requests, "limits": {kind: f"{amount:g}" for kind, amount in resources.custom.items()}}


def _as_label(value: str | bool | int) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
