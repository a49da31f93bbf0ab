"""Whether a value that a statement was bound to stands in a line that the package has logged."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import ModuleType

# What is shorter, or no text of letters and digits, may stand in a line by chance.
_DISTINCT_FROM = 8


class BoundValues(logging.Handler):
    """Takes down, while it is entered, what this process binds by the package's driver and what its loggers write."""

    def __init__(self) -> None:
        super().__init__()
        self._values: set[str] = set()
        self._lines: list[str] = []
        self._logger = logging.getLogger("plungepool")
        self._module: ModuleType | None = None
        self._bind: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line as it is written, with the traceback of an exception."""
        self._lines.append(self.format(record))

    def __enter__(self) -> Self:
        self._module = sys.modules.get("plungepool.wire.connection")
        if self._module is not None:
            bind = self._bind = self._module.bind

            def watched(values: Any, *others: Any, **named: Any) -> Any:
                self._values.update(filter(_is_distinct, values))
                return bind(values, *others, **named)

            self._module.bind = watched  # type: ignore[attr-defined]
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        if self._module is not None:
            self._module.bind = self._bind  # type: ignore[attr-defined]

    def found(self) -> dict[str, str]:
        """Return each value that stands in a line, with the line."""
        return {value: line for value in self._values for line in self._lines if value in line}


def _is_distinct(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) >= _DISTINCT_FROM
        and any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
    )
