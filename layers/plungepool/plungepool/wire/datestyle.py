"""
Readers for sessions that SET DateStyle, or TimeZone to anything but UTC. Imported when a server reports such a setting.

The other styles name the zone of a timestamp by an abbreviation, which only the session's TimeZone explains. What
cannot be read without a guess stays the server's text.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timezone, tzinfo
from typing import TYPE_CHECKING, Any

from .values import ARRAY_OF, DATE, TIMESTAMP, TIMESTAMPTZ, array_reader, read_timestamp, readers_over

if TYPE_CHECKING:
    from collections.abc import Callable


def _readers_of(oid: int, reader: Callable[[str], Any]) -> dict[int, Callable[[str], Any]]:
    """Return the readers of a type and of all that holds it."""
    return {oid: reader, ARRAY_OF[oid]: array_reader(reader), **readers_over(oid, reader)}


_MONTHS = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}


def styled_readers(date_style: str, time_zone: str) -> dict[int, Callable[[str], Any]]:
    """Return the readers, by oid, of all types whose text depends on DateStyle and TimeZone."""
    if date_style.startswith("ISO"):
        return _zoned_readers(time_zone)
    day_first = "DMY" in date_style or date_style.startswith("German")

    def read_date(text: str) -> date | str:
        parts = re.fullmatch(r"(\d\d)[-/.](\d\d)[-/.](\d{4})", text)
        if parts is None:
            return text
        day, month = (parts[1], parts[2]) if day_first else (parts[2], parts[1])
        return date(int(parts[3]), int(month), int(day))

    def read_moment(text: str) -> datetime | str:
        words = text.split()
        if len(words) >= 5 and words[0].isalpha():  # Postgres: Sun Nov 22 10:00:00 2026 CET
            month, day = (words[2], words[1]) if day_first else (words[1], words[2])
            clock, year, zone = words[3], words[4], words[5:]
            iso = f"{year:>04}-{_MONTHS.get(month, 0):02}-{day:>02} {clock}"
        elif len(words) >= 2 and isinstance(whole_date := read_date(words[0]), date):
            zone = words[2:]
            iso = f"{whole_date} {words[1]}"
        else:
            return text
        if len(zone) > 1 or "BC" in zone:
            return text
        try:
            local = datetime.fromisoformat(iso)
        except ValueError:
            return text
        return _in_zone(local, zone[0], time_zone, text) if zone else local

    return {
        **_readers_of(DATE, read_date),
        **_readers_of(TIMESTAMP, read_moment),
        **_readers_of(TIMESTAMPTZ, read_moment),
    }


def _zoned_readers(time_zone: str) -> dict[int, Callable[[str], Any]]:
    """
    Readers of timestamptz that give each value the session's one zone, where the text has only the offset of the
    moment.

    A zone that Python does not know (PostgreSQL's own notations, a machine without zoneinfo) leaves the offset.
    """
    zones: list[tzinfo | None] = []

    def read(text: str) -> datetime | str:
        moment = read_timestamp(text)
        if not zones:
            zones.append(_zone(time_zone))
        if isinstance(moment, str) or zones[0] is None:
            return moment
        try:
            return moment.astimezone(zones[0])
        except OverflowError:  # the first and last hours of all time
            return moment

    return _readers_of(TIMESTAMPTZ, read)


def _zone(name: str) -> tzinfo | None:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError):
        return None


def _in_zone(local: datetime, abbreviation: str, time_zone: str, text: str) -> datetime | str:
    if abbreviation[0] in "+-":
        return datetime.fromisoformat(f"{local.isoformat()}{abbreviation}")
    if abbreviation == "UTC":
        return local.replace(tzinfo=UTC)
    zone = _zone(time_zone)
    if zone is None:
        return text
    for fold in (0, 1):  # the hour that comes twice in autumn has two abbreviations
        moment = local.replace(tzinfo=zone, fold=fold)
        offset = moment.utcoffset()
        if moment.tzname() == abbreviation and offset is not None:
            return local.replace(tzinfo=timezone(offset))
    return text
