"""
What a database offers: connections, what is reserved of them, vCPUs; pure.

"AUG": Amazon Aurora User Guide; "botocore": its model of the RDS API, 1.44.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plungepool_toolkit.budget.databases import Database
from plungepool_toolkit.budget.hardware import (
    GIB_AN_ACU,
    VCPUS_AN_ACU,
    Range,
    connections_by_acu,
    connections_by_formula,
    connections_by_memory,
    size_of,
)
from plungepool_toolkit.budget.servers import DSQL, INSTANCE, Server, Servers
from plungepool_toolkit.budget.values import Attribute, how_to_say, is_number

if TYPE_CHECKING:
    from plungepool_toolkit.budget.inputs import Inputs
    from plungepool_toolkit.budget.stacks import Stack

# PostgreSQL, "superuser_reserved_connections": 3; postgres_exporter's and others' templates for RDS have
# rds.rds_superuser_reserved_connections 2. On the server itself SHOW says it.
_RESERVED = {
    "superuser_reserved_connections": 3,
    "rds.rds_superuser_reserved_connections": 2,
    "reserved_connections": 0,
}
# Aurora DSQL User Guide, "Quotas": connections of a cluster.
_DSQL_CONNECTIONS = 10_000
# AWS's agent toolkit, "Aurora PostgreSQL express configuration": 0 to 16 ACU.
_EXPRESS_ACU = 16.0
# AUG, "Setting capacity for Aurora Serverless v2": the smallest minimum but 0.
_SMALLEST_ACU = 0.5
# botocore, ServerlessV2ScalingConfiguration.
_ACU = {"max-acu": (1.0, 256.0), "min-acu": (0.0, 256.0)}


class Offers:
    """Fills in what databases offer: as the template says it, and over that as `--database` says it."""

    def __init__(self, root: Stack, servers: Servers, inputs: Inputs) -> None:
        self._root, self._servers, self._inputs = root, servers, inputs

    def size(self, database: Database, server: Server | None) -> None:
        """Fill in one database; `server`: its resource, where the template holds it. What is missing is asked for."""
        name = database.name
        if server is not None:
            self._size_of_resource(database, server)
        self._size_as_said(database, server is None)
        database.reserved = _or(self._inputs.number_of_database(name, "reserved"), database.reserved)
        database.others = _or(self._inputs.number_of_database(name, "others"), 0.0)
        if database.kind == "dsql":
            database.max_connections = Range(_DSQL_CONNECTIONS, _DSQL_CONNECTIONS)
            database.reserved, database.size = 0, "Aurora DSQL"
        elif not database.max_connections.high:
            # Where the template holds it, what is missing there was asked for already.
            if name not in self._inputs.incomplete:
                why = "how large it is: class=db.r6g.large, or max-acu=8, or max-connections=100; or kind=dsql"
                self._inputs.ask(f"--database {name}:KEY=VALUE", why)
        elif database.vcpus is None:
            self._inputs.ask(
                f"--database {name}:vcpu=N", "its vCPUs; they, and not max_connections, limit the statements at work"
            )
        self._poolers(database)

    def _size_of_resource(self, database: Database, server: Server) -> None:
        stack, resource = server.stack, server.resource
        if resource["Type"] == DSQL:
            database.kind = "dsql"
            return
        engine = str(stack.property(resource, "Engine") or "")
        if engine and "postgres" not in engine:
            database.kind = f"not PostgreSQL but {engine}"
        database.reserved = sum(_RESERVED.values())
        if resource["Type"] == INSTANCE:
            database.kind = database.kind or "instance"
            self._size_of_class(database, stack, server.logical_id, resource, None)
            return
        express = stack.property(resource, "WithExpressConfiguration")
        database.kind = database.kind or ("express" if str(express).lower() == "true" else "aurora")
        instances = list(self._servers.instances(server))
        capacity = stack.property(resource, "ServerlessV2ScalingConfiguration")
        if isinstance(capacity, dict):
            self._size_of_capacity(database, server, capacity)
        if stack.property(resource, "DBClusterInstanceClass") is not None:
            self._size_of_class(database, stack, server.logical_id, resource, None, "DBClusterInstanceClass")
        sizes = []
        for where, name, instance in instances:
            if where.property(instance, "DBInstanceClass") == "db.serverless":
                self._parameters(database, where, instance, server)
            else:
                one = Database(database.name)
                self._size_of_class(one, where, name, instance, server)
                sizes.append(one)
        # Any of them may be the writer after a failover: the smallest counts.
        for one in sorted(sizes, key=lambda each: each.max_connections.low)[:1]:
            if not database.max_connections.high or one.max_connections.low < database.max_connections.low:
                database.max_connections, database.vcpus = one.max_connections, one.vcpus
                database.size, database.knob = one.size, one.knob
        if server.reads and database.vcpus:
            readers = len(instances) - 1
            database.max_connections = Range(
                database.max_connections.low * readers, database.max_connections.high * readers
            )
            database.vcpus, database.reserved = database.vcpus * readers, database.reserved * readers
            database.size = f"{readers} x {database.size}"

    def _size_of_capacity(self, database: Database, server: Server, capacity: dict[str, Any]) -> None:
        most, least = capacity.get("MaxCapacity"), capacity.get("MinCapacity", _SMALLEST_ACU)
        most = self._inputs.of_database(database.name, "max-acu") or most
        least = self._inputs.of_database(database.name, "min-acu") or least
        for key, what, value in (("max-acu", "MaxCapacity", most), ("min-acu", "MinCapacity", least)):
            if not is_number(value) or not _ACU[key][0] <= float(str(value)) <= _ACU[key][1]:
                option = how_to_say(value) or f"--database {database.name}:{key}=N"
                is_what = "not set" if value is None else f"{value}"
                why = f"{what} of {database.name} is {is_what}; Aurora takes {_ACU[key][0]:g} to {_ACU[key][1]:g} ACU"
                self._inputs.ask(option, why, database.name)
                return
        self._serverless(database, float(str(most)), float(str(least)))
        where = ("ServerlessV2ScalingConfiguration", "MaxCapacity")
        database.knob = server.stack.knob(server.logical_id, server.resource, *where)

    def _serverless(self, database: Database, most: float, least: float) -> None:
        database.max_connections = connections_by_acu(most, least)
        database.vcpus = most * VCPUS_AN_ACU
        database.pauses = least == 0
        database.size = f"{least:g} to {most:g} ACU"
        database.reserved = sum(_RESERVED.values())

    def _size_of_class(
        self,
        database: Database,
        stack: Stack,
        name: str,
        resource: dict[str, Any],
        cluster: Server | None,
        key: str = "DBInstanceClass",
    ) -> None:
        instance_class = stack.property(resource, key)
        instance_class = self._inputs.of_database(database.name, "class") or instance_class
        database.knob = stack.knob(name, resource, key)
        if isinstance(instance_class, str):
            self._of_class(database, instance_class)
        else:
            option = how_to_say(instance_class) or f"--database {database.name}:class=db.…"
            why = f"{key} of {name} is {'not there' if instance_class is None else instance_class}"
            self._inputs.ask(option, why, database.name)
        self._parameters(database, stack, resource, cluster)

    def _of_class(self, database: Database, instance_class: str) -> None:
        size = size_of(instance_class)
        database.size = instance_class
        database.reserved = sum(_RESERVED.values())
        if size is None:
            for key, what in (("vcpu", "its vCPUs"), ("max-connections", "SHOW max_connections")):
                if self._inputs.of_database(database.name, key) is None:
                    why = f"{what}: the class {instance_class} is not known here"
                    self._inputs.ask(f"--database {database.name}:{key}=N", why, database.name)
            return
        database.vcpus, database.max_connections = size[0], connections_by_memory(size[1])

    def _parameters(self, database: Database, stack: Stack, instance: dict[str, Any], cluster: Server | None) -> None:
        """Apply the parameter groups: the cluster's, then the instance's over it (AUG, "Parameter groups")."""
        groups = [(stack, instance, "DBParameterGroupName"), (stack, instance, "DBClusterParameterGroupName")]
        if cluster is not None:
            groups.append((cluster.stack, cluster.resource, "DBClusterParameterGroupName"))
        values: dict[str, Any] = {}
        said = self._inputs.of_database(database.name, "max-connections")
        for where, resource, key in reversed(groups):
            group = where.property(resource, key)
            if isinstance(group, Attribute):
                found = self._root.find(group)
                given = found[0].property(found[1], "Parameters") if found else None
                values |= given if isinstance(given, dict) else {}
            elif isinstance(group, str) and not group.startswith("default.") and not said:
                why = f"the parameter group {group} is not in this template, and may set max_connections"
                self._inputs.ask(f"--database {database.name}:max-connections=N", why, database.name)
        if (most := values.get("max_connections")) is not None:
            gib = (size_of(database.size) or (0, (database.vcpus or 0) / VCPUS_AN_ACU * GIB_AN_ACU))[1]
            found_range = connections_by_formula(str(most), gib)
            if found_range is None:
                why = f"max_connections is {most} in its parameter group, a formula that cannot be evaluated here"
                self._inputs.ask(f"--database {database.name}:max-connections=N", why, database.name)
            else:
                database.max_connections = found_range
                database.size += f", max_connections {most}" if str(most).isdigit() else ""
        kept = {name: values.get(name, default) for name, default in _RESERVED.items()}
        database.reserved = sum(float(value) for value in kept.values() if is_number(value))

    def _size_as_said(self, database: Database, alone: bool) -> None:
        name, of, number = database.name, self._inputs.of_database, self._inputs.number_of_database
        if kind := of(name, "kind"):
            database.kind = kind
        if instance_class := of(name, "class"):
            if alone:
                self._of_class(database, instance_class)
        elif alone and (number(name, "max-acu") is not None or database.kind == "express"):
            self._serverless(database, _or(number(name, "max-acu"), _EXPRESS_ACU), _or(number(name, "min-acu"), 0.0))
        if database.kind == "express" and not database.max_connections.high:
            self._serverless(database, _EXPRESS_ACU, 0.0)
        if (most := number(name, "max-connections")) is not None:
            database.max_connections = Range(most, most)
            database.size = database.size or "as said"
            if alone:
                database.reserved = sum(_RESERVED.values())
        if (vcpus := number(name, "vcpu")) is not None:
            database.vcpus = vcpus
            database.size = database.size or f"{vcpus:g} vCPU"

    def _poolers(self, database: Database) -> None:
        said = self._inputs.number_of_database(database.name, "proxy-connections")
        percent = self._inputs.number_of_database(database.name, "proxy-percent")
        for proxy in database.proxies.values():
            proxy.percent = _or(percent, proxy.percent)
            high, low = database.max_connections.high, database.max_connections.low
            proxy.connections = Range(int(low * proxy.percent / 100), int(high * proxy.percent / 100))
            if said is not None:
                proxy.connections = Range(said, said)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
