"""
What row-level security does for the connected role, and where rows get past it; for the doctor.

Policies bind whom they bind: no superuser, no role with BYPASSRLS, no owner of a table without FORCE; and what reads a
table in another's name (a view, a function) is bound as that other is. Here PostgreSQL's catalog is read by names,
operators and types of pg_catalog alone, whatever the search path leads to, and judged in Python.

Source: PostgreSQL manual, "Row Security Policies", "CREATE POLICY", "CREATE VIEW" (security_invoker), "Partitioning",
"pg_has_role"; src/backend/utils/misc/rls.c, check_enable_rls, and rewrite/rowsecurity.c.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sqlalchemy import Connection

# As many names as a line holds; whoever wants the others names a schema.
_NAMES_AT_MOST = 20
_TEXT_AT_MOST = 120
_FILES = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files")
# This package's own, which all tenants share on purpose.
_SHARED = ("plungepool.idempotency", "plungepool.once_keys")
_SETTING = re.compile(r"current_setting\('((?:[^']|'')+)'")
_TRUE = ("1", "on", "t", "tr", "tru", "true", "y", "ye", "yes")

# Whoever the session is, and whoever it may become: SET is a privilege of its own from PostgreSQL 16 on, and whoever
# has the ADMIN option may grant it.
_ROLES = text("""
    SELECT rolname AS name, pg_catalog.quote_ident(rolname) AS quoted, rolsuper AS superuser, rolbypassrls AS bypasses,
           rolreplication AS replicates, rolcreaterole AS creates_roles,
           rolname OPERATOR(pg_catalog.=) current_user AS is_current,
           rolname OPERATOR(pg_catalog.=) session_user AS is_session,
           pg_catalog.pg_has_role(
               session_user, oid,
               CASE WHEN pg_catalog.current_setting('server_version_num')::pg_catalog.int4 OPERATOR(pg_catalog.<) 160000
                    THEN 'MEMBER' ELSE 'SET' END
           ) OR pg_catalog.pg_has_role(session_user, oid, 'MEMBER WITH ADMIN OPTION') AS can_be_set,
           EXISTS (
               SELECT FROM pg_catalog.pg_class
               WHERE relowner OPERATOR(pg_catalog.=) pg_roles.oid AND relrowsecurity
           ) AS owns_protected,
           pg_catalog.current_setting('server_version_num')::pg_catalog.int4 AS version
    FROM pg_catalog.pg_roles
    WHERE rolname OPERATOR(pg_catalog.=) current_user OR pg_catalog.pg_has_role(session_user, oid, 'MEMBER')
    ORDER BY rolname
""")
_SCHEMAS = text("""
    SELECT nspname AS name FROM pg_catalog.pg_namespace
    WHERE nspname OPERATOR(pg_catalog.=) ANY (CAST(:schemas AS pg_catalog.text[]))
""")
# Tables, partitioned and foreign ones, views and materialized ones. PostgreSQL's own are left out, what is temporary,
# and what an extension has made.
_RELATIONS = text("""
    SELECT c.oid::pg_catalog.int8 AS oid, n.nspname AS schema,
           pg_catalog.format('%I.%I', n.nspname, c.relname) AS name, c.relkind::pg_catalog.text AS kind,
           c.relowner::pg_catalog.int8 AS owner_oid,
           pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) AS owner,
           c.relrowsecurity AS protected, c.relforcerowsecurity AS forced, c.reloptions AS options,
           pg_catalog.pg_has_role(current_user, c.relowner, 'USAGE') AS owned,
           pg_catalog.pg_get_userbyid(c.relowner) OPERATOR(pg_catalog.=) current_user AS is_owner,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS reachable,
           pg_catalog.has_any_column_privilege(c.oid, 'SELECT') AS can_select,
           pg_catalog.has_any_column_privilege(c.oid, 'INSERT') AS can_insert,
           pg_catalog.has_any_column_privilege(c.oid, 'UPDATE') AS can_update,
           pg_catalog.has_table_privilege(c.oid, 'DELETE') AS can_delete,
           pg_catalog.has_table_privilege(c.oid, 'TRUNCATE') AS can_truncate
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    WHERE c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'p', 'f', 'v', 'm']::pg_catalog."char"[])
      AND c.relpersistence OPERATOR(pg_catalog.<>) 't'
      AND n.nspname OPERATOR(pg_catalog.<>) 'information_schema'
      AND NOT pg_catalog.starts_with(n.nspname, 'pg_')
      AND NOT EXISTS (
          SELECT FROM pg_catalog.pg_depend AS d
          WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid OPERATOR(pg_catalog.=) c.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'
      )
    ORDER BY 3
