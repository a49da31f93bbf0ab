"""
Which server a value of a template leads to: through references, proxies, secrets and nested stacks; pure.

"AUG": Amazon Aurora User Guide; "botocore": its model of the RDS API, 1.44.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plungepool_toolkit.budget.databases import Proxy
from plungepool_toolkit.budget.values import Attribute, how_to_say, is_number, leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.budget.inputs import Inputs
    from plungepool_toolkit.budget.stacks import Stack

CLUSTER, INSTANCE, DSQL = "AWS::RDS::DBCluster", "AWS::RDS::DBInstance", "AWS::DSQL::Cluster"
_PROXIES = ("AWS::RDS::DBProxy", "AWS::RDS::DBProxyEndpoint")


@dataclass(slots=True)
class Server:
    """A resource that a name leads to."""

    stack: Stack
    logical_id: str
    resource: dict[str, Any]
    reads: bool = False

    @property
    def name(self) -> str:
        return "/".join((*self.stack.path, self.logical_id)) + (" (readers)" if self.reads else "")


class Servers:
    """The servers of a stack and of those nested in it."""

    def __init__(self, root: Stack, inputs: Inputs) -> None:
        self._root, self._inputs = root, inputs

    def behind(self, target: Any) -> tuple[Server, Proxy | None] | None:
        """Return the server that a value leads to, and the proxy that it leads through; None where it leads to none."""
        for each in leaves(target):
            if isinstance(each, Attribute) and (found := self._follow(each, set())):
                return found
        return None

    def _follow(self, to: Attribute, seen: set[Attribute]) -> tuple[Server, Proxy | None] | None:
        if to in seen or (found := self._root.find(to)) is None:
            return None
        stack, resource = found
        seen = seen | {to}
        kind = resource.get("Type")
        if kind in (CLUSTER, INSTANCE, DSQL):
            return self._server_of(stack, to, resource), None
        if kind in _PROXIES:
            return self._through_proxy(stack, to, resource)
        if kind == "AWS::SecretsManager::Secret":
            for _, attachment in stack.resources("AWS::SecretsManager::SecretTargetAttachment"):
                secret = stack.property(attachment, "SecretId")
                if isinstance(secret, Attribute) and secret.resource == to.resource:
                    return self._first(stack.property(attachment, "TargetId"), seen)
        if kind == "AWS::SecretsManager::SecretTargetAttachment":
            return self._first(stack.property(resource, "TargetId"), seen)
        return None

    def _first(self, value: Any, seen: set[Attribute]) -> tuple[Server, Proxy | None] | None:
        attributes = (each for each in leaves(value) if isinstance(each, Attribute))
        return next((found for each in attributes if (found := self._follow(each, seen))), None)

    def _server_of(self, stack: Stack, to: Attribute, resource: dict[str, Any]) -> Server:
        if resource["Type"] == INSTANCE:
            for each in leaves(stack.property(resource, "DBClusterIdentifier")):
                if isinstance(each, Attribute) and (found := self._follow(each, set())):
                    return found[0]  # an instance of a cluster is sized with it
        reads = resource["Type"] == CLUSTER and to.name.startswith("ReadEndpoint")
        server = Server(stack, to.resource, resource)
        # With one instance the reader endpoint leads to the writer: AUG, "Reader endpoints".
        return Server(stack, to.resource, resource, reads=reads and len(list(self.instances(server))) > 1)

    def _through_proxy(
        self, stack: Stack, to: Attribute, resource: dict[str, Any]
    ) -> tuple[Server, Proxy | None] | None:
        if resource["Type"] == "AWS::RDS::DBProxyEndpoint":
            proxy = next((e for e in leaves(stack.property(resource, "DBProxyName")) if isinstance(e, Attribute)), None)
            return self._follow(proxy, {to}) if proxy else None
        own_name = stack.property(resource, "DBProxyName")
        for other in self._root.all():
            for name, group in other.resources("AWS::RDS::DBProxyTargetGroup"):
                of = other.property(group, "DBProxyName")
                same = isinstance(of, Attribute) and (of.stack, of.resource) == (to.stack, to.resource)
                if not same and (of is None or of != own_name):
                    continue
                targets = [other.property(group, f"{kind}Identifiers") for kind in ("DBCluster", "DBInstance")]
                found = self._first(targets, {to})
                if found is None:
                    continue
                return found[0], self._proxy(other, name, group, to)
        return None

    def _proxy(self, stack: Stack, group_id: str, group: dict[str, Any], to: Attribute) -> Proxy:
        where = ("ConnectionPoolConfigurationInfo", "MaxConnectionsPercent")
        percent = stack.property(group, *where)
        proxy = Proxy("/".join((*to.stack, to.resource)), knob=stack.knob(group_id, group, *where))
        if percent is not None:
            if is_number(percent):
                proxy.percent = float(percent)
            else:
                self._inputs.ask(
                    how_to_say(percent) or "--database NAME:proxy-percent=N", f"MaxConnectionsPercent is {percent}"
                )
        return proxy

    def instances(self, server: Server) -> Iterator[tuple[Stack, str, dict[str, Any]]]:
        """Yield the instances of a cluster."""
        for stack in self._root.all():
            for name, resource in stack.resources(INSTANCE):
                of = stack.property(resource, "DBClusterIdentifier")
                if isinstance(of, Attribute) and (of.stack, of.resource) == (server.stack.path, server.logical_id):
                    yield stack, name, resource
