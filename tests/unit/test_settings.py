"""Settings: what is read, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import dataclasses
import pickle
import socket
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plungepool import Settings, SettingsError
from plungepool.names import split_address
from plungepool.settings import _SECONDS_AT_MOST, _SHORTEST_S, variable
from plungepool.wire.transport import tune

MINIMUM = {"PLUNGEPOOL_HOST": "db.example", "PLUNGEPOOL_USER": "app", "PLUNGEPOOL_PASSWORD": "hunter2-hunter2"}
SECRET = "pa55-%&/:@?#[]+ wörd"
# Whatever PostgreSQL takes for a name; a line break at an end is refused, since it comes from copying.
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text == text.strip("\r\n")
)
seconds = st.floats(min_value=0.001, max_value=1e6)
# Every setting that has a variable, but the URL.
NAMES = sorted(one.name for one in dataclasses.fields(Settings) if one.name != "prefix")


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    """Return what from_env finds wrong."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    return caught.value.problems


def test_parts_give_the_documented_defaults() -> None:
    """Host, user and password suffice; the rest is as the reference says."""
    settings = Settings.from_env(MINIMUM)
    assert (settings.port, settings.database, settings.endpoint, settings.auth) == (
        5432,
        "postgres",
        "direct",
        "password",
    )
    assert (settings.tls, settings.pool, settings.pool_size) == ("verify-full", "tiny", 1)
    assert (settings.checkout_timeout_s, settings.connect_timeout_s, settings.max_age_s) == (5.0, 5.0, 1800.0)


@pytest.mark.parametrize(("auth", "expected"), [("password", "postgres"), ("iam", "postgres"), ("dsql", "direct")])
def test_tls_begins_as_the_server_likes_it(auth: str, expected: str) -> None:
    """Aurora DSQL speaks TLS at once; elsewhere the server is asked first, unless the setting says otherwise."""
    whole = {"PLUNGEPOOL_HOST": "db.example", "PLUNGEPOOL_USER": "app", "PLUNGEPOOL_REGION": "eu-west-1"}
    environ = whole | {"PLUNGEPOOL_AUTH": auth} | ({"PLUNGEPOOL_PASSWORD": "x"} if auth == "password" else {})
    assert Settings.from_env(environ).tls_negotiation == expected
    for way in ("postgres", "direct"):
        assert Settings.from_env(environ | {"PLUNGEPOOL_TLS_NEGOTIATION": way}).tls_negotiation == way
    (problem,) = problems(environ | {"PLUNGEPOOL_TLS_NEGOTIATION": "requiredirect"})
    assert problem == "PLUNGEPOOL_TLS_NEGOTIATION must be one of postgres, direct, not 'requiredirect'"


def test_keywords_and_variables_are_the_same_settings() -> None:
    """A keyword is the variable's lower-case name without the prefix."""
    assert Settings.from_env(MINIMUM) == Settings(host="db.example", user="app", password="hunter2-hunter2")


@given(user=names, password=names, database=names, port=st.integers(1, 65535))
def test_url_round_trips_every_character(user: str, password: str, database: str, port: int) -> None:
    """Special characters in user, password and database survive percent-encoding."""
    url = f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@h.example:{port}/{quote(database, safe='')}"
    settings = Settings.from_env({"PLUNGEPOOL_URL": url})
    assert (settings.user, settings.password, settings.database, settings.port) == (user, password, database, port)
    assert settings.host == "h.example"


@given(values=st.fixed_dictionaries({}, optional={
    "PLUNGEPOOL_POOL": st.sampled_from(["tiny", "null"]),
    "PLUNGEPOOL_POOL_SIZE": st.integers(1, 1000).map(str),
    "PLUNGEPOOL_PORT": st.integers(1, 65535).map(str),
    "PLUNGEPOOL_CHECKOUT_TIMEOUT_S": seconds.map(str),
    "PLUNGEPOOL_CONNECT_TIMEOUT_S": seconds.map(str),
    "PLUNGEPOOL_MAX_AGE_S": seconds.map(str),
}))  # fmt: skip
def test_every_value_is_what_was_written(values: dict[str, str]) -> None:
    """What from_env reads is the text's value, and replaying the fields gives an equal Settings."""
    settings = Settings.from_env(MINIMUM | values)
    for key, text in values.items():
        value = getattr(settings, key.removeprefix("PLUNGEPOOL_").lower())
        assert type(value)(text) == value
    assert dataclasses.replace(settings) == settings
    assert hash(dataclasses.replace(settings)) == hash(settings)


