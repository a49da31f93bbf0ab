"""A CDK construct that attaches Plungepool to functions: the layer, its settings, the right and the way to connect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aws_cdk import Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_ssm as ssm
from constructs import Construct

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aws_cdk import aws_rds as rds

__all__ = ["Plungepool"]

ATTACHED = "PlungepoolAttached"  # under a function, so that a second attachment is noticed, also another construct's
OLDEST_PYTHON = 11
LAYER_ARN_PARAMETER = "/plungepool/layer-arn"  # where layers/plungepool/template.yaml writes it


class Plungepool(Construct):
    """
    One database, or the RDS Proxy in front of it, for any number of functions.

        plungepool = Plungepool(self, "Plungepool", database=proxy, user="orders_app", connection_limit=40)
        plungepool.attach(list_orders)

    The functions sign in with IAM. The role, its CONNECTION LIMIT and `rds_iam` are the database's own matter: see
    infrastructure/roles.sql.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        database: rds.IDatabaseProxy | rds.IDatabaseCluster | rds.IDatabaseInstance,
        user: str,
        database_name: str = "postgres",
        connection_limit: int | None = None,
        layer: lambda_.ILayerVersion | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """
        Describe the database; nothing is attached yet.

        Args: database: an instance, a cluster or a proxy, also one that is imported by its attributes. user: the
            database role. connection_limit: how many connections the role may hold; `attach` refuses functions that
            could open more. layer: a version of the layer; by default the one whose ARN is in the SSM parameter
            /plungepool/layer-arn. settings: further settings under their names, {"PLUNGEPOOL_POOL": "adaptive"}.
        Raises: ValueError for an argument that cannot be meant, for a setting that is not Plungepool's, or for one that
            the construct decides.
        """
        super().__init__(scope, id)
        _refuse_what_cannot_be_meant(user, connection_limit, layer)
        host, port, self._is_proxy = _endpoint(database)
        self._database, self._user, self._connection_limit = database, user, connection_limit
        self._port = ec2.Port.tcp(port)
        self._reserved: list[int] = []
        #: the layer that `attach` adds
        self.layer = layer or lambda_.LayerVersion.from_layer_version_arn(
            self, "Layer", ssm.StringParameter.value_for_string_parameter(self, LAYER_ARN_PARAMETER)
        )
        own = {
            "PLUNGEPOOL_HOST": host,
            "PLUNGEPOOL_PORT": Token.as_string(port) if Token.is_unresolved(port) else str(port),
            "PLUNGEPOOL_DATABASE": database_name,
            "PLUNGEPOOL_USER": user,
            "PLUNGEPOOL_ENDPOINT": "proxy" if self._is_proxy else "direct",
            "PLUNGEPOOL_AUTH": "iam",
        }
        for name, value in (settings or {}).items():
            if not name.startswith("PLUNGEPOOL_"):
                raise ValueError(
                    f"settings: {name} is not a setting of Plungepool, all of which begin with PLUNGEPOOL_"
                )
            if name in own:
                raise ValueError(f"settings: {name} is set from the construct's own arguments")
            if not isinstance(value, str):
                raise ValueError(f"settings: the value of {name} is {value!r}, and variables are text: {str(value)!r}")
        #: the settings that `attach` adds, as environment variables
        self.settings: dict[str, str] = own | dict(settings or {})

    def attach(self, function: lambda_.Function) -> None:
        """
        Give a function the layer, the settings, the right to connect, and the way through the security groups.

        Raises: ValueError where the functions attached so far could hold more connections than `connection_limit`, or
            where this one reserves no concurrency, so that nothing bounds it; for what can hold no layer, a runtime
            that the layer does not run on, and a function that is attached already.
        """
        _refuse_what_takes_no_layer(function)
        self._reserve(function)
        Construct(function, ATTACHED)
        function.add_layers(self.layer)
        for name, value in self.settings.items():
            function.add_environment(name, value)
        self._database.grant_connect(function, self._user)
        if function.is_bound_to_vpc:
            # From the function's side: the rule is in its stack, which may be another one than the database's.
            function.connections.allow_to(self._database, self._port)

    def _reserve(self, function: lambda_.Function) -> None:
        limit = self._connection_limit
        # With tickets the fleet gives connections back, and behind a proxy the functions' are not the database's.
        if limit is None or self._is_proxy or self.settings.get("PLUNGEPOOL_POOL") == "adaptive":
            return
        size = self.settings.get("PLUNGEPOOL_POOL_SIZE", "1")
        resource: Any = function.node.default_child
        reserved = resource.reserved_concurrent_executions
        # What is known at deployment only cannot be counted here.
        if any(Token.is_unresolved(number) for number in (limit, reserved, size)):
            return
        if not size.isdecimal():
            raise ValueError(f"settings: PLUNGEPOOL_POOL_SIZE is {size!r}, no number")
        if reserved is None:
            raise ValueError(
                f"{function.node.path} reserves no concurrency, so nothing keeps it within connection_limit={limit}: "
                "set reserved_concurrent_executions, or PLUNGEPOOL_POOL=adaptive in settings"
            )
        opened = int(reserved) * int(size)
        wanted = sum(self._reserved) + opened
        if wanted > limit:
            raise ValueError(
                f"the functions up to {function.node.path} may hold {wanted} connections, but connection_limit is "
                f"{limit}: reserve less concurrency, raise the role's CONNECTION LIMIT, or set "
                "PLUNGEPOOL_POOL=adaptive in settings"
            )
        self._reserved.append(opened)


