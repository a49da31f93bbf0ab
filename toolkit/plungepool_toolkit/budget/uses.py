"""Which databases the functions of a template open connections to, and how they pool them; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from plungepool_toolkit.budget.databases import POOL_SIZE, PREFIX, TAKES, Database, Proxy, Use
from plungepool_toolkit.budget.offers import Offers
from plungepool_toolkit.budget.servers import Server, Servers
from plungepool_toolkit.budget.values import Text, Unknown, how_to_say, is_number, whole

if TYPE_CHECKING:
    from plungepool_toolkit.budget.functions import Function
    from plungepool_toolkit.budget.inputs import Inputs
    from plungepool_toolkit.budget.stacks import Stack

_NAMES_A_SERVER = ("HOST", "URL", "SECRET_ARN")
_POOL_SIZE_AT_MOST = 1000


@dataclass(slots=True)
class Reading:
    """What was found: databases by name, and functions that are not counted, with the reason."""

    databases: dict[str, Database]
    not_counted: dict[str, str]


def read_databases(root: Stack, found: list[Function], inputs: Inputs) -> Reading:
    """Return the databases that the functions use; what is missing to size them is asked for in `inputs`."""
    servers = Servers(root, inputs)
    reader = _Reader(root, servers, inputs)
    for function in found:
        reader.read(function)
    offers = Offers(root, servers, inputs)
    for database in reader.databases.values():
        offers.size(database, reader.servers.get(database.name))
        reader.limit(database)
    return Reading(reader.databases, reader.not_counted)


class _Reader:
    def __init__(self, root: Stack, resources: Servers, inputs: Inputs) -> None:
        self._root, self._resources, self._inputs = root, resources, inputs
        self.databases: dict[str, Database] = {}
        self.not_counted: dict[str, str] = {}
        self.servers: dict[str, Server] = {}
        self._limits: list[tuple[Function, dict[str, Any]]] = []
        #: Functions for which something must be said before it is known which database they use.
        self._undecided: set[str] = set()

    def read(self, function: Function) -> None:
        """Note which databases a function uses."""
        variables = function.stack.property(function.resource, "Environment", "Variables")
        if isinstance(variables, Unknown):
            self._inputs.ask(variables.how or "--parameter-overrides", f"the variables of {function.name}: {variables}")
            return
        variables = variables if isinstance(variables, dict) else {}
        prefixes = dict.fromkeys(key.partition(PREFIX)[0] for key in variables if PREFIX in key)
        for prefix in prefixes:
            self._use(function, prefix, variables)
        if function.name in self._undecided:
            return
        if not any(function in (use.function for use in each.uses) for each in self.databases.values()):
            self._plain(function, variables, bool(prefixes))
        if "APP_ROLE_CONNECTION_LIMIT" in variables:
            # As functions/prepare_database of this repository is told the limit that it sets.
            self._limits.append((function, variables))

    def _use(self, function: Function, prefix: str, variables: dict[str, Any]) -> None:
        def of(name: str) -> Any:
            value = variables.get(f"{prefix}{PREFIX}{name}")
            return None if value == "" else value

        target = next((value for name in _NAMES_A_SERVER if (value := of(name)) is not None), None)
        if target is None:
            self._ask_for_host(function, prefix, variables)
            return
        if isinstance(target, Unknown) and target.chooses:
            why = f"which database {function.name} uses: it depends on {target}"
            self._inputs.ask(target.how or "--parameter-overrides NAME=…", why)
            self._undecided.add(function.name)
            return
        for name in ("POOL", "POOL_SIZE", "ENDPOINT", "AUTH"):
            if not isinstance(of(name), (str, int, type(None))):
                why = f"{prefix}{PREFIX}{name} of {function.name} is {of(name)}"
                self._inputs.ask(how_to_say(of(name)) or f"--parameter-overrides, for {function.name}", why)
        size, said = whole(of("POOL_SIZE")), self._inputs.of_function(function.name, "pool-size")
        database, proxy = self._database(target)
        endpoint = str(of("ENDPOINT") or "direct")
        database.uses.append(
            Use(
                function=function,
                prefix=prefix,
                pool=str(of("POOL") or "tiny"),
                pool_size=said or size or POOL_SIZE,
                endpoint="proxy" if proxy else endpoint,
                auth=str(of("AUTH") or "password"),
                user=of("USER"),
                refused=tuple(
                    name for name in TAKES if isinstance(of(name), (str, int)) and not _takes(name, of(name))
                ),
                proxy=proxy or (self._pooler(database) if endpoint == "proxy" else None),
            )
        )

    def _ask_for_host(self, function: Function, prefix: str, variables: dict[str, Any]) -> None:
        """Ask for the parameter that says where the database is, where one was left empty."""
        for name in _NAMES_A_SERVER:
            key = f"{prefix}{PREFIX}{name}"
            knob = function.knob_of("Environment", "Variables", key)
            if key in variables and knob.name.startswith("the parameter "):
                parameter = knob.name.removeprefix("the parameter ")
                self._inputs.ask(f"--parameter-overrides {parameter}=…", f"{key} is empty; it names the database")
                return

    def _plain(self, function: Function, variables: dict[str, Any], ours: bool) -> None:
        """Count a function without variables of ours where these plainly lead to a database; else say why not."""
        for value in variables.values():
            if server := self._resources.behind(value):
                database, proxy = self._of_server(*server)
                said = self._inputs.of_function(function.name, "pool-size")
                endpoint = "proxy" if proxy else "direct"
                database.uses.append(
                    Use(
                        function,
                        "",
                        pool_size=said or 1,
                        endpoint=endpoint,
                        proxy=proxy,
                        ours=False,
                        said=said is not None,
                    )
                )
                return
        why = "its PLUNGEPOOL_ variables name no host" if ours else "none of its variables leads to a database"
        self.not_counted[function.name] = why

    def _database(self, target: Any) -> tuple[Database, str | None]:
        if server := self._resources.behind(target):
            return self._of_server(*server)
        name = _written(target)
        return self.databases.setdefault(name, Database(name, file=str(self._root.source.path))), None

    def _of_server(self, server: Server, proxy: Proxy | None) -> tuple[Database, str | None]:
        database = self.databases.get(server.name)
        if database is None:
            file = str(server.stack.source.path)
            database = Database(server.name, file=file, line=server.stack.line(server.logical_id))
            self.databases[server.name] = database
            self.servers[server.name] = server
        if proxy is not None:
            database.proxies.setdefault(proxy.name, proxy)
        return database, proxy.name if proxy else None

    def _pooler(self, database: Database) -> str:
        """Return the name of a pooler that only PLUNGEPOOL_ENDPOINT=proxy tells of."""
        name = f"the pooler at {database.name}"
        database.proxies.setdefault(name, Proxy(name))
        return name

    def limit(self, database: Database) -> None:
        """Note the connection limit of the role that the functions sign in as, where it is known."""
        if (said := self._inputs.number_of_database(database.name, "role-limit")) is not None:
            database.role_limit = (said, "", None)
            return
        for function, variables in self._limits:
            limit, role = variables["APP_ROLE_CONNECTION_LIMIT"], variables.get("APP_ROLE_NAME")
            if is_number(limit) and any(use.function is function for use in database.uses):
                knob = function.knob_of("Environment", "Variables", "APP_ROLE_CONNECTION_LIMIT")
                database.role_limit = (float(limit), role if isinstance(role, str) else "", knob)


def _takes(name: str, value: Any) -> bool:
    """Return whether Plungepool takes a value of one of its variables."""
    if name == "POOL_SIZE":
        return whole(value) is not None and 1 <= int(value) <= _POOL_SIZE_AT_MOST
    return value in TAKES[name].split(", ")


def _written(target: Any) -> str:
    """Return what stands for a server that the template does not hold; of a URL only the host: a password is in it."""
    if isinstance(target, Unknown):
        return target.name
    if isinstance(target, Text):
        text = str(target)
        return text.rpartition("@")[2].removeprefix("postgresql://") if "://" in text else text
    text = str(target).strip()
    if "://" in text:
        try:
            text = urlsplit(text).hostname or "a URL"
        except ValueError:
            text = "a URL"
    # One name of DNS, however it is written (RFC 4343): else one database would count as two, each with half the load.
    return text.lower().removesuffix(".")
