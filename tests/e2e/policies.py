"""A stand-in for what enforces NetworkPolicy in a cluster: policies as iptables rules of the node.

    python -m e2e.policies KUBECONFIG          run by node.py, inside the box

It is a test's own reading of the specification, made to see that our policies allow what they
should and no more. It is no independent implementation. What it does not do: it does not see what
goes between a pod and the node itself, such as probes and requests to the API server (those pass
INPUT and OUTPUT, these rules stand in FORWARD), and a change takes some tenths of a second.

    FORWARD -> LW-POLICY -> LW-OUT (by source) -> LW-IN (by destination)
"""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from controlplane.api import Api, ApiError

Object = Mapping[str, Any]
INTERVAL_S: Final = 0.3


class World(NamedTuple):
    """What the rules follow from: the API server's objects."""

    policies: Sequence[Object]
    pods: Sequence[Object]
    namespaces: Mapping[str, Mapping[str, str]]
    """Labels of each namespace."""


def rules(world: World) -> str:
    """Return the table `filter` for iptables-restore --noflush."""
    lines = ["*filter", ":LW-POLICY - [0:0]", ":LW-OUT - [0:0]", ":LW-IN - [0:0]"]
    lines += [
        "-A LW-POLICY -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        "-A LW-POLICY -j LW-OUT",
    ]
    bodies: list[str] = []
    for direction, chain, own, other in (
        ("Egress", "LW-OUT", "-s", "-d"),
        ("Ingress", "LW-IN", "-d", "-s"),
    ):
        for pod in _running(world.pods):
            selecting = [
                one for one in world.policies if direction in _types(one) and _selects(one, pod)
            ]
            if not selecting:
                continue
            address = pod["status"]["podIP"]
            name = f"{chain}-{int(ipaddress.ip_address(address)):08x}"
            lines.append(f":{name} - [0:0]")
            bodies.append(f"-A {chain} {own} {address}/32 -j {name}")
            allowed = {
                f"-A {name} {match} -j RETURN".replace("  ", " ")
                for policy in selecting
                for match in _matches(policy, direction, other, pod, world)
            }
            bodies += [*sorted(allowed), f"-A {name} -j LW-NO"]
    # Who may go out asks next whether the other side lets it in; RETURN goes back to LW-OUT.
    bodies.append("-A LW-OUT -j LW-IN")
    lines += [":LW-NO - [0:0]", *bodies, "-A LW-NO -p tcp -j REJECT --reject-with tcp-reset"]
    return "\n".join([*lines, "-A LW-NO -j REJECT", "COMMIT", ""])


def _running(pods: Iterable[Object]) -> Iterator[Object]:
    for pod in pods:
        status = pod.get("status", {})
        is_there = status.get("podIP") and status.get("phase") in ("Pending", "Running")
        if is_there and not pod["spec"].get("hostNetwork"):
            yield pod


def _types(policy: Object) -> Sequence[str]:
    spec = policy["spec"]
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]


def _selects(policy: Object, pod: Object) -> bool:
    in_it = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return in_it and _fits(policy["spec"].get("podSelector"), pod["metadata"].get("labels", {}))


def _fits(selector: Object | None, labels: Mapping[str, str]) -> bool:
    """Say whether labels fit a label selector; an empty one fits all."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for one in selector.get("matchExpressions", []):
        value, values = labels.get(one["key"]), one.get("values", [])
        fits = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not fits[one["operator"]]:
            return False
    return True


def _matches(
    policy: Object, direction: str, other: str, pod: Object, world: World
) -> Iterator[str]:
    """Yield iptables' words for what a policy allows in a direction."""
    for rule in policy["spec"].get(direction.lower()) or []:
        peers = rule.get("from" if direction == "Ingress" else "to")
        for address, owner in _addresses(peers, policy, world):
            place = f"{other} {address}" if address else ""
            # A port's name is that of the pod which listens.
            listener = pod if direction == "Ingress" else owner
            for port in _ports(rule.get("ports"), listener):
                yield f"{place} {port}".strip()


def _addresses(
    peers: Sequence[Object] | None, policy: Object, world: World
) -> Iterator[tuple[str, Object | None]]:
    if not peers:
        yield "", None
        return
    for peer in peers:
        if block := peer.get("ipBlock"):
            networks = [ipaddress.ip_network(block["cidr"])]
            for hole in map(ipaddress.ip_network, block.get("except", [])):
                networks = [
                    part
                    for one in networks
                    for part in (one.address_exclude(hole) if hole.subnet_of(one) else [one])
                ]
            yield from ((str(one), None) for one in networks)
            continue
        for pod in _running(world.pods):
            namespace = pod["metadata"]["namespace"]
            if "namespaceSelector" in peer:
                near = _fits(peer["namespaceSelector"], world.namespaces.get(namespace, {}))
            else:
                near = namespace == policy["metadata"]["namespace"]
            if near and _fits(peer.get("podSelector"), pod["metadata"].get("labels", {})):
                yield f"{pod['status']['podIP']}/32", pod


def _ports(ports: Sequence[Object] | None, listener: Object | None) -> Iterator[str]:
    if not ports:
        yield ""
        return
    for one in ports:
        protocol, port = one.get("protocol", "TCP").lower(), one.get("port")
        if port is None:
            yield f"-p {protocol}"
        elif isinstance(port, int):
            last = f":{one['endPort']}" if "endPort" in one else ""
            yield f"-p {protocol} --dport {port}{last}"
        else:
            for number in _named(listener, port, one.get("protocol", "TCP")):
                yield f"-p {protocol} --dport {number}"


def _named(pod: Object | None, name: str, protocol: str) -> Iterator[int]:
    for container in pod["spec"]["containers"] if pod else ():
        for port in container.get("ports", []):
            if port.get("name") == name and port.get("protocol", "TCP") == protocol:
                yield port["containerPort"]


def main(kubeconfig: Path) -> None:
    """Follow the API server for ever."""
    api = Api.of_kubeconfig(kubeconfig)
    before = ""
    chains: set[str] = set()
    while True:
        try:
            text = rules(_world(api))
        except (ApiError, OSError) as error:  # the API server restarts
            print(error, flush=True)
            time.sleep(INTERVAL_S)
            continue
        if text != before:
            fresh = {line[1:].split()[0] for line in text.splitlines() if line[0] == ":"}
            _restore(text, gone=chains - fresh)
            if not before:
                subprocess.run(["iptables", "-w", "-I", "FORWARD", "-j", "LW-POLICY"], check=True)
            before, chains = text, fresh
            print(text, flush=True)
        time.sleep(INTERVAL_S)


def _world(api: Api) -> World:
    named = {
        one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in api.list("Namespace")
    }
    return World(api.list("networking.k8s.io/NetworkPolicy"), api.list("Pod"), named)


def _restore(text: str, gone: Iterable[str]) -> None:
    """Replace the chains at once; those that nothing leads to any more go after that."""
    argv = ["iptables-restore", "-w", "--noflush"]
    subprocess.run(argv, input=text.encode(), check=True)
    for chain in gone:
        for word in ("-F", "-X"):
            subprocess.run(["iptables", "-w", word, chain], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
