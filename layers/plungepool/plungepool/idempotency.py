"""
Powertools' Idempotency with its records in the database that the function uses anyway: no other service to pay for and
to grant access to.

    from aws_lambda_powertools.utilities.idempotency import idempotent
    from plungepool.idempotency import PostgreSQLPersistenceLayer

    @idempotent(persistence_store=PostgreSQLPersistenceLayer(engine))
    def handler(event, context): ...

What Idempotency promises is an answer that is given again, and no second run while the first is under way. An effect in
the database and its record commit together only by `plungepool.once`: where the effect is rows, prefer it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyValidationError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.base import BasePersistenceLayer
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord
from sqlalchemy import text

from .dialect import OWN

if TYPE_CHECKING:
    from typing import Any

    from sqlalchemy import Engine, Row

_COLUMNS = "id, status, expires_at, in_progress_until, response_data, payload_hash"
_GET = text(f"SELECT {_COLUMNS} FROM plungepool.idempotency WHERE id = :id")
# What may be taken over is what DynamoDBPersistenceLayer takes over: an expired record, and one whose invocation is
# over without having said so. Whoever comes second waits for the first one's row, and then finds it taken.
_PUT = text(f"""
    WITH expired AS (
        DELETE FROM plungepool.idempotency WHERE id IN (
            SELECT id FROM plungepool.idempotency
            WHERE expires_at < pg_catalog.date_part('epoch', pg_catalog.now()) AND id <> :id
            ORDER BY expires_at LIMIT 2 FOR UPDATE SKIP LOCKED
        )
    )
    INSERT INTO plungepool.idempotency AS known ({_COLUMNS})
    VALUES (:id, :status, :expires_at, :in_progress_until, NULL, :payload_hash)
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, expires_at = excluded.expires_at,
        in_progress_until = excluded.in_progress_until, response_data = NULL, payload_hash = excluded.payload_hash
    WHERE known.expires_at < pg_catalog.date_part('epoch', pg_catalog.now())
        OR (known.status = 'INPROGRESS'
            AND known.in_progress_until < 1000 * pg_catalog.date_part('epoch', pg_catalog.now()))
    RETURNING true
""")
_UPDATE = text(f"""
    INSERT INTO plungepool.idempotency AS known ({_COLUMNS})
    VALUES (:id, :status, :expires_at, NULL, :response_data, :payload_hash)
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, expires_at = excluded.expires_at,
        response_data = excluded.response_data, payload_hash = coalesce(excluded.payload_hash, known.payload_hash)
""")
_DELETE = text("DELETE FROM plungepool.idempotency WHERE id = :id")


class PostgreSQLPersistenceLayer(BasePersistenceLayer):
    """
    Keep Powertools' idempotency records in PostgreSQL.

    Args: engine: of `get_engine()`; its connection is used for a moment before and after the function, in AUTOCOMMIT,
        so that a pool of one connection is enough, and no record depends on the function's own transaction.
    Raises: what a statement raises, which Powertools reports as IdempotencyPersistenceLayerError.
    Units: one round trip to begin, one to end; expiry in seconds, as IdempotencyConfig says, by the server's clock.
    Tables: plungepool.idempotency, which prepare_database makes (docs/exactly-once.md has the statements).
    Source: Powertools for AWS Lambda (Python), Idempotency, "Bring your own persistent store".
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        super().__init__()  # type: ignore[no-untyped-call]

    def _get_record(self, idempotency_key: str) -> DataRecord:
        row = self._execute(_GET, id=idempotency_key)
        if row is None:
            raise IdempotencyItemNotFoundError
        return _record(row)

    def _put_record(self, data_record: DataRecord) -> None:
        taken = self._execute(
            _PUT,
            id=data_record.idempotency_key,
            status=data_record.status,
            expires_at=data_record.expiry_timestamp,
            in_progress_until=data_record.in_progress_expiry_timestamp,
            payload_hash=data_record.payload_hash or None,
        )
        if taken is not None:
            return
        row = self._execute(_GET, id=data_record.idempotency_key)
        if row is None:  # it was deleted a moment ago, since its function failed
            raise IdempotencyItemAlreadyExistsError
        known = _record(row)
        try:
            self._validate_payload(data_payload=data_record, stored_data_record=known)
        except IdempotencyValidationError as error:
            raise error from None
        self._save_to_cache(data_record=known)
        raise IdempotencyItemAlreadyExistsError(old_data_record=known)

    def _update_record(self, data_record: DataRecord) -> None:
        self._execute(
            _UPDATE,
            id=data_record.idempotency_key,
            status=data_record.status,
            expires_at=data_record.expiry_timestamp,
            response_data=data_record.response_data,
            payload_hash=data_record.payload_hash or None,
        )

    def _delete_record(self, data_record: DataRecord) -> None:
        self._execute(_DELETE, id=data_record.idempotency_key)

    def _execute(self, statement: Any, **parameters: Any) -> Row[Any] | None:
        with self._engine.connect() as connection:
            # Its table is this package's: it needs no tenant.
            result = connection.execute(statement, parameters, execution_options={OWN: True})
            return result.first() if result.returns_rows else None


def _record(row: Row[Any]) -> DataRecord:
    return DataRecord(
        idempotency_key=row.id,
        status=row.status,
        expiry_timestamp=row.expires_at,
        in_progress_expiry_timestamp=row.in_progress_until,
        response_data=row.response_data or "",
        payload_hash=row.payload_hash or "",
    )