@given(known=st.sampled_from([variable(name) for name in NAMES]), data=st.data())
def test_a_typo_is_never_silent(known: str, data: st.DataObject) -> None:
    """A PLUNGEPOOL_ name with one letter dropped is a problem that names the right one."""
    at = data.draw(st.integers(len("PLUNGEPOOL_"), len(known) - 1))
    typo = known[:at] + known[at + 1 :]
    assume(typo not in {variable(name) for name in [*NAMES, "url"]})
    (problem,) = problems({**MINIMUM, typo: "1"})
    assert typo in problem
    assert "did you mean" in problem


def test_every_problem_is_named_at_once() -> None:
    """Wrong values, unknown names, missing parts and contradictions come in one error."""
    found = problems({
        "PLUNGEPOOL_HSOT": "db", "PLUNGEPOOL_PORT": "0", "PLUNGEPOOL_POOL_SIZE": "0", "PLUNGEPOOL_TLS": "off",
        "PLUNGEPOOL_CONNECT_TIMEOUT_S": "5s", "PLUNGEPOOL_AUTH": "iam", "PLUNGEPOOL_PASSWORD": SECRET,
    })  # fmt: skip
    text = "; ".join(found)
    for expected in (
        "HSOT",
        "_PORT",
        "_POOL_SIZE",
        "_TLS",
        "_CONNECT_TIMEOUT_S",
        "_HOST",
        "_USER",
        "_REGION",
        "_PASSWORD",
    ):
        assert expected in text
    assert len(found) == 9
    assert SECRET not in text


@pytest.mark.parametrize(("name", "value"), [
    ("PORT", "70000"), ("PORT", "5432.0"), ("PORT", " 5432"), ("PORT", "٥٤٣٢"), ("POOL_SIZE", "-1"), ("POOL_SIZE",
    "1_0"),
    ("MAX_AGE_S", "0"), ("MAX_AGE_S", "nan"), ("MAX_AGE_S", "inf"), ("CHECKOUT_TIMEOUT_S", "-1"), ("ENDPOINT", "Proxy"),
    ("POOL", "adaptiv"), ("AUTH", "none"), ("HOST", "a,b"), ("HOST", "user@db"), ("PINNING", "yes"),
    ("CONNECT_ON_RESTORE", "1"), ("CONNECT_ON_RESTORE", "True"), ("CONNECT_ON_RESTORE", "yes"),
])  # fmt: skip
def test_a_wrong_value_is_refused(name: str, value: str) -> None:
    """Nothing is guessed: each of these is one problem that names its variable."""
    (problem,) = problems({**MINIMUM, "PLUNGEPOOL_" + name: value})
    assert problem.startswith("PLUNGEPOOL_" + name)


@pytest.mark.parametrize("url", [
    "mysql://u@h/d", "db.example", "postgresql://u@h:port/d", "postgresql:///d", f"postgresql://u:{SECRET}@h/d",
    "postgresql://u:hunter2-hunter2@h/d?sslmode=disable", "postgresql://u:hunter2-hunter2@h/d#x",
    "postgresql://[u:hunter2-hunter2@h",
])  # fmt: skip
def test_a_wrong_url_is_refused_without_quoting_it(url: str) -> None:
    """The text names PLUNGEPOOL_URL and shows nothing of it, since a password may stand in it."""
    text = "; ".join(problems({"PLUNGEPOOL_URL": url, "PLUNGEPOOL_USER": "u"}))
    assert "PLUNGEPOOL_URL" in text
    assert "hunter2" not in text
    assert SECRET not in text


@pytest.mark.parametrize("url", [
    "postgresql+psycopg2://app:x@db.example/shop", "postgresql://app:pa/ss@db.example/shop", "postgresql://app:x@db.ex/s\n",
])  # fmt: skip
def test_what_a_url_may_hold_that_cannot_be_read_is_not_called_missing(url: str) -> None:
    """One sentence, about the URL: that host, user and password are missing too would lead away from it."""
    (problem,) = problems({"PLUNGEPOOL_URL": url})
    assert problem.startswith("PLUNGEPOOL_URL must ")


def test_url_and_parts_must_not_differ() -> None:
    """Two answers to one question are a problem, two equal ones are not."""
    url = "postgresql://app@db.example:5433/shop"
    same = {"PLUNGEPOOL_URL": url, "PLUNGEPOOL_HOST": "db.example", "PLUNGEPOOL_PASSWORD": "x"}
    assert Settings.from_env(same).port == 5433
    (problem,) = problems({**same, "PLUNGEPOOL_HOST": "other.example"})
    assert "PLUNGEPOOL_HOST and PLUNGEPOOL_URL differ" in problem


