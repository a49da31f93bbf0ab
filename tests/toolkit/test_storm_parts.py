"""What a storm is made of, where no process and no server is needed: arrivals, results, the reading of a log."""

from __future__ import annotations

import json

import pytest

from plungepool_toolkit.storm import arrivals, results
from plungepool_toolkit.storm.monitor import Log
from plungepool_toolkit.storm.service import _code


def test_a_spike_is_all_at_once() -> None:
    """Each round of a spike has all its invocations at its beginning."""
    assert arrivals.spike(3, 2) == (arrivals.Round((0.0, 0.0, 0.0)),) * 2
    assert arrivals.spike(1, 1, fresh=True)[0].fresh


def test_a_steady_stream_has_its_rate() -> None:
    """Arrivals are as many as rate and duration say, spread over all of it, and the same for a seed."""
    (one,) = arrivals.steady(50, 20, seed=7)
    assert len(one.times_s) == pytest.approx(1000, rel=0.1)
    assert list(one.times_s) == sorted(one.times_s)
    assert len([at for at in one.times_s if at < 10]) == pytest.approx(500, rel=0.15)
    assert 0 <= one.times_s[0] < one.times_s[-1] < 20
    assert arrivals.steady(50, 20, seed=7) == (one,)
    assert arrivals.steady(50, 20, seed=8) != (one,)


def test_a_wave_rises_and_falls() -> None:
    """In the middle of a wave come as many as its peak says, at its ends hardly any."""
    (one,) = arrivals.wave(100, 30, seed=3)
    counts = [len([at for at in one.times_s if low <= at < low + 3]) for low in range(0, 30, 3)]
    assert max(counts[4], counts[5]) == pytest.approx(300, rel=0.2)
    assert max(counts[0], counts[9]) < min(counts[4], counts[5]) / 3
    assert sum(counts) == pytest.approx(100 * 30 * 2 / 3.1416, rel=0.1)


def test_a_recorded_curve_is_followed() -> None:
    """Where each invocation takes its service time, exactly the recorded number is in flight at any moment."""
    curve = [(0.0, 2.0), (10.0, 5.0), (20.0, 1.0), (30.0, 1.0)]
    (one,) = arrivals.recorded(curve, service_s=0.5)
    for at, wanted in ((1.25, 2), (9.75, 2), (10.25, 5), (19.75, 5), (21.25, 1), (29.75, 1)):
        assert len([begun for begun in one.times_s if begun <= at < begun + 0.5]) == wanted
    (short,) = arrivals.recorded(curve, service_s=0.5, duration_s=3.0)
    assert short.times_s[-1] < 3.0
    assert len([begun for begun in short.times_s if begun <= 1.25 < begun + 0.5]) == 5


@pytest.mark.parametrize(
    "text",
    [
        "time,concurrency\n0,3\n60,7\n",
        "2026-11-27T10:00:00Z,3\n2026-11-27T10:01:00Z,7\n",
        json.dumps(
            {
                "MetricDataResults": [
                    {"Timestamps": ["2026-11-27T10:01:00+00:00", "2026-11-27T10:00:00+00:00"], "Values": [7.0, 3.0]}
                ]
            }
        ),
        json.dumps(
            {
                "Label": "ConcurrentExecutions",
                "Datapoints": [
                    {"Timestamp": "2026-11-27T10:01:00+00:00", "Maximum": 7.0, "Unit": "Count"},
                    {"Timestamp": "2026-11-27T10:00:00+00:00", "Maximum": 3.0, "Unit": "Count"},
                ],
            }
        ),
    ],
    ids=["csv", "csv-dates", "get-metric-data", "get-metric-statistics"],
)
def test_curves_are_read(text: str) -> None:
    """A CSV file and both of CloudWatch's documents give the same curve, in the order of time."""
    (first, low), (last, high) = arrivals.read_curve(text)
    assert (last - first, low, high) == (60.0, 3.0, 7.0)


@pytest.mark.parametrize("text", ["", "0,3\n", "0,3\n60\n", "{}", "{", "a,b\nc,d\n", "0,1\n0,2\n", "0,-1\n5,2\n"])
def test_what_is_no_curve_is_refused(text: str) -> None:
    """Anything else is one error that says so."""
    with pytest.raises(arrivals.CurveError):
        arrivals.read_curve(text)


def test_too_many_arrivals_are_refused() -> None:
    """A storm is bounded: what would never end is refused before it begins."""
    with pytest.raises(arrivals.CurveError, match="100000"):
        arrivals.steady(2000, 600, seed=1)
    with pytest.raises(arrivals.CurveError, match="100000"):
        arrivals.recorded([(0.0, 1000.0), (600.0, 1.0)], service_s=0.001)


def test_percentiles_are_of_the_nearest_rank() -> None:
    """A percentile is a value that was measured, and of a hundred the ninety-fifth is the ninety-fifth."""
    latency = results.Latency.of([float(n) for n in range(100, 0, -1)])
    assert (latency.p50, latency.p95, latency.p99, latency.max) == (50.0, 95.0, 99.0, 100.0)
    assert results.Latency.of([7.0]).p50 == results.Latency.of([7.0]).p99 == 7.0
    assert results.Latency.of([]).max == 0.0


