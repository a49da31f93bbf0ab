"""
Names, as they are written: of a variable, a host with its port, a setting that a transaction may have for itself. Pure.

Settings, TLS and driver write them alike, and none has to know another for it.
"""

from __future__ import annotations

PREFIX = "PLUNGEPOOL_"

# What of the server's own settings a transaction may have for itself. Left out is what changes how statements or
# values are read (client_encoding, DateStyle, TimeZone), what has an option of its own (transaction_isolation), and who
# logged in (session_authorization).
LOCAL_SETTINGS = (
    "application_name",
    "idle_in_transaction_session_timeout",
    "jit",
    "lock_timeout",
    "role",
    "search_path",
    "statement_timeout",
    "synchronous_commit",
    "transaction_timeout",
    "work_mem",
)


def variable(name: str, prefix: str = "") -> str:
    """
    Return the environment variable of a setting: `pool_size` is PLUNGEPOOL_POOL_SIZE, or REPORTS_PLUNGEPOOL_POOL_SIZE.
    """
    return f"{prefix}{PREFIX}{name.upper()}"


def local_setting_problem(name: object) -> str | None:
    """Return why a setting of this name is none that a transaction may have for itself; None where it may."""
    if not isinstance(name, str):
        return f"the name of a setting must be text, not {type(name).__name__}"
    name = str.__str__(name)
    parts = name.split(".")
    if len(name) <= 200 and name.isascii() and all(part.isidentifier() for part in parts):
        if len(parts) > 1 or name.lower() in LOCAL_SETTINGS:
            return None
        return (
            f"the setting {name} cannot be set for a transaction: its name must contain a dot, such as app.tenant_id, "
            f"or be one of {', '.join(LOCAL_SETTINGS)}"
        )
    return (
        f"{name[:50]!r} is not a valid name of a setting: it must consist of words separated by a dot, such as "
        "app.tenant_id"
    )


def split_address(address: str, port: int) -> tuple[str, int]:
    """
    Return the host and the port of `host`, `host:port`, `[IPv6]:port` or an IPv6 address; `port` where it names none.

    Raises: ValueError where it is none of these.
    """
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
    else:
        at = address.index(":") if address.count(":") == 1 else len(address)
        host, bracket, rest = address[:at], "]", address[at:]
    number = rest[1:]
    if not host or not bracket or (rest and (rest[0] != ":" or not number.isascii() or not number.isdigit())):
        raise ValueError("no host, or an invalid port")
    return host, whole_number(number) if rest else port


def host_problem(value: str, port: str) -> str | None:
    """
    Return why a text cannot be a host's name or address, never quoting it: a whole URL may stand there by mistake.

    Args: port: the variable that a port belongs in.
    """
    if value.startswith("["):
        return f"must be an IPv6 address without its brackets; the port is set by {port}"
    if value.count(":") == 1 and value.rpartition(":")[2].isdigit():
        return f"must not contain a port: set {port} to it"
    if any(character.isspace() or character in "/@,[]" for character in value):
        return "must be one host name or address, without user, port, path or spaces"
    if ":" in value:
        import ipaddress

        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            return "must be one host name or address; it contains colons but is not an IPv6 address"
        return None
    try:
        encoded = value.encode("idna")
    except UnicodeError:
        encoded = b""
    # What getaddrinfo would answer with a raw UnicodeError.
    labels = value.removesuffix(".").split(".")
    if not encoded or not all(labels) or len(encoded) > 253:
        return (
            "is not a valid host name: each part between dots must have 1 to 63 letters, digits or hyphens, and all "
            "of it at most 253"
        )
    return None


def whole_number(text: str) -> int:
    # int() alone takes " 1_000 " and digits of every script.
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("a whole number")
    return int(text)