@pytest.mark.parametrize(("environ", "named"), [
    ({"PLUNGEPOOL_AUTH": "iam"}, "REGION"),
    ({"PLUNGEPOOL_AUTH": "iam", "AWS_REGION": "eu-west-1", "PLUNGEPOOL_TLS": "disable"}, "TLS"),
    ({"PLUNGEPOOL_AUTH": "secret"}, "SECRET_ARN"),
    ({"PLUNGEPOOL_AUTH": "dsql", "AWS_REGION": "eu-west-1", "PLUNGEPOOL_ENDPOINT": "proxy"}, "ENDPOINT"),
    ({"PLUNGEPOOL_AUTH": "dsql", "AWS_REGION": "eu-west-1", "PLUNGEPOOL_MAX_AGE_S": "3600"}, "MAX_AGE_S"),
    ({"PLUNGEPOOL_AUTH": "iam", "AWS_REGION": "eu-west-1", "PLUNGEPOOL_PASSWORD": SECRET}, "PASSWORD"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(environ: dict[str, str], named: str) -> None:
    """What one setting needs or rules out in another is checked before anything connects."""
    (problem,) = problems({"PLUNGEPOOL_HOST": "db.example", "PLUNGEPOOL_USER": "app", **environ})
    assert f"PLUNGEPOOL_{named}" in problem
    assert SECRET not in problem


@pytest.mark.parametrize(("environ", "named"), [
    ({"PLUNGEPOOL_ENDPOINT": "proxy", "PLUNGEPOOL_STATEMENT_TIMEOUT_S": "3"}, "STATEMENT_TIMEOUT_S"),
    ({"PLUNGEPOOL_ENDPOINT": "proxy", "PLUNGEPOOL_MAX_AGE_S": "86400"}, "MAX_AGE_S"),
    ({"PLUNGEPOOL_CA_FILE": "ca.pem", "PLUNGEPOOL_TLS": "disable"}, "CA_FILE"),
    ({"PLUNGEPOOL_TLS_NEGOTIATION": "direct", "PLUNGEPOOL_TLS": "disable"}, "TLS_NEGOTIATION"),
    ({"PLUNGEPOOL_CONNECT_ON_RESTORE": "true", "PLUNGEPOOL_POOL": "null"}, "CONNECT_ON_RESTORE"),
    ({"PLUNGEPOOL_FLEET_LIMIT": "20"}, "FLEET_LIMIT has no effect without PLUNGEPOOL_POOL=adaptive"),
    ({"PLUNGEPOOL_FLEET": "shop", "PLUNGEPOOL_POOL": "null"}, "FLEET has no effect without PLUNGEPOOL_POOL=adaptive"),
    ({"PLUNGEPOOL_FLEET": "shop", "PLUNGEPOOL_POOL": "adaptive"}, "FLEET needs PLUNGEPOOL_FLEET_LIMIT"),
    ({"PLUNGEPOOL_FLEET_LIMIT": "262144", "PLUNGEPOOL_POOL": "adaptive"}, "FLEET_LIMIT must be a whole number"),
])  # fmt: skip
def test_what_the_endpoint_cannot_do_is_refused(environ: dict[str, str], named: str) -> None:
    """What RDS Proxy refuses or ends by itself is a problem at the start, not at the first connect."""
    (problem,) = problems({**MINIMUM, **environ})
    assert f"PLUNGEPOOL_{named}" in problem


def test_tickets_are_for_what_has_advisory_locks() -> None:
    """Aurora DSQL has none and is refused; behind a proxy, whose connections are what counts, adaptive is tiny."""
    whole = {"host": "db.example", "user": "app", "pool": "adaptive"}
    with pytest.raises(SettingsError, match="Aurora DSQL has no advisory locks; use tiny"):
        Settings(**whole, auth="dsql", region="eu-west-1")
    assert Settings(**whole, password="x").policy == "adaptive"
    behind = Settings(**whole, password="x", endpoint="proxy", fleet_limit=10, fleet="shop")
    assert (behind.pool, behind.policy) == ("adaptive", "tiny")
    assert [Settings(host="h", user="u", password="x", pool=pool).policy for pool in ("tiny", "null")] == [
        "tiny",
        "null",
    ]


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("db.example:5432", "must not contain a port: set PLUNGEPOOL_PORT"),
        ("[::1]", "without its brackets"),
        ("[::1]:5432", "PLUNGEPOOL_PORT"),
        ("my..host", "is not a valid host name"),
        (".db.example", "is not a valid host name"),
        ("db.example..", "is not a valid host name"),
        ("a" * 64 + ".example", "is not a valid host name"),
        ("a.example." * 30, "is not a valid host name"),
        (
            "xn--\N{GREEK SMALL LETTER ALPHA}\N{HEBREW LETTER ALEF}\N{ARABIC-INDIC DIGIT ONE}",
            "is not a valid host name",
        ),
        ("1:2:3", "not an IPv6 address"),
        ("db.example:host", "not an IPv6 address"),
        ("db .example", "without user, port, path or spaces"),
        ("db.example\t", "without user, port, path or spaces"),
        ("postgresql://u:hunter2-hunter2@db/d", "one host name"),
        ("/var/run/postgresql", "one host name"),
    ],
)
def test_what_no_resolver_takes_is_refused(host: str, words: str) -> None:
    """
    A port, brackets, an empty part, a part too long: said with the setting, and not by a DNS error at the connect.
    """
    (problem,) = problems(MINIMUM | {"PLUNGEPOOL_HOST": host})
    assert problem.startswith("PLUNGEPOOL_HOST")
    assert words in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "host", ["localhost", "db.example.", "10.0.0.7", "::1", "fe80::1%eth0", "2001:db8::1", "my_host",
    "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example", "a" * 63 + ".example"]
)  # fmt: skip
def test_what_a_resolver_takes_is_a_host(host: str) -> None:
    """Names with a final dot, an underscore or letters of other scripts, and addresses of both families."""
    assert Settings.from_env(MINIMUM | {"PLUNGEPOOL_HOST": host}).host == host