def test_every_latency_is_in_one_bin() -> None:
    """A value at an edge belongs to the bin that begins there; one beyond the last edge to the last bin."""
    histogram = results.Histogram.of([0.0, 0.5, 1.0, 1.2, 5.0, 99.0], edges_ms=(0, 1, 2, 5, 10))
    assert histogram.counts == (2, 2, 0, 2)
    assert list(results.EDGES_MS) == sorted(set(results.EDGES_MS))


def test_the_busiest_second_begins_anywhere() -> None:
    """Four connects within a second are four, on whatever side of a full second they are."""
    rate = results.PerSecond.of([10.6, 10.9, 11.2, 11.5, 14.0], wall_s=10.0)
    assert (rate.peak, rate.mean) == (4, 0.5)
    assert results.PerSecond.of([], 0.0).peak == 0


def _measured() -> results.Storm:
    conditions = results.Conditions(
        date="2026-11-27",
        command="plungepool storm",
        versions={"python": "3.13.0"},
        cores=2,
        environments=20,
        rounds=2,
        arrival="spike",
        service_ms=20.0,
        deadline_s=15.0,
        max_connections=12,
        limit=8,
        seed=1,
        text="so it was",
    )
    strategy = results.Strategy(
        name="tiny",
        title="Plungepool, tiny",
        endpoint="direct",
        ours=True,
        invocations=4,
        succeeded=3,
        failures={"53300": 1},
        latency_ms=results.Latency.of([1.0, 2.0, 3.0, 4.0]),
        latency_histogram=results.Histogram.of([1.0, 2.0, 3.0, 4.0]),
        connections=results.Connections(peak=2, mean=1.5, times_s=(0.0, 0.1), open=(1, 2), in_use=(1, 1)),
        connects=3,
        refused=1,
        connects_per_s=results.PerSecond(peak=3, mean=1.5),
        wall_s=2.0,
        database_cpu_s=0.1,
    )
    return results.Storm(conditions, (strategy,))


def test_a_document_is_read_as_it_was_written() -> None:
    """What JSON holds is what was measured; a field that a newer version writes is passed over."""
    measured = _measured()
    document = json.loads(json.dumps(measured.to_json()))
    assert results.Storm.from_json(document) == measured
    document["strategies"][0]["later"] = 1
    assert results.Storm.from_json(document) == measured
    assert measured.strategies[0].success == 0.75
    # What nobody has seen is missing, or null.
    document["strategies"][0]["connections"] = None
    del document["strategies"][0]["refused"]
    unseen = results.Storm.from_json(document).strategies[0]
    assert (unseen.connections, unseen.refused, unseen.latency_ms) == (None, None, measured.strategies[0].latency_ms)


@pytest.mark.parametrize("change", [{"format": "other/2"}, {"conditions": {}}, {"strategies": [{}]}, {"strategies": 3}])
def test_what_is_no_document_is_refused(change: dict[str, object]) -> None:
    """Another format, and what lacks what every document has, is one error."""
    with pytest.raises(results.FormatError):
        results.Storm.from_json(_measured().to_json() | change)


def test_a_log_tells_connects_refusals_and_the_peak() -> None:
    """
    Only the role's connections count; one that the reserved slots refuse after it was authorized is a refusal, and no
    connect.
    """
    lines = [
        "100.000 10 00000 LOG:  connection authorized: user=storm database=storm",
        "100.100 11 00000 LOG:  connection authorized: user=storm database=storm",
        "100.150 90 00000 LOG:  connection authorized: user=postgres database=storm",
        "100.200 10 00000 LOG:  disconnection: session time: 0:00:00.200 user=storm database=storm host=127.0.0.1",
        "100.200 12 00000 LOG:  connection authorized: user=storm database=storm",
        "100.300 13 00000 LOG:  connection authorized: user=storm database=storm",
        "100.301 13 53300 FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        "100.400 14 53300 FATAL:  sorry, too many clients already",
        "100.500 15 57P03 FATAL:  the database system is starting up",
        "100.600 16 28P01 FATAL:  password authentication failed for user storm",
        "100.700 12 22012 ERROR:  division by zero",
    ]
    log = Log.read("".join(f"{line}\n" for line in lines), "storm")
    assert (sorted(log.connects), log.refused, log.peak) == ([100.0, 100.1, 100.2], 3, 2)


def test_an_answer_says_what_failed() -> None:
    """A handler that caught an error tells its code; one that did not, the class's name; nonsense is a failure too."""
    assert _code("response", b'{"failure": null}') is None
    assert _code("response", b'{"failure": "53300"}') == "53300"
    assert _code("error", b'{"errorType": "ValueError", "errorMessage": "x"}') == "ValueError"
    assert _code("response", b"null") == _code("response", b"]") == "Runtime.InvalidResponse"
