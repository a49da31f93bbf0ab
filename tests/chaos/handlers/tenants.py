"""A handler for several tenants: whose rows a transaction sees is set for it alone, along with BEGIN."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import text

from plungepool import get_engine, guard_invocation

engine = get_engine()
SEEN = text("SELECT DISTINCT tenant_id FROM pages")


def read(tenant: str | None, *, fails: bool) -> list[str]:
    """Return whose rows a transaction of this tenant's sees; without one it should see nobody's."""
    own = engine.execution_options(plungepool_settings={"app.tenant_id": tenant}) if tenant else engine
    with own.begin() as connection:
        if fails:
            connection.execute(text("SELECT 1 / 0"))
        return list(connection.execute(SEEN).scalars())


@guard_invocation
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    right, wrong = [], []

    def work(number: int) -> None:
        for round_ in range(event["rounds"]):
            tenant = ("1", "2", None)[(number + round_) % 3]
            try:
                seen = read(tenant, fails=round_ % 10 == 0)
            except Exception as error:
                if "division by zero" not in str(error):
                    wrong.append(str(error))
            else:
                (right if seen == [*filter(None, [tenant])] else wrong).append(f"{tenant} sees the rows of {seen}")

    with ThreadPoolExecutor(event["threads"]) as executor:
        list(executor.map(work, range(event["threads"])))
    return {"right": len(right), "wrong": wrong[:10]}