""")
_PARENTS = text("""
    SELECT inhrelid::pg_catalog.int8 AS child, inhparent::pg_catalog.int8 AS parent FROM pg_catalog.pg_inherits
""")
# What a view reads, whatever it reads it for.
_READS = text("""
    SELECT DISTINCT r.ev_class::pg_catalog.int8 AS view, d.refobjid::pg_catalog.int8 AS relation
    FROM pg_catalog.pg_rewrite AS r
    JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) r.ev_class
     AND c.relkind OPERATOR(pg_catalog.=) 'v'
    JOIN pg_catalog.pg_depend AS d ON d.objid OPERATOR(pg_catalog.=) r.oid
     AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass
     AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
     AND d.refobjid OPERATOR(pg_catalog.<>) r.ev_class
""")
# Which owners of views and functions no policy binds, and for which owners of tables they are taken.
_OWNERS = text("""
    WITH acting AS (
        SELECT relowner AS oid FROM pg_catalog.pg_class WHERE relkind OPERATOR(pg_catalog.=) 'v'
        UNION SELECT proowner FROM pg_catalog.pg_proc WHERE prosecdef
    ), owning AS (
        SELECT DISTINCT relowner AS oid FROM pg_catalog.pg_class WHERE relrowsecurity AND NOT relforcerowsecurity
    )
    SELECT acting.oid::pg_catalog.int8 AS role, rolsuper OR rolbypassrls AS unbound,
           ARRAY(
               SELECT owning.oid::pg_catalog.int8 FROM owning
               WHERE pg_catalog.pg_has_role(acting.oid, owning.oid, 'USAGE')
           ) AS owners
    FROM acting JOIN pg_catalog.pg_roles ON pg_roles.oid OPERATOR(pg_catalog.=) acting.oid
""")
# A policy is for PUBLIC (0) or for roles, their members included. An expression that calls no function, asks for no
# user and reads no other table is the same for whoever asks; its tree says so better than its text. Operators with
# numbers of five digits are not PostgreSQL's own: what they do is not known.
_POLICIES = text("""
    SELECT p.polrelid::pg_catalog.int8 AS relation, pg_catalog.quote_ident(p.polname) AS name,
           p.polpermissive AS permissive, p.polcmd::pg_catalog.text AS command,
           EXISTS (
               SELECT FROM pg_catalog.unnest(p.polroles) AS bound (oid)
               WHERE CASE WHEN bound.oid OPERATOR(pg_catalog.=) 0 THEN true
                          ELSE pg_catalog.pg_has_role(current_user, bound.oid, 'USAGE') END
           ) AS applies,
           pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS using_text,
           pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) AS check_text,
           p.polqual::pg_catalog.text OPERATOR(pg_catalog.!~) known.of_who_asks AS using_same,
           p.polwithcheck::pg_catalog.text OPERATOR(pg_catalog.!~) known.of_who_asks AS check_same,
           pg_catalog.concat(p.polqual::pg_catalog.text, p.polwithcheck::pg_catalog.text)
               OPERATOR(pg_catalog.~) known.strict AS strict
    FROM pg_catalog.pg_policy AS p, (
        SELECT '[{](FUNCEXPR|SQLVALUEFUNCTION|SUBLINK) |opfuncid [0-9]{5}' AS of_who_asks,
               pg_catalog.concat('funcid ', (
                   'pg_catalog.current_setting(pg_catalog.text)'::pg_catalog.regprocedure::pg_catalog.oid
               ), ' ') AS strict
    ) AS known
    ORDER BY p.polname
