"""Settings: what is read, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import dataclasses
import pickle
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from plungepool import Settings, SettingsError
from plungepool.settings import variable

MINIMUM = {"PLUNGEPOOL_HOST": "db.example", "PLUNGEPOOL_USER": "app", "PLUNGEPOOL_PASSWORD": "hunter2-hunter2"}
SECRET = "pa55-%&/:@?#[]+ wörd"
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
seconds = st.floats(min_value=0.001, max_value=1e6)


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    """Return what from_env finds wrong."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    return caught.value.problems


def test_parts_give_the_documented_defaults() -> None:
    """Host, user and password suffice; the rest is as design and README say."""
    settings = Settings.from_env(MINIMUM)
    assert (settings.port, settings.database, settings.endpoint, settings.auth) == (
        5432,
        "postgres",
        "direct",
        "password",
    )
    assert (settings.tls, settings.pool, settings.pool_size) == ("verify-full", "tiny", 1)
    assert (settings.checkout_timeout_s, settings.connect_timeout_s, settings.max_age_s) == (5.0, 5.0, 1800.0)


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


@given(known=st.sampled_from(sorted(variable(one.name) for one in dataclasses.fields(Settings))), data=st.data())
def test_a_typo_is_never_silent(known: str, data: st.DataObject) -> None:
    """A PLUNGEPOOL_ name with one letter dropped is a problem that names the right one."""
    at = data.draw(st.integers(len("PLUNGEPOOL_"), len(known) - 1))
    typo = known[:at] + known[at + 1 :]
    assume(typo not in {variable(one.name) for one in dataclasses.fields(Settings)} | {"PLUNGEPOOL_URL"})
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
    ("PORT", "70000"), ("PORT", "5432.0"), ("PORT", " 5432"), ("PORT", "٥٤٣٢"), ("POOL_SIZE", "-1"), ("POOL_SIZE", "1_0"),
    ("MAX_AGE_S", "0"), ("MAX_AGE_S", "nan"), ("MAX_AGE_S", "inf"), ("CHECKOUT_TIMEOUT_S", "-1"), ("ENDPOINT", "Proxy"),
    ("POOL", "adaptive"), ("AUTH", "none"), ("HOST", "a,b"), ("HOST", "user@db"), ("PINNING", "yes"),
])  # fmt: skip
def test_a_wrong_value_is_refused(name: str, value: str) -> None:
    """Nothing is guessed: each of these is one problem that names its variable."""
    (problem,) = problems({**MINIMUM, "PLUNGEPOOL_" + name: value})
    assert problem.startswith("PLUNGEPOOL_" + name)


@pytest.mark.parametrize("url", [
    "mysql://u@h/d", "db.example", "postgresql://u@h:port/d", "postgresql:///d", f"postgresql://u:{SECRET}@h/d",
    "postgresql://u:hunter2-hunter2@h/d?sslmode=disable", "postgresql://u:hunter2-hunter2@h/d#x", "postgresql://[u:hunter2-hunter2@h",
])  # fmt: skip
def test_a_wrong_url_is_refused_without_quoting_it(url: str) -> None:
    """The text names PLUNGEPOOL_URL and shows nothing of it, since a password may stand in it."""
    text = "; ".join(problems({"PLUNGEPOOL_URL": url, "PLUNGEPOOL_USER": "u"}))
    assert "PLUNGEPOOL_URL" in text
    assert "hunter2" not in text
    assert SECRET not in text


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
])  # fmt: skip
def test_what_the_endpoint_cannot_do_is_refused(environ: dict[str, str], named: str) -> None:
    """What RDS Proxy refuses or ends by itself is a problem at the start, not at the first connect."""
    (problem,) = problems({**MINIMUM, **environ})
    assert f"PLUNGEPOOL_{named}" in problem


def test_region_comes_from_lambda_unless_it_is_set() -> None:
    """AWS_REGION is every function's; PLUNGEPOOL_REGION is for a database elsewhere."""
    environ = {"PLUNGEPOOL_HOST": "h", "PLUNGEPOOL_USER": "u", "PLUNGEPOOL_AUTH": "iam", "AWS_REGION": "eu-west-1"}
    assert Settings.from_env(environ).region == "eu-west-1"
    assert Settings.from_env({**environ, "PLUNGEPOOL_REGION": "us-east-1"}).region == "us-east-1"


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