def _refuse_what_cannot_be_meant(user: Any, connection_limit: Any, layer: Any) -> None:
    """Say in one sentence what the CDK would say in twenty lines, or nobody before the deployment."""
    # In the policy they would stand for every role, or for IAM's variables.
    if not isinstance(user, str) or not user or (not Token.is_unresolved(user) and re.search(r"[*?$]", user)):
        raise ValueError(f"user is {user!r}, not the name of one database role")
    counted = connection_limit is not None and not Token.is_unresolved(connection_limit)
    if counted and (not isinstance(connection_limit, int) or connection_limit < 1):
        raise ValueError(f"connection_limit is {connection_limit!r}, no number of connections")
    if isinstance(layer, str):
        raise ValueError(
            "layer is text: give a layer version, such as "
            "aws_lambda.LayerVersion.from_layer_version_arn(self, 'PlungepoolLayer', arn)"
        )


def _refuse_what_takes_no_layer(function: Any) -> None:
    if not isinstance(function, lambda_.Function):
        raise ValueError(
            f"attach takes a function that this app creates: a {type(function).__name__} can be given neither a layer "
            "nor variables (for an alias or a version, attach its function)"
        )
    runtime = function.runtime.name
    version = re.fullmatch(r"python3\.(\d+)", runtime)
    if version is None or int(version[1]) < OLDEST_PYTHON:
        raise ValueError(
            f"{function.node.path} has the runtime {runtime}: the layer is for zip packages on Python "
            f"3.{OLDEST_PYTHON} or newer"
        )
    if function.node.try_find_child(ATTACHED) is not None:
        raise ValueError(
            f"{function.node.path} is attached already; the settings of a second database have a prefix: see "
            "docs/databases.md"
        )


def _endpoint(database: Any) -> tuple[str, int, bool]:
    """Return host, port and whether it is a proxy; by what it has, since imported ones are of classes of their own."""
    if not hasattr(database, "grant_connect"):
        raise ValueError(
            f"database is a {type(database).__name__}, no instance, cluster or proxy of aws_rds that IAM can sign in to"
        )
    if hasattr(database, "cluster_endpoint"):
        return database.cluster_endpoint.hostname, database.cluster_endpoint.port, False
    if hasattr(database, "db_instance_endpoint_address"):
        return database.db_instance_endpoint_address, Token.as_number(database.db_instance_endpoint_port), False
    if hasattr(database, "endpoint"):
        return database.endpoint, 5432, True
    raise ValueError(f"database is a {type(database).__name__}, not an instance, cluster or proxy of aws_rds")