""")
_FUNCTIONS = text("""
    SELECT n.nspname AS schema, p.proowner::pg_catalog.int8 AS owner_oid,
           pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(p.proowner)) AS owner,
           pg_catalog.format(
               '%I.%I(%s)', n.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)
           ) AS name
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
    WHERE p.prosecdef
      AND p.prorettype OPERATOR(pg_catalog.<>) ALL (
          ARRAY['pg_catalog.trigger', 'pg_catalog.event_trigger']::pg_catalog.regtype[]::pg_catalog.oid[]
      )
      AND n.nspname OPERATOR(pg_catalog.<>) 'information_schema'
      AND NOT pg_catalog.starts_with(n.nspname, 'pg_')
      AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
      AND NOT EXISTS (
          SELECT FROM pg_catalog.pg_depend AS d
          WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e'
      )
    ORDER BY 4
""")


class Finding(NamedTuple):
    """What was looked at, how it is, what was found, and what to do if that is not well."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class _Catalog:
    """What the catalog says; relations and roles by their oid."""

    relations: dict[int, Any]
    parents: dict[int, set[int]]
    reads: dict[int, set[int]]
    owners: dict[int, Any]
    policies: dict[int, list[Any]]
    functions: Sequence[Any]
    schemas: Collection[str]

    @classmethod
    def read(cls, connection: Connection, schemas: Collection[str]) -> _Catalog:
        parents, reads, policies = defaultdict(set), defaultdict(set), defaultdict(list)
        for row in connection.execute(_PARENTS):
            parents[row.child].add(row.parent)
        for row in connection.execute(_READS):
            reads[row.view].add(row.relation)
        for row in connection.execute(_POLICIES):
            policies[row.relation].append(row)
        return cls(
            {row.oid: row for row in connection.execute(_RELATIONS)},
            parents,
            reads,
            {row.role: row for row in connection.execute(_OWNERS)},
            policies,
            connection.execute(_FUNCTIONS).all(),
            schemas,
        )

    def ancestors(self, relation: Any) -> list[Any]:
        """Return what a table is a partition or a child of, and what that is one of."""
        found, rest = [], [*self.parents.get(relation.oid, ())]
        while rest:
            oid = rest.pop()
            if oid in self.relations:
                found.append(self.relations[oid])
            rest += self.parents.get(oid, ())
        return found

    def is_chosen(self, relation: Any) -> bool:
        """Whether the user asks about it: it, or what it is a partition of, is in one of the schemas."""
        return not self.schemas or any(one.schema in self.schemas for one in (relation, *self.ancestors(relation)))

    def tables(self) -> Iterator[Any]:
        """Yield each table, also foreign and materialized, that the role may use by its own name."""
        for relation in self.relations.values():
            if relation.kind != "v" and _uses(relation) and self.is_chosen(relation):
                yield relation

    def beneath(self, view: Any) -> Iterator[tuple[Any, int | None]]:
        """
        Yield what a view reads at last, each with the role in whose name it does; None is the role that is connected.

        A view with security_invoker reads as who asks the outermost one, all others as their own owner.
        """
        seen, rest = set(), [(view.oid, None)]
        while rest:
            oid, role = rest.pop()
            if (oid, role) in seen or oid not in self.relations:
                continue
            seen.add((oid, role))
            relation = self.relations[oid]
            if relation.kind == "v":
                as_whom = None if _is_invoker(relation) else relation.owner_oid
                rest += [(one, as_whom) for one in self.reads.get(oid, ())]
            else:
                yield relation, role

    def is_bound(self, role: int, table: Any) -> bool:
        """Whether the policies of a table bind the owner of a view or of a function."""
        owner = self.owners.get(role)
        # One that was made since the owners were read is looked at the next time.
        return owner is None or not (owner.unbound or (not table.forced and table.owner_oid in owner.owners))