@given(st.text(max_size=80))
def test_no_host_that_is_taken_makes_the_resolver_raise(host: str) -> None:
    """Whatever passes here can be encoded as a resolver wants it: no UnicodeError leaves a connect."""
    try:
        settings = Settings(host=host, user="u", password="p")
    except SettingsError:
        return
    encoded = settings.host.encode("idna")
    assert encoded
    assert b"\0" not in encoded


@pytest.mark.parametrize(
    ("address", "dialled"),
    [
        ("127.0.0.1", ("127.0.0.1", 5432)),
        ("localhost:15432", ("localhost", 15432)),
        ("::1", ("::1", 5432)),
        ("[::1]", ("::1", 5432)),
        ("[::1]:6543", ("::1", 6543)),
    ],
)
def test_address_is_a_host_and_perhaps_a_port(address: str, dialled: tuple[str, int]) -> None:
    """Both families, with and without a port; without one it is PLUNGEPOOL_PORT's."""
    settings = Settings.from_env(MINIMUM | {"PLUNGEPOOL_ADDRESS": address})
    assert settings.address is not None
    assert split_address(settings.address, settings.port) == dialled
    assert settings.host == "db.example"


@pytest.mark.parametrize(
    "address",
    ["localhost:", "localhost:0", "localhost:70000", "localhost:x", ":5432", "[::1", "[::1]5432", "[]:1", "a b",
    "a..b", "[db.example:]:1", "127.0.0.1:5432:6", "localhost:\N{ARABIC-INDIC DIGIT ONE}"],
)  # fmt: skip
def test_address_that_cannot_be_dialled_is_refused(address: str) -> None:
    """Half a port, no host, a host that no resolver takes."""
    (problem,) = problems(MINIMUM | {"PLUNGEPOOL_ADDRESS": address})
    assert problem.startswith("PLUNGEPOOL_ADDRESS must")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", [*NAMES, "url"])
def test_line_break_at_the_end_is_named(name: str, end: str) -> None:
    """Whatever was copied from a file or a secret with its line's end is said to have one, with its variable."""
    values = {
        "url": "postgresql://u@h/d", "host": "h", "port": "5432", "address": "h", "database": "d", "user": "u",
        "endpoint": "direct",
        "auth": "password", "password": SECRET, "secret_arn": "name", "region": "eu-west-1", "tls": "disable",
        "ca_file": "f",
        "pool": "tiny", "pool_size": "1", "pinning": "warn",
    }  # fmt: skip
    text = "; ".join(problems(MINIMUM | {variable(name): values.get(name, "5") + end}))
    assert variable(name) in text
    assert "line break" in text
    assert SECRET not in text


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_s")])
@pytest.mark.parametrize("value", ["1e300", "1e7", "1e-9", "-1", "-0.0001", "nan", "inf", "1_0", " 5", "5s"])
def test_seconds_have_bounds(name: str, value: str) -> None:
    """What would overflow a socket, TCP or the server, and what is no time at all, is refused with the bounds."""
    (problem,) = problems(MINIMUM | {variable(name): value})
    assert problem.startswith(f"{variable(name)} must be a number of seconds")


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_s")])
def test_seconds_at_their_bounds_are_what_a_socket_takes(name: str) -> None:
    """The longest and the shortest time that is allowed goes through a socket's own time-out and TCP's."""
    for value in (_SHORTEST_S, _SECONDS_AT_MOST[name]):
        assert getattr(Settings.from_env(MINIMUM | {variable(name): repr(value)}), name) == value
        with socket.socket() as sock:
            sock.settimeout(value)
            if name == "dead_peer_timeout_s":
                tune(sock, value)
    assert _SECONDS_AT_MOST["statement_timeout_s"] * 1000 < 2**31


