"""The stand-in for NetworkPolicy: which rules follow from which policies, without a node."""

from __future__ import annotations

import re

from e2e.policies import World, rules

SPACES = {
    "shop": {"kubernetes.io/metadata.name": "shop"},
    "web": {"kubernetes.io/metadata.name": "web", "kind": "front"},
}


def pod(name, address, labels=None, namespace="shop", phase="Running", **spec):
    ports = [{"name": "http", "containerPort": 8080}]
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {"app": name}},
        "spec": {"containers": [{"ports": ports}], **spec},
        "status": {"podIP": address, "phase": phase},
    }


def policy(selector=None, namespace="shop", **spec):
    return {
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"podSelector": {"matchLabels": selector or {}}, **spec},
    }


SERVER = pod("server", "10.0.0.1")
CLIENT = pod("client", "10.0.0.2")
FRONT = pod("front", "10.0.0.3", namespace="web")
PODS = [SERVER, CLIENT, FRONT]


def allowed(*policies, pods=PODS, chain="LW-IN"):
    """Return what gets through to 10.0.0.1 (or out of it), None when nothing is in its way."""
    text = rules(World(policies, pods, SPACES))
    name = f"{chain}-0a000001"
    if f":{name} " not in text:
        return None
    assert text.index(f"-A {name} -j LW-NO") > 0
    return set(re.findall(rf"^-A {name} ?(.*) -j RETURN$", text, re.MULTILINE))


def test_a_pod_that_no_policy_selects_is_open():
    assert allowed() is None
    assert allowed(policy({"app": "client"})) is None
    assert allowed(policy(namespace="web")) is None


def test_a_policy_without_rules_lets_nothing_in_and_says_nothing_of_what_goes_out():
    assert allowed(policy()) == set()
    assert allowed(policy(), chain="LW-OUT") is None


def test_types_are_guessed_as_kubernetes_does():
    out = policy(egress=[{}])

    assert allowed(out) == set()
    assert allowed(out, chain="LW-OUT") == {""}
    assert allowed(policy(policyTypes=["Egress"])) is None
    assert allowed(policy(policyTypes=["Egress"]), chain="LW-OUT") == set()


def test_peers_are_pods_of_the_policys_namespace_or_of_the_namespaces_that_are_selected():
    pods_here = {"podSelector": {}}
    client = {"podSelector": {"matchLabels": {"app": "client"}}}
    front = {"namespaceSelector": {"matchLabels": {"kind": "front"}}}
    both = {**front, "podSelector": {"matchLabels": {"app": "other"}}}

    def peers(*found):
        return allowed(policy({"app": "server"}, ingress=[{"from": list(found)}]))

    assert peers(pods_here) == {"-s 10.0.0.1/32", "-s 10.0.0.2/32"}
    assert peers(client) == {"-s 10.0.0.2/32"}
    assert peers(front) == {"-s 10.0.0.3/32"}
    assert peers(both) == set()
    assert peers({"namespaceSelector": {}}) == {f"-s 10.0.0.{number}/32" for number in (1, 2, 3)}


def test_an_empty_list_of_peers_is_everyone_and_policies_add_up():
    anyone = policy(ingress=[{"ports": [{"port": 80}]}])
    client = policy(ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}])

    assert allowed(anyone, client) == {"-p tcp --dport 80", "-s 10.0.0.2/32"}


def test_ports_are_numbers_ranges_or_names_of_the_pod_that_listens():
    ports = [
        {"port": 80},
        {"port": 1000, "endPort": 1010},
        {"port": 53, "protocol": "UDP"},
        {"port": "http"},
        {"protocol": "UDP"},
    ]
    assert allowed(policy(ingress=[{"ports": ports}])) == {
        "-p tcp --dport 80",
        "-p tcp --dport 1000:1010",
        "-p udp --dport 53",
        "-p tcp --dport 8080",
        "-p udp",
    }
    to_client = {"to": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": ports[3:4]}
    assert allowed(policy(egress=[to_client]), chain="LW-OUT") == {
        "-d 10.0.0.2/32 -p tcp --dport 8080"
    }


def test_blocks_of_addresses_have_holes():
    block = {"ipBlock": {"cidr": "10.0.0.0/30", "except": ["10.0.0.1/32"]}}

    assert allowed(policy(ingress=[{"from": [block]}])) == {"-s 10.0.0.0/32", "-s 10.0.0.2/31"}


def test_selectors_know_all_operators():
    def peers(operator, *values):
        one = {"key": "app", "operator": operator, "values": list(values)}
        peer = {"podSelector": {"matchExpressions": [one]}}
        return allowed(policy({"app": "server"}, ingress=[{"from": [peer]}]))

    assert peers("In", "client", "x") == {"-s 10.0.0.2/32"}
    assert peers("NotIn", "client") == {"-s 10.0.0.1/32"}
    assert peers("Exists") == {"-s 10.0.0.1/32", "-s 10.0.0.2/32"}
    assert peers("DoesNotExist") == set()


def test_pods_that_ended_and_pods_of_the_nodes_network_have_no_rules():
    ended = pod("server", "10.0.0.1", phase="Succeeded")
    hosts = pod("server", "10.0.0.1", hostNetwork=True)

    assert allowed(policy(), pods=[ended]) is None
    assert allowed(policy(), pods=[hosts]) is None


def test_what_may_go_out_is_asked_of_the_other_side_and_answers_come_back():
    lines = rules(World([policy()], PODS, SPACES)).splitlines()

    jumps = [line for line in lines if line.startswith(("-A LW-POLICY", "-A LW-OUT -j"))]
    assert jumps == [
        "-A LW-POLICY -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN",
        "-A LW-POLICY -j LW-OUT",
        "-A LW-OUT -j LW-IN",
    ]
    assert lines.index("-A LW-OUT -j LW-IN") == max(
        number for number, line in enumerate(lines) if line.startswith("-A LW-OUT ")
    )
    assert lines[0] == "*filter"
    assert lines[-1] == "COMMIT"