def examine(
    connection: Connection, schemas: Collection[str] = (), *, required: Collection[str] = (), variable: str = ""
) -> Iterator[Finding]:
    """
    Say whether row-level security holds for the connected role, and where not.

    Args: connection: as the application's role. schemas: the only ones to look at; none for all that the role may use.
        required: the settings without which no transaction begins; variable: where these are named.
    Returns: what was found, what is worst first. failed: rows get past the policies, or could; warning: it depends on
        what the table is for.
    Raises: sqlalchemy.exc.DBAPIError.
    """
    roles = connection.execute(_ROLES).all()
    role = next(one for one in roles if one.is_current)
    yield from _role(role, roles)
    if role.superuser:
        return  # whom everything belongs to: what else could be said is the same for every table
    if schemas:
        there = {row.name for row in connection.execute(_SCHEMAS, {"schemas": [*schemas]})}
        for missing in sorted({*schemas} - there):
            yield Finding("RLS schemas", "failed", f"there is no schema {missing!r}", "correct the schema's name")
        if not there:
            return
    catalog = _Catalog.read(connection, schemas)
    yield from _set_role(role, roles)
    yield from _ownership(role, catalog)
    yield from _tables(role, catalog)
    yield from _partitions(role, catalog)
    yield from _views(role, catalog)
    yield from _functions(catalog)
    yield from _policies(role, catalog, required, variable)


def _role(role: Any, roles: Sequence[Any]) -> Iterator[Finding]:
    """Say whether policies bind the role, and the one that the session began as, which SET ROLE NONE gives back."""
    session = next((one for one in roles if one.is_session), role)
    found = False
    for one in [role] if session is role else [role, session]:
        who = (
            one.quoted
            if one is role
            else f"{one.quoted}, as which the session began and to which SET ROLE NONE returns,"
        )
        own = "connect as a role of the application's own, without these (infrastructure/roles.sql)"
        said = []
        if one.superuser:
            said.append((f"{who} is a superuser, to whom no policy applies: it reads and writes every row", own))
        elif one.bypasses:
            said.append((f"{who} has BYPASSRLS: no policy applies to it", f"ALTER ROLE {one.quoted} NOBYPASSRLS"))
        if one.replicates and not one.superuser:
            what = f"{who} has REPLICATION: it may stream every change of every table, bypassing all policies"
            said.append((what, f"ALTER ROLE {one.quoted} NOREPLICATION"))
        if one.creates_roles and one.version < 160000 and not one.superuser:
            what = (
                f"{who} has CREATEROLE, with which, before PostgreSQL 16, it can make itself a member of any role "
                "that is not a superuser"
            )
            said.append((what, f"ALTER ROLE {one.quoted} NOCREATEROLE"))
        for what, cure in said:
            found = True
            yield Finding("RLS role", "failed", what, cure)
    files = [one.quoted for one in roles if one.name in _FILES]
    if files and not role.superuser:
        found = True
        what = (
            f"{role.quoted} is a member of {_listed(files)}, whose members can access the server's files, bypassing "
            "all policies"
        )
        yield Finding("RLS role", "failed", what, f"REVOKE {', '.join(files)} FROM {role.quoted}")
    if not found:
        yield Finding(
            "RLS role", "ok", f"{role.quoted} is not a superuser and does not have BYPASSRLS: policies apply to it"
        )


def _set_role(role: Any, roles: Sequence[Any]) -> Iterator[Finding]:
    """Name the roles that the session may become and that no policy binds, or that may change the policies."""
    others = [one for one in roles if one.can_be_set and not one.is_current and not one.is_session]
    said = {}
    for one in others:
        reasons = {
            "a superuser": one.superuser,
            "BYPASSRLS": one.bypasses,
            "owner of tables with policies": one.owns_protected,
        }
        if why := [reason for reason, is_one in reasons.items() if is_one]:
            said[one.quoted] = f"{one.quoted} ({why[0]})"
    if said:
        which = _listed(said.values())
        yield Finding(
            "RLS set role",
            "failed",
            f"{role.quoted} may SET ROLE to {which}",
            f"REVOKE {_listed(said)} FROM {role.quoted}, or from the role through which it is a member",
        )


def _ownership(role: Any, catalog: _Catalog) -> Iterator[Finding]:
    """Name the tables with policies that belong to the role, itself or by a membership that it inherits."""
    owned = [table for table in catalog.tables() if table.owned and table.protected]
    names = {
        table.oid: table.name if table.is_owner else f"{table.name} (as a member of {table.owner})" for table in owned
    }
    loose = [table for table in owned if not table.forced]
    if loose:
        yield Finding(
            "RLS owner",
            "failed",
            f"{role.quoted} owns {_listed(names[one.oid] for one in loose)}: without FORCE, no policy applies to the "
            "owner",
            f"transfer them to a role of which {role.quoted} is not a member "
            f"({_each('ALTER TABLE {} OWNER TO …', loose)}), or "
            f"{_each('ALTER TABLE {} FORCE ROW LEVEL SECURITY', loose)}",
        )
    forced = [table for table in owned if table.forced]
    if forced:
        yield Finding(
            "RLS owner",
            "warning",
            f"{role.quoted} owns {_listed(names[one.oid] for one in forced)}: FORCE applies the policies to it, until "
            "it executes NO FORCE, DISABLE or DROP POLICY, as an owner may",
            f"transfer them to a role of which {role.quoted} is not a member "
            f"({_each('ALTER TABLE {} OWNER TO …', forced)})",
        )