@pytest.mark.parametrize(
    "name", ["arn:aws:rds:eu-west-1:1:db:d", "arn:aws:secretsmanager:eu-west-1:1:secret:", "arn:aws:secretsmanager",
    "a b", "a:b"]
)  # fmt: skip
def test_secret_that_is_none_is_refused(name: str) -> None:
    """The ARN of something else, and what cannot be a secret's name, is told before anything is asked of AWS."""
    environ = {"PLUNGEPOOL_HOST": "h", "PLUNGEPOOL_AUTH": "secret", "PLUNGEPOOL_SECRET_ARN": name}
    (problem,) = problems(environ)
    assert problem.startswith("PLUNGEPOOL_SECRET_ARN must be the ARN")


@pytest.mark.parametrize("region", ["eu west", "Ireland", "eu-west-1 ", "eu_west_1"])
def test_region_must_be_a_code(region: str) -> None:
    """A token signed for a region that does not exist is refused without a reason; a name of one's own is told here."""
    (problem,) = problems(MINIMUM | {"PLUNGEPOOL_REGION": region})
    assert problem.startswith("PLUNGEPOOL_REGION must be a region's code")


def test_number_of_a_thousand_digits_is_refused() -> None:
    """It is a problem like any other, and no ValueError of int's own limit."""
    (problem,) = problems(MINIMUM | {"PLUNGEPOOL_PORT": "1" * 5000})
    assert problem == "PLUNGEPOOL_PORT must be a whole number"
    with pytest.raises(SettingsError, match="PLUNGEPOOL_PORT must be a whole number from 1 to 65535, not that"):
        Settings(host="h", user="u", password="p", port=10**5000)


def test_region_comes_from_lambda_unless_it_is_set() -> None:
    """AWS_REGION is every function's; PLUNGEPOOL_REGION is for a database elsewhere."""
    environ = {"PLUNGEPOOL_HOST": "h", "PLUNGEPOOL_USER": "u", "PLUNGEPOOL_AUTH": "iam", "AWS_REGION": "eu-west-1"}
    assert Settings.from_env(environ).region == "eu-west-1"
    assert Settings.from_env({**environ, "PLUNGEPOOL_REGION": "us-east-1"}).region == "us-east-1"


def test_a_switch_is_true_or_false() -> None:
    """In a variable by these two words, as a keyword by these two values and no number."""
    for word, value in (("true", True), ("false", False), ("", False)):
        assert Settings.from_env({**MINIMUM, "PLUNGEPOOL_CONNECT_ON_RESTORE": word}).connect_on_restore is value
    with pytest.raises(SettingsError, match="CONNECT_ON_RESTORE must be true or false, not 1"):
        Settings(host="db.example", user="app", password="x", connect_on_restore=1)  # type: ignore[arg-type]


def test_an_empty_variable_counts_as_not_set() -> None:
    """SAM hands on an empty parameter as an empty variable."""
    assert Settings.from_env({**MINIMUM, "PLUNGEPOOL_SECRET_ARN": "", "PLUNGEPOOL_PORT": ""}).port == 5432


@given(password=names.filter(lambda text: len(text) > 3))
def test_no_text_of_settings_shows_the_password(password: str) -> None:
    """Neither repr nor str holds it; the documented texts around it do not count as showing it."""
    without = repr(Settings(host="h", user="u", password="x"))
    shown = repr(Settings(host="h", user="u", password=password))
    assert shown == without


def test_the_error_survives_pickling() -> None:
    """A multiprocessing worker hands it to its parent whole."""
    error = SettingsError(["a", "b"])
    assert pickle.loads(pickle.dumps(error)).problems == ("a", "b")
    assert isinstance(error, ValueError)
