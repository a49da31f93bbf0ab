"""The sample functions in this process, against a database that prepare_database has prepared."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import plungepool
from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
FUNCTIONS = ROOT / "functions"


@dataclass
class Context:
    """What the handlers and Powertools read from Lambda's context."""

    function_name: str = "sample"
    function_version: str = "1"
    memory_limit_in_mb: int = 256
    invoked_function_arn: str = "arn:aws:lambda:eu-west-1:000000000000:function:sample"
    aws_request_id: str = "00000000-0000-0000-0000-000000000000"
    remaining_ms: int = 60_000

    def get_remaining_time_in_millis(self) -> int:
        return self.remaining_ms


@dataclass
class Function:
    """A sample function, loaded as Lambda loads it."""

    module: ModuleType

    def invoke(self, event: Any, **context: Any) -> Any:
        """Invoke with an event that went through JSON, as Lambda's do; what comes back has to go through it too."""
        return json.loads(json.dumps(self.module.handler(json.loads(json.dumps(event)), Context(**context))))


@dataclass
class Shop:
    """A database of its own on the shared server."""

    postgres: Postgres
    database: str
    app_role: str

    def execute(self, sql: str, *parameters: object) -> list[list[Any]]:
        return self.postgres.execute(sql, *parameters, database=self.database)

    def url(self, user: str | None = None, password: str | None = None) -> str:
        name = user or self.app_role
        own = self.postgres.password if name == self.postgres.superuser else "not asked for"
        return self.postgres.url(name, self.database, password or own)

    def settings(self, user: str | None = None, **others: Any) -> plungepool.Settings:
        return plungepool.Settings(url=self.url(user), tls="disable", **others)

    def contents(self) -> list[list[Any]]:
        """All that the functions may write, for comparing before and after."""
        tables = ["products", "orders", "order_lines", "shipments"]
        rows = [f"SELECT '{table}', row_to_json(t)::text FROM shop.{table} t" for table in tables]
        rows.append("SELECT 'tenants.orders', row_to_json(t)::text FROM tenants.orders t")
        return self.execute(f"{' UNION ALL '.join(rows)} ORDER BY 1, 2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Metrics warns of an invocation that failed before it counted anything; here that would hide the failure."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:No application metrics to publish:UserWarning"))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Function]]:
    """Load a function by name with a database URL; each time with modules and an engine of its own."""
    folders: list[Path] = []

    def forget() -> None:
        plungepool.dispose_engine()
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").parent in folders:
                del sys.modules[name]

    def load_function(name: str, url: str) -> Function:
        folders.append(FUNCTIONS / name)
        forget()
        monkeypatch.setenv("PLUNGEPOOL_URL", url)
        monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
        monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "shop")
        monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Shop")
        monkeypatch.setenv("POWERTOOLS_TRACE_DISABLED", "true")
        monkeypatch.syspath_prepend(FUNCTIONS / name)
        return Function(importlib.import_module("app"))

    yield load_function
    forget()


@pytest.fixture
def empty_shop(postgres: Postgres) -> Iterator[Shop]:
    """A database with nothing in it, and the name of a role that does not exist."""
    shop = Shop(postgres, "functions", "shop_app")
    postgres.execute(f"CREATE DATABASE {shop.database}")
    yield shop
    postgres.execute(f"DROP DATABASE {shop.database} WITH (FORCE)")
    postgres.execute(f'DROP ROLE IF EXISTS "{shop.app_role}"')


@pytest.fixture
def shop(empty_shop: Shop, load: Callable[..., Function]) -> Shop:
    """A prepared database with the demo's data."""
    prepare = load("prepare_database", empty_shop.url("postgres"))
    prepare.invoke({"role_name": empty_shop.app_role, "demo_data": True})
    return empty_shop