def _tables(role: Any, catalog: _Catalog) -> Iterator[Finding]:
    """Name the tables that the role may use and that no policy protects, and what policies never apply to."""
    tables = [*catalog.tables()]
    if not tables and not any(_uses(one) and catalog.is_chosen(one) for one in catalog.relations.values()):
        where = f"schema {', '.join(sorted(catalog.schemas))}" if catalog.schemas else "this database"
        found = f"{role.quoted} has no privileges on any table in {where}: there is nothing to check"
        yield Finding("RLS tables", "warning", found, "GRANT it what the application needs, and check again")
    plain = [one for one in tables if one.kind in "rp" and not one.protected]
    # What is reached through a parent is said of the parent.
    said = {one.oid for one in plain}
    plain = [one for one in plain if not any(above.protected or above.oid in said for above in catalog.ancestors(one))]
    idle = [one for one in plain if catalog.policies.get(one.oid)]
    if idle:
        found = f"the policies of {_listed(one.name for one in idle)} do nothing: row-level security is not enabled"
        yield Finding("RLS tables", "failed", found, _each("ALTER TABLE {} ENABLE ROW LEVEL SECURITY", idle))
    bare = [one for one in plain if one not in idle and one.name not in _SHARED]
    if bare:
        yield Finding(
            "RLS tables",
            "warning",
            f"no row-level security: {role.quoted} may {_listed(map(_use, bare))}, every row",
            f"tables with rows of tenants need policies: {_each('ALTER TABLE {} ENABLE ROW LEVEL SECURITY', bare)}, "
            "and CREATE POLICY; tables that all tenants share can stay as they are",
        )
    other = [one for one in tables if one.kind in "fm"]
    if other:
        kinds = {"f": "a foreign table", "m": "a materialized view, filled as its owner"}
        yield Finding(
            "RLS tables",
            "warning",
            f"policies cannot protect these relations: {role.quoted} may "
            + _listed(f"{_use(one)} ({kinds[one.kind]})" for one in other),
            f"if it contains rows of tenants: {_each(f'REVOKE ALL ON {{}} FROM {role.quoted}', other)}",
        )
    emptied = [one for one in tables if one.protected and one.can_truncate and not one.owned]
    if emptied:
        found = f"{role.quoted} may TRUNCATE {_listed(one.name for one in emptied)}, which no policy limits"
        yield Finding("RLS tables", "failed", found, _each(f"REVOKE TRUNCATE ON {{}} FROM {role.quoted}", emptied))


def _partitions(role: Any, catalog: _Catalog) -> Iterator[Finding]:
    """Name the partitions and children that are reached past their parent's policies."""
    found = []
    for table in catalog.tables():
        above = [one for one in catalog.ancestors(table) if one.protected]
        if above and not table.protected:
            found.append((table, f"{_use(table)} (of {above[0].name})"))
    if found:
        revoke = _each(f"REVOKE ALL ON {{}} FROM {role.quoted}", (table for table, _ in found))
        yield Finding(
            "RLS partitions",
            "failed",
            f"by their own names, bypassing their parents' policies, {role.quoted} may "
            f"{_listed(said for _, said in found)}",
            f"{revoke}: a query on the parent requires privileges on the parent only; or ENABLE ROW LEVEL SECURITY on "
            "them, too, with policies of their own",
        )


