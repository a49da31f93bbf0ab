"""
What the documentation leaves open, what Plungepool expects, and what the evidence of one run says of it. Pure.

`docs/verify-on-aws.md` lists each fact by its name; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

# The databases of a run: Aurora or an instance behind an RDS Proxy, or Aurora's express configuration behind its gateway.
_PROXIED, _EXPRESS = frozenset({"aurora", "instance"}), frozenset({"express"})

# What each probe returned, by "probe" or "probe argument"; a probe that failed is missing.
Evidence = Mapping[str, Any]
Verdict = Literal["as expected", "otherwise", "measured", "not seen"]


@dataclass(frozen=True, slots=True)
class Fact:
    """
    A question with the answer that the code relies on, or is prepared for; `judge` returns what was seen, and whether
    it is that.
    """

    name: str
    question: str
    expected: str
    judge: Callable[[Evidence], tuple[str, bool | None]]
    modes: frozenset[str] = _PROXIED


@dataclass(frozen=True, slots=True)
class Finding:
    """What one run says of a fact."""

    fact: Fact
    seen: str
    verdict: Verdict


def judge(evidence: Evidence, mode: str = "aurora") -> list[Finding]:
    """
    Return a finding for every fact that this kind of database can show, in order; "not seen" where its probe did not
    run or gave no answer.
    """
    return [_judge(fact, evidence) for fact in FACTS if mode in fact.modes]


def _judge(fact: Fact, evidence: Evidence) -> Finding:
    try:
        seen, agrees = fact.judge(evidence)
    except (KeyError, TypeError, IndexError):
        return Finding(fact, "", "not seen")
    return Finding(fact, seen, "measured" if agrees is None else "as expected" if agrees else "otherwise")


def _pins(suspect: str, expected: bool) -> Callable[[Evidence], tuple[str, bool | None]]:
    def look(evidence: Evidence) -> tuple[str, bool | None]:
        found = evidence[f"pinning {suspect}"]
        if "refused" in found:
            return f"refused: {found['refused']['sqlstate']} {found['refused']['message']}", False
        if not _method_works(evidence) and suspect not in ("nothing", "SET"):
            raise KeyError("the controls did not come out: no suspect's result means anything")
        seen = "pins" if found["pinned"] else "does not pin"
        logged = "; ".join(found.get("logged", ()))
        return f"{seen}{f' (the log: {logged})' if logged else ''}", found["pinned"] is expected

    return look


def _method_works(evidence: Evidence) -> bool:
    return evidence["pinning nothing"]["pinned"] is False and evidence["pinning SET"]["pinned"] is True


def _answer(found: Mapping[str, str]) -> str:
    return str(found["value"]) if "value" in found else f"{found['sqlstate']} {found['message']}"


def _refused(probe: str, case: str, *codes: str) -> Callable[[Evidence], tuple[str, bool | None]]:
    def look(evidence: Evidence) -> tuple[str, bool | None]:
        found = evidence[probe][case]
        return _answer(found), found.get("sqlstate") in codes

    return look


def _accepted(probe: str, case: str) -> Callable[[Evidence], tuple[str, bool | None]]:
    def look(evidence: Evidence) -> tuple[str, bool | None]:
        found = evidence[probe][case]
        return _answer(found), "value" in found

    return look


def _trusted(probe: str, *by: str) -> Callable[[Evidence], tuple[str, bool | None]]:
    def look(evidence: Evidence) -> tuple[str, bool | None]:
        found = evidence[probe]
        trusted = [name for name, is_trusted in found["trusted_by"].items() if is_trusted and name != "runtime"]
        shown = f"{found.get('subject', 'nothing')} from {found.get('issuer', 'nobody')}, chain of {found.get('chain_length', 0)}"
        return f"{shown}; verified by: {', '.join(trusted) or 'none'}", set(trusted) == set(by)

    return look


def _versions(probe: str) -> Callable[[Evidence], tuple[str, bool | None]]:
    def look(evidence: Evidence) -> tuple[str, bool | None]:
        versions = evidence[probe]["versions"]
        return ", ".join(version for version, spoken in versions.items() if spoken) or "none", all(versions.values())

    return look


def _split(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["split"]
    refused = ", ".join(f"{count} times {code}" for code, count in found["refused"].items()) or "none"
    return f"{found['right']} right, {found['wrong']} wrong, refused: {refused}", bool(
        found["wrong"] or found["refused"]
    )


def _runtime_store(evidence: Evidence) -> tuple[str, bool | None]:
    trusts = [probe for probe in ("proxy", "direct") if evidence[f"tls {probe}"]["trusted_by"]["runtime"]]
    return f"verifies: {', '.join(trusts) or 'neither'}", "direct" not in trusts


def _reserved(evidence: Evidence) -> tuple[str, bool | None]:
    limits = evidence["prepare"]["limits"]
    names = ("superuser_reserved_connections", "reserved_connections", "rds.rds_superuser_reserved_connections")
    seen = ", ".join(f"{name} {limits.get(name, 'unknown')}" for name in names)
    return f"{seen}, max_connections {limits['max_connections']}", None


def _secret(evidence: Evidence) -> tuple[str, bool | None]:
    fields = evidence["prepare"]["secret_fields"]
    return ", ".join(fields), fields == ["password", "username"]


def _rate(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["rate"]
    refused = ", ".join(f"{count} times {code}" for code, count in found["refused"].items()) or "none"
    return f"{found['per_s']:g} a second from one function, refused: {refused}", None


def _borrow(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["borrow"]
    return f"{found['sqlstate']} {found['message']} after {found['waited_s']:g} s", found["sqlstate"] in (
        "08000",
        "08006",
        "53300",
    )


def _metric(evidence: Evidence) -> tuple[str, bool | None]:
    return f"at most {evidence['metrics']['DatabaseConnectionsCurrentlySessionPinned']:g}", None


def _capacity(evidence: Evidence) -> tuple[str, bool | None]:
    return f"{evidence['metrics']['MaxDatabaseConnectionsAllowed']:g} at most", None


def _sigterm(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["shutdown"]
    if found["sigterm"]:
        return "SIGTERM arrived", True
    return f"no SIGTERM within {found['waited_s']:.0f} s of a new configuration", False


def _cpu(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["shutdown"]
    return f"{found['handler_s'] / found['init_s']:.1f} times as fast in init, at 256 MB", None


def _bundle(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["bundle"]
    return f"{found['served']} certificates, {found['missing']} of them not shipped", found["missing"] == 0


def _check(evidence: Evidence) -> tuple[str, bool | None]:
    checks = evidence["check_database"]["checks"]
    failed = [f"{check['name']}: {check['found']}" for check in checks if check["state"] == "failed"]
    return "; ".join(failed) or f"{len(checks)} steps, none failed", not failed


def _measured(probe: str, case: str) -> Callable[[Evidence], tuple[str, bool | None]]:
    def look(evidence: Evidence) -> tuple[str, bool | None]:
        return _answer(evidence[probe][case]), None

    return look


def _cancels(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["session direct"]["cancel"]
    return _answer(found), found.get("value") == "cancelled"


def _ends_when_idle(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["session direct"]["idle"]
    # A connection is looked at before it is used: an end without a word is seen as well.
    return _answer(found), found.get("sqlstate") == "57P05" or "hung up" in found.get("message", "")


def _gateway(evidence: Evidence) -> tuple[str, bool | None]:
    cluster = evidence["cluster"]
    names = ("InternetAccessGatewayEnabled", "VPCNetworkingEnabled", "IAMDatabaseAuthenticationEnabled")
    seen = tuple(cluster.get(name) for name in names)
    shown = ", ".join(f"{name} {value}" for name, value in zip(names, seen, strict=True))
    return f"{shown}, version {cluster.get('EngineVersion')}", seen == (True, False, True)


def _capacity_of_gateway(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["capacity"]
    refused = f"; then {_answer(found)}" if "sqlstate" in found else ", all that were asked for"
    return f"{found['held']} at a time{refused}; max_connections {found.get('max_connections', 'unknown')}", None


def _gateway_trust_store(evidence: Evidence) -> tuple[str, bool | None]:
    trusts = evidence["tls direct"]["trusted_by"]["runtime"]
    return "verifies it" if trusts else "does not verify it", None


def _cloudformation(evidence: Evidence) -> tuple[str, bool | None]:
    names = evidence["schema"]["properties"]
    return ", ".join(names) or "no property", not names


def _registration(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["snapshot"]
    if found["began"] != "snap-start":
        raise KeyError("the environment was not restored from a snapshot")
    connection = "open" if found["connection"] else "closed"
    # An identifier that the Extensions API does not know is refused; anything else means that it does.
    return f"{found['registration']}; init's own connection is {connection}", "Unknown" not in found["registration"]


def _restored_sigterm(evidence: Evidence) -> tuple[str, bool | None]:
    found = evidence["snapshot"]
    seen = "SIGTERM arrived" if found["sigterm"] else "no SIGTERM"
    return f"{seen} within {found['waited_s']:.0f} s", None


_ALL = _PROXIED | _EXPRESS
FACTS = (
    Fact("check-database", "Does the function check_database find the way?", "no step fails", _check, _ALL),
    Fact("control-multiplexes", "Control: does a plain SELECT leave its connection to others?", "does not pin", _pins("nothing", False)),
    Fact("control-pins", "Control: does SET pin?", "pins", _pins("SET", True)),
    Fact("set-local", "Does SET LOCAL pin?", "pins (assumed)", _pins("SET LOCAL", True)),
    Fact("set-config-local", "Does set_config(…, true) pin?", "pins (assumed)", _pins("set_config, local", True)),
    Fact("begin-read-only", "Does BEGIN READ ONLY pin?", "does not pin", _pins("BEGIN READ ONLY", False)),
    Fact("identity-column", "Does an identity column's implicit nextval pin?", "does not pin", _pins("identity column", False)),
    Fact("nextval", "Does an explicit nextval() pin?", "pins", _pins("nextval", True)),
    Fact("transaction-lock", "Does pg_advisory_xact_lock pin?", "does not pin", _pins("advisory lock of a transaction", False)),
    Fact("declared-cursor", "Does a cursor declared in a transaction pin?", "pins", _pins("declared cursor", True)),
    Fact("long-statement", "Does a statement over 16 KB pin?", "pins", _pins("over 16 KB", True)),
    Fact("pipelined-transaction", "Do BEGIN, Parse, Bind, Execute in one flight pin?", "does not pin", _pins("pipelined, in a transaction", False)),
    Fact("pipelined-autocommit", "Do Parse, Bind, Execute in one flight pin?", "does not pin", _pins("pipelined, autocommit", False)),
    Fact("unnamed-statement", "Does an unnamed statement in several flights pin?", "does not pin", _pins("unnamed statement, a Sync after Parse", False)),
    Fact("named-statement", "Does a named statement pin?", "pins (assumed)", _pins("named statement", True)),
    Fact("split-statement", "Is Parse answered by another connection than Bind, in autocommit?", "it may be", _split),
    Fact("pinned-metric", "DatabaseConnectionsCurrentlySessionPinned meanwhile", "", _metric),
    Fact("startup-statement-timeout", "What does the proxy do with statement_timeout at start-up?", "refuses it: 0A000", _refused("startup proxy", "statement_timeout", "0A000")),
    Fact("startup-lock-timeout", "What does it do with lock_timeout?", "refuses it: 0A000", _refused("startup proxy", "lock_timeout", "0A000")),
    Fact("startup-options", "What does it do with options=-c …?", "refuses it: 0A000", _refused("startup proxy", "options -c", "0A000")),
    Fact("startup-application-name", "Does it take application_name?", "it does", _accepted("startup proxy", "application_name")),
    Fact("startup-search-path", "Does it take search_path?", "it does", _accepted("startup proxy", "search_path")),
    Fact("token-refused-proxy", "How does the proxy refuse a wrong token?", "28P01 or 28000", _refused("refusals proxy", "another user's token", "28P01", "28000")),
    Fact("token-refused-database", "How does the database refuse one?", "28P01 or 28000", _refused("refusals direct", "another user's token", "28P01", "28000")),
    Fact("token-expired-proxy", "How does the proxy refuse an old token?", "28P01 or 28000", _refused("refusals proxy", "a token of an hour ago", "28P01", "28000")),
    Fact("token-short-proxy", "Does the proxy take X-Amz-Expires below 900?", "it does", _accepted("refusals proxy", "a token of five minutes")),
    Fact("token-short-database", "Does the database take it?", "it does", _accepted("refusals direct", "a token of five minutes")),
    Fact("plain-text-proxy", "How does the proxy refuse plain text?", "28000", _refused("refusals proxy", "no TLS", "28000", "28P01")),
    Fact("borrow-timeout", "How does the proxy say that it has no connection?", "08000, 08006 or 53300", _borrow),
    Fact("password-ahead-proxy", "Does the proxy take the password with the start-up message?", "it does", _accepted("waits proxy", "password ahead")),
    Fact("password-ahead-database", "Does the database take it?", "it does", _accepted("waits direct", "password ahead")),
    Fact("direct-tls-proxy", "Does the proxy speak TLS at once (PLUNGEPOOL_TLS_NEGOTIATION=direct)?", "", _measured("waits proxy", "direct TLS")),
    Fact("direct-tls-database", "Does the database?", "", _measured("waits direct", "direct TLS")),
    Fact("cancel-proxy", "Does a cancel request reach the database through the proxy?", "", _measured("session proxy", "cancel")),
    Fact("announced-proxy", "Which process does the proxy announce?", "", _measured("session proxy", "announced")),
    Fact("proxy-capacity", "MaxDatabaseConnectionsAllowed", "", _capacity),
    Fact("proxy-certificate", "Who issued the proxy's certificate?", "Amazon's public roots", _trusted("tls proxy", "amazon roots")),
    Fact("database-certificate", "Who issued the database's?", "the region's RDS authority", _trusted("tls direct", "region")),
    Fact("proxy-tls", "Which TLS does the proxy speak?", "1.2 and 1.3", _versions("tls proxy")),
    Fact("database-tls", "Which TLS does the database speak?", "1.2 and 1.3", _versions("tls direct")),
    Fact("runtime-trust-store", "Does Python's own trust store on Lambda verify the database?", "it does not", _runtime_store),
    Fact("regional-bundle", "Are all authorities of this region's bundle shipped?", "they are", _bundle, _ALL),
    Fact("reserved-connections", "How many connections are reserved?", "", _reserved, _ALL),
    Fact("managed-secret", "What is in the secret that RDS manages?", "password, username", _secret),
    Fact("connects-a-second", "How many IAM connects a second does the database take?", "", _rate, _ALL),
    Fact("gateway", "How is a cluster of express configuration connected?", "by a gateway, without a VPC, by IAM", _gateway, _EXPRESS),
    Fact("gateway-certificate", "Who issued the gateway's certificate?", "Amazon's public roots", _trusted("tls direct", "amazon roots"), _EXPRESS),
    Fact("gateway-trust-store", "Does Python's own trust store on Lambda verify it?", "", _gateway_trust_store, _EXPRESS),
    Fact("gateway-tls", "Which TLS does the gateway speak?", "1.2 and 1.3", _versions("tls direct"), _EXPRESS),
    Fact("gateway-direct-tls", "Does it speak TLS at once?", "", _measured("waits direct", "direct TLS"), _EXPRESS),
    Fact("gateway-password-ahead", "Does it take the password with the start-up message?", "it does", _accepted("waits direct", "password ahead"), _EXPRESS),
    Fact("gateway-password", "How does it refuse a password?", "28P01 or 28000", _refused("refusals direct", "a password", "28P01", "28000"), _EXPRESS),
    Fact("gateway-token-refused", "How does it refuse a wrong token?", "28P01 or 28000", _refused("refusals direct", "another user's token", "28P01", "28000"), _EXPRESS),
    Fact("gateway-token-short", "Does it take X-Amz-Expires below 900?", "it does", _accepted("refusals direct", "a token of five minutes"), _EXPRESS),
    Fact("gateway-plain-text", "How does it refuse plain text?", "28000", _refused("refusals direct", "no TLS", "28000", "28P01"), _EXPRESS),
    Fact("gateway-statement-timeout", "Does it pass statement_timeout on at start-up?", "it does", _accepted("startup direct", "statement_timeout"), _EXPRESS),
    Fact("gateway-options", "Does it pass options=-c … on?", "it does", _accepted("startup direct", "options -c"), _EXPRESS),
    Fact("gateway-application-name", "Does it take application_name?", "it does", _accepted("startup direct", "application_name"), _EXPRESS),
    Fact("gateway-cancel", "Does a cancel request reach the database through it?", "cancelled", _cancels, _EXPRESS),
    Fact("gateway-idle", "Does idle_session_timeout end a session through it?", "57P05, or the end without a word", _ends_when_idle, _EXPRESS),
    Fact("gateway-announced", "Which process does it announce?", "", _measured("session direct", "announced"), _EXPRESS),
    Fact("gateway-connections", "How many connections does it let through, and how does it refuse?", "", _capacity_of_gateway, _EXPRESS),
    Fact("cloudformation-express", "Has CloudFormation a property for express configuration?", "none", _cloudformation, _EXPRESS),
    Fact("sigterm", "Does an in-process extension that registers for no events bring SIGTERM?", "it does", _sigterm, _ALL),
    Fact("snapshot-registration", "Is it registered still after a restore from a snapshot (SnapStart)?", "it is", _registration, _ALL),
    Fact("snapshot-sigterm", "Does a restored environment get SIGTERM?", "", _restored_sigterm, _ALL),
    Fact("cpu-in-init", "Has init more CPU than the handler?", "", _cpu, _ALL),
)  # fmt: skip
