"""
Draw docs/how-it-works.md's pictures: python docs/draw_how_it_works.py [--write]

Without --write it says which differ, and exits with 1 if any does. What is on the wire is recorded: each driver runs
one statement against a real PostgreSQL through a proxy. What the pool and the law do is read from their code.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text

from plungepool import Settings, build_engine, fleet
from plungepool_toolkit.network import ChaosProxy
from plungepool_toolkit.postgres import Postgres
from plungepool_toolkit.report import Series, draw_lines
from plungepool_toolkit.report.charts import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

FOLDER = Path(__file__).parent
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}
# Source: PostgreSQL, "Message Formats".
MESSAGES = {
    "B": "Bind",
    "C": "Close",
    "D": "Describe",
    "E": "Execute",
    "H": "Flush",
    "P": "Parse",
    "Q": "Query",
    "S": "Sync",
}


class Recorder:
    """What a client sends, in one list for each time that it waits for an answer."""

    def __init__(self) -> None:
        self.trips: list[list[str]] = []
        self._waits = False

    def connected(self, _link: int) -> None:
        """Say nothing of it: the statement is warm."""

    def sent(self, _link: int, data: bytes) -> None:
        """Read whole messages: a statement this short leaves in one piece."""
        if not self._waits:
            self.trips.append([])
        self._waits = True
        while data and chr(data[0]) in MESSAGES:
            length = 1 + int.from_bytes(data[1:5])
            name = MESSAGES[chr(data[0])]
            self.trips[-1].append(f"{name} {data[5 : length - 1].decode()}" if name == "Query" else name)
            data = data[length:]

    def answered(self, _link: int) -> None:
        """The client need not wait any more."""
        self._waits = False


def record() -> dict[str, list[list[str]]]:
    """Return what each driver sends for one warm statement in `with engine.connect()`."""
    found = {}
    with Postgres() as server:
        for title, make in ENGINES.items():
            recorder = Recorder()
            with ChaosProxy("127.0.0.1", server.port, listener=recorder) as proxy:
                engine = make(server.password, proxy.port)
                for _ in range(2):
                    recorder.trips.clear()
                    with engine.connect() as connection:
                        connection.execute(text("SELECT :x"), {"x": 1}).all()
                found[title] = list(recorder.trips)
                engine.dispose()
    return found


def _peer(driver: str, password: str, port: int) -> Engine:
    return create_engine(f"postgresql+{driver}://postgres:{password}@127.0.0.1:{port}/postgres")


def _ours(password: str, port: int) -> Engine:
    settings = Settings(
        host="127.0.0.1", port=port, user="postgres", password=password, tls="disable", deadline="off", shutdown="off"
    )
    return build_engine(settings)


ENGINES = {
    "SQLAlchemy + pg8000": lambda password, port: _peer("pg8000", password, port),
    "SQLAlchemy + psycopg 3": lambda password, port: _peer("psycopg", password, port),
    "Plungepool": _ours,
}


def draw_wire(recorded: dict[str, list[list[str]]]) -> str:
    """Return a ladder for each driver: what leaves in one write, and each wait for the answer."""
    width, column, left, step = 720, 240, 12, 58
    longest = max(len(trips) for trips in recorded.values())
    high = 62 + step * longest + 16
    drawn = []
    for n, (title, trips) in enumerate(recorded.items()):
        x, far = n * column + left, (n + 1) * column - left
        count = f"{len(trips)} round trip{'s' if len(trips) > 1 else ''}"
        drawn.append(
            f'<text class="bold" x="{x}" y="18">{title}</text><text class="soft" x="{x}" y="38">{count}</text>'
        )
        drawn += [f'<path class="grid" d="M{side} 50V{high - 16}"/>' for side in (x, far)]
        for at, names in enumerate(trips):
            y = 62 + step * at
            for line, part in enumerate(textwrap.wrap(" ".join(names), 28)):
                drawn.append(f'<text x="{x + 6}" y="{y + 6 + 16 * line}">{part}</text>')
            drawn.append(_arrow(x, y + 28, far, y + 34, n))
            drawn.append(_arrow(far, y + 34, x, y + 48, n))
    said = "; ".join(f"{title}: {len(trips)}" for title, trips in recorded.items())
    return _picture(drawn, width, high, "One warm SELECT: what is sent, and each wait", f"round trips: {said}")


def draw_pool() -> str:
    """Return what becomes of a kept connection, from one invocation to the next."""
    steps = [
        ("an invocation asks for a connection", ""),
        (f"older than {DEFAULTS['max_age_s']:g} s, or its lease expired?", "by the wall clock"),
        ("closed or reset by the other side?", "checked at the socket"),
        (f"silent for {DEFAULTS['ping_after_idle_s']:g} s? Then ping it", "one round trip"),
        ("it is handed out", "no round trip"),
        ("the handler returns: keep it?", "tiny: yes; adaptive: with a ticket"),
        ("the environment is frozen", "nothing runs"),
    ]
    width, box, right = 720, 300, 470
    drawn = []
    for n, (what, how) in enumerate(steps):
        y = 12 + n * 66
        drawn.append(f'<rect class="back" fill-opacity=".45" x="12" y="{y}" width="{box}" height="46" rx="6"/>')
        drawn.append(f'<text class="{"" if "?" in what else "bold"}" x="24" y="{y + 19}">{what}</text>')
        drawn.append(f'<text class="soft" x="24" y="{y + 37}">{how}</text>')
        if n + 1 < len(steps):
            drawn.append(_arrow(12 + box / 2, y + 46, 12 + box / 2, y + 66, 0))
    for n in (1, 2, 3):
        y = 35 + n * 66
        drawn.append(_arrow(12 + box, y, right, y, 1))
        drawn.append(f'<text class="soft" x="{12 + box + 8}" y="{y - 5}">{"no answer" if n == 3 else "yes"}</text>')
    y = 12 + 66
    drawn.append(f'<rect class="back" fill-opacity=".45" x="{right}" y="{y}" width="238" height="178" rx="6"/>')
    connect = ("TCP, TLS, login; if refused,", "retried by the law", "until the deadline")
    for n, line in enumerate(("closed, without an error", "a new connection:", *connect)):
        drawn.append(f'<text x="{right + 12}" y="{y + 30 + 22 * n + 14 * (n > 0)}">{line}</text>')
    drawn.append(_path(f"M{right + 119} {y + 178}V{35 + 4 * 66}H{12 + box}", 1, (12 + box, 35 + 4 * 66, -1, 0)))
    y = 35 + 5 * 66
    drawn.append(_arrow(12 + box, y, right, y, 1))
    drawn.append(f'<text class="soft" x="{12 + box + 8}" y="{y - 5}">no</text>')
    drawn.append(f'<text x="{right + 12}" y="{y + 5}">closed, in order</text>')
    what = "; ".join(f"{what} {how}" for what, how in steps)
    return _picture(drawn, width, 12 + len(steps) * 66, "A connection, from one invocation to the next", what)


def draw_law() -> str:
    """Return the pauses between tries, as the law draws them, for a server that is full and for one that is busy."""
    series = []
    for title, took_s in (("full: it refuses at once", 0.0), ("busy: it takes 2 s to refuse", 2.0)):
        for name, chance in (("longest", 1.0), ("shortest", 0.0)):
            pressure, points = fleet.Pressure(), []
            for number in range(1, 7):
                pressure = pressure.refused(took_s)
                points.append((float(number), pressure.pause_s(1e6, chance) or 0.0))
            series.append(Series(f"{title}, {name}", tuple(points)))
    return draw_lines(
        series,
        title="How long an environment waits before it tries again",
        x_label="refusals so far",
        y_label="seconds",
        alone=True,
    )


def _arrow(x: float, y: float, to_x: float, to_y: float, colour: int) -> str:
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    return _path(f"M{x:g} {y:g}L{to_x:g} {to_y:g}", colour, (to_x, to_y, (to_x - x) / length, (to_y - y) / length))


def _path(path: str, colour: int, end: tuple[float, float, float, float]) -> str:
    """Return a line with a head, whose end is at a place and in a direction."""
    x, y, dx, dy = end
    sides = [(x - 7 * dx + side * 4 * dy, y - 7 * dy - side * 4 * dx) for side in (1, -1)]
    head = "L".join(f"{at_x:.1f} {at_y:.1f}" for at_x, at_y in ((x, y), *sides))
    return f'<path class="line s{colour}" d="{path}"/><path class="f{colour}" d="M{head}Z"/>'


def _picture(drawn: Sequence[str], width: int, high: int, title: str, what: str) -> str:
    size = f'width="{width}" height="{high}" viewBox="0 0 {width} {high}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>'
        f"<title>{title}</title><desc>{what}</desc><style>{style()}</style>"
        f'<rect class="paper" width="{width}" height="{high}"/>{"".join(drawn)}</svg>'
    )


def pictures() -> dict[str, str]:
    """Return the pictures, by the names of their files."""
    return {"how-wire.svg": draw_wire(record()), "how-pool.svg": draw_pool(), "how-law.svg": draw_law()}


def main() -> None:
    """Make them, or say which differ."""
    drawn = pictures()
    if "--write" in sys.argv[1:]:
        for name, picture in drawn.items():
            (FOLDER / name).write_text(picture, encoding="utf-8")
        return
    wrong = [name for name, one in drawn.items() if (FOLDER / name).read_text(encoding="utf-8") != one]
    for name in wrong:
        print(f"{name} is not what is drawn now: python docs/draw_how_it_works.py --write")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