def _views(role: Any, catalog: _Catalog) -> Iterator[Finding]:
    """Name the views that read in their owner's name what the role itself would not see."""
    known = {table.oid for table in catalog.tables()}
    past: list[tuple[Any, str]] = []
    bare: list[tuple[Any, str]] = []
    for view in catalog.relations.values():
        if view.kind != "v" or not _uses(view):
            continue
        beneath = [(table, owner) for table, owner in catalog.beneath(view) if owner is not None]
        if not any(map(catalog.is_chosen, [view, *(table for table, _ in beneath)])):
            continue
        seen = [table for table, owner in beneath if table.protected and not catalog.is_bound(owner, table)]
        plain = [table for table, _ in beneath if not table.protected and table.oid not in known]
        for tables, views in ((seen, past), (plain, bare)):
            if tables:
                names = sorted({table.name for table in tables})
                views.append((view, f"{_use(view)} (of {_listed(names)}, as {view.owner})"))
    if past:
        views = [view for view, _ in past]
        cure = (
            f"{_each('ALTER VIEW {} SET (security_invoker = true)', views)}, and GRANT {role.quoted} what it reads"
            if role.version >= 150000
            else f"{_each('ALTER VIEW {} OWNER TO …', views)}, a role to which policies apply"
        )
        which = _listed(said for _, said in past)
        found = f"views run as their owner, to whom no policy applies: {role.quoted} may {which}"
        yield Finding("RLS views", "failed", found, cure)
    if bare:
        which = _listed(said for _, said in bare)
        found = f"views show tables without row-level security: {role.quoted} may {which}"
        yield Finding("RLS views", "warning", found, "if they contain rows of tenants, these tables need policies, too")


def _functions(catalog: _Catalog) -> Iterator[Finding]:
    """Name the functions that run in the name of an owner whom policies do not bind."""
    protected = [one for one in catalog.relations.values() if one.protected]
    past = [
        one
        for one in catalog.functions
        if (not catalog.schemas or one.schema in catalog.schemas)
        and any(not catalog.is_bound(one.owner_oid, table) for table in protected)
    ]
    if past:
        yield Finding(
            "RLS functions",
            "warning",
            "functions run as their owner, to whom no policy applies (SECURITY DEFINER): "
            + _listed(f"{one.name} (as {one.owner})" for one in past),
            "review what they do for which tenant; ALTER FUNCTION … SECURITY INVOKER where the caller's privileges "
            "are enough",
        )


class _Side(NamedTuple):
    """What one policy says for one command: which rows are seen, or which may be written."""

    policy: Any
    written: bool
    clause: str
    same: bool


def _sides(policy: Any, command: str) -> Iterator[_Side]:
    """Yield what a policy says for a command; where nothing is said of the new row, it is what is said of the old."""
    letters = {"SELECT": "r", "INSERT": "a", "UPDATE": "w", "DELETE": "d"}
    if policy.command not in ("*", letters[command]):
        return
    using = policy.using_text and (_clause("USING", policy.using_text), policy.using_same)
    check = policy.check_text and (_clause("WITH CHECK", policy.check_text), policy.check_same)
    if using and command != "INSERT":
        yield _Side(policy, False, *using)
    if (check or using) and command in ("INSERT", "UPDATE"):
        yield _Side(policy, True, *(check or using))


def _clause(what: str, expression: str) -> str:
    shown = expression if len(expression) <= _TEXT_AT_MOST else f"{expression[:_TEXT_AT_MOST]}…"
    return f"{what} {shown if shown.startswith('(') else f'({shown})'}"


def _open_sides(policies: Sequence[Any], command: str) -> Iterator[tuple[_Side, bool]]:
    """
    Yield what lets the same rows through whoever asks, and whether that undoes another policy.

    Permissive policies are joined by OR, and restrictive ones to these by AND.
    """
    sides = [side for policy in policies for side in _sides(policy, command)]
    for written in (False, True):
        own = [side for side in sides if side.written == written]
        if any(not side.policy.permissive and not side.same for side in own):
            continue
        permissive = [side for side in own if side.policy.permissive]
        for side in permissive:
            if side.same:
                yield side, any(not other.same for other in permissive)


