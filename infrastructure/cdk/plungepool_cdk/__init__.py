"""A CDK construct that attaches Plungepool to functions: the layer, its settings, the right and the way to connect."""

from __future__ import annotations

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
        Raises: ValueError for a setting that is not Plungepool's, or that the construct decides.
        """
        super().__init__(scope, id)
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
        for name in settings or {}:
            if not name.startswith("PLUNGEPOOL_"):
                raise ValueError(
                    f"settings: {name} is not a setting of Plungepool, all of which begin with PLUNGEPOOL_"
                )
            if name in own:
                raise ValueError(f"settings: {name} is set from the construct's own arguments")
        #: the settings that `attach` adds, as environment variables
        self.settings: dict[str, str] = own | dict(settings or {})

    def attach(self, function: lambda_.Function) -> None:
        """
        Give a function the layer, the settings, the right to connect, and the way through the security groups.

        Raises: ValueError where the functions attached so far could hold more connections than `connection_limit`, or
            where this one reserves no concurrency, so that nothing bounds it.
        """
        self._reserve(function)
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
        resource: Any = function.node.default_child
        reserved = resource.reserved_concurrent_executions
        if Token.is_unresolved(reserved):
            return
        if reserved is None:
            raise ValueError(
                f"{function.node.path} reserves no concurrency, so nothing keeps it within connection_limit={limit}: "
                "set reserved_concurrent_executions, or PLUNGEPOOL_POOL=adaptive in settings"
            )
        size = int(self.settings.get("PLUNGEPOOL_POOL_SIZE", "1"))
        wanted = sum(self._reserved) + int(reserved) * size
        if wanted > limit:
            raise ValueError(
                f"the functions up to {function.node.path} may hold {wanted} connections, but connection_limit is "
                f"{limit}: reserve less concurrency, raise the role's CONNECTION LIMIT, or set "
                "PLUNGEPOOL_POOL=adaptive in settings"
            )
        self._reserved.append(int(reserved) * size)


def _endpoint(database: Any) -> tuple[str, int, bool]:
    """Return host, port and whether it is a proxy; by what it has, since imported ones are of classes of their own."""
    if hasattr(database, "cluster_endpoint"):
        return database.cluster_endpoint.hostname, database.cluster_endpoint.port, False
    if hasattr(database, "db_instance_endpoint_address"):
        return database.db_instance_endpoint_address, Token.as_number(database.db_instance_endpoint_port), False
    if hasattr(database, "endpoint"):
        return database.endpoint, 5432, True
    raise ValueError(f"database is a {type(database).__name__}, not an instance, cluster or proxy of aws_rds")