def _policies(role: Any, catalog: _Catalog, required: Collection[str], variable: str) -> Iterator[Finding]:
    """Say which policies bind the role, and which of them do less than they seem to."""
    closed, strict, well, read = [], [], [], set()
    undone: dict[str, list[str]] = defaultdict(list)
    alone: dict[str, list[str]] = defaultdict(list)
    for table in catalog.tables():
        if not table.protected or (table.owned and not table.forced):
            continue
        policies = [one for one in catalog.policies.get(table.oid, ()) if one.applies]
        if not any(policy.permissive for policy in policies):
            # A partition that only its parent leads to needs none.
            closed += [] if any(parent.protected for parent in catalog.ancestors(table)) else [table]
            continue
        is_open = False
        for command in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            if getattr(table, f"can_{command.lower()}"):
                for side, undoes in _open_sides(policies, command):
                    is_open = True
                    what = f"{side.policy.name} on {table.name}, {side.clause}"
                    (undone if undoes else alone)[what].append(command)
        strict += [f"{policy.name} on {table.name}" for policy in policies if policy.strict]
        read |= {name.replace("''", "'") for one in policies for name in _settings_read(one)}
        if not is_open and not any(policy.strict for policy in policies):
            well.append(table)
    yield from _open_policies(undone, alone)
    if strict:
        yield Finding(
            "RLS policies",
            "warning",
            f"without the setting, these fail in a fresh session (42704) and read '' in a used one: {_listed(strict)}",
            "read it with nullif(current_setting('…', true), ''), which is NULL in both and matches no row",
        )
    if closed:
        found = f"no policy of {_listed(one.name for one in closed)} lets {role.quoted} see or write a row"
        cure = f"CREATE POLICY … ON {closed[0].name} TO {role.quoted}, or REVOKE what it may do there"
        yield Finding("RLS policies", "warning", found, cure)
    if well and not role.bypasses:
        found = f"policies apply to {role.quoted} in {_listed(one.name for one in well)}"
        if read:
            found += f"; they read {', '.join(sorted(read))}"
        if forgotten := sorted(read - {*required}):
            wanted = f"{variable}={','.join(sorted({*required} | read))}"
            found += f". {wanted} would refuse a transaction that forgets {' or '.join(forgotten)}"
        yield Finding("RLS policies", "ok", found)


def _open_policies(undone: dict[str, list[str]], alone: dict[str, list[str]]) -> Iterator[Finding]:
    """Say which policies are the same for every tenant: worse where there are others, which they undo."""
    if undone:
        yield Finding(
            "RLS policies",
            "failed",
            f"permissive policies are combined with OR, so that these undo the others: {_for_commands(undone)}",
            "DROP POLICY; or CREATE POLICY … AS RESTRICTIVE, which is combined with AND",
        )
    if alone:
        yield Finding(
            "RLS policies",
            "warning",
            f"these let the same rows through for every tenant: {_for_commands(alone)}",
            "tables with rows of tenants need a policy that checks whose transaction it is or, if each tenant has a "
            "role, one TO that role; tables that all tenants share can stay as they are",
        )


def _for_commands(found: dict[str, list[str]]) -> str:
    return _listed((f"{what} for {', '.join(dict.fromkeys(commands))}" for what, commands in found.items()), "; ")


def _settings_read(policy: Any) -> list[str]:
    return _SETTING.findall(f"{policy.using_text} {policy.check_text}")


def _is_invoker(view: Any) -> bool:
    options = dict(option.partition("=")[::2] for option in view.options or ())
    return options.get("security_invoker", "").lower() in _TRUE


def _uses(relation: Any) -> bool:
    """Whether the role may use it by its name."""
    return bool(relation.reachable and (relation.can_select or _writes(relation)))


def _writes(relation: Any) -> bool:
    return bool(relation.can_insert or relation.can_update or relation.can_delete)


def _use(relation: Any) -> str:
    """Say what the role may do with a relation, by its name."""
    done = ["read"] if relation.can_select else []
    return f"{' and '.join(done + (['write'] if _writes(relation) else []))} {relation.name}"


def _listed(names: Iterable[str], between: str = ", ") -> str:
    every = [*names]
    left = len(every) - _NAMES_AT_MOST
    return between.join(every[:_NAMES_AT_MOST]) + (f" and {left} more" if left > 0 else "")


def _each(statement: str, relations: Iterable[Any]) -> str:
    """Return a statement for the first of some, so that it can be copied, and say that there are others."""
    first, *others = [one.name for one in relations]
    return statement.format(first) + (f" (and {len(others)} more)" if others else "")
