-- The application's role: what it may do, and how much of the database it may hold.
--
-- Limits, which the server enforces whatever a client does: the rights below, and CONNECTION LIMIT. Only a role with
-- CREATEROLE, or a superuser, can change them; the application's role is neither.
-- Defaults, with which each session begins: the time-outs. A session may SET others, and the role may give itself others
-- (ALTER ROLE ... SET), until this file runs again: they stop a statement that got out of hand, not a client that means to.
-- Plungepool expects each of them to strike, and recovers.
--
-- prepare_database runs this file. By hand, as the owner of the database:
--     psql -c "SET plungepool.role_name = 'plungepool_app'" -c "SET plungepool.connection_limit = '20'" -f roles.sql
-- Settings: plungepool.role_name, .connection_limit, .role_password (a SCRAM verifier, or empty for none), .iam_login
-- ('true', 'false', or empty: where the role rds_iam exists and no password is given), and the time-outs by their own names:
-- .statement_timeout, .lock_timeout, .idle_in_transaction_session_timeout, .idle_session_timeout, such as '10s'.
-- Runs any number of times, and changes no limit that is as it should be. Sessions that are open keep the time-outs that they
-- began with: `plungepool drain` replaces them.
DO $roles$
DECLARE
    -- Declared by their full names and set in the body: what stands here is looked up before search_path is set.
    role_name pg_catalog.text;
    connection_limit pg_catalog.int4;
    role_password pg_catalog.text;
    iam_login pg_catalog.bool;
    has_rds_iam pg_catalog.bool;
    attribute pg_catalog.text;
    setting pg_catalog.text;
    value pg_catalog.text;
BEGIN
    -- Whoever may create in a schema of the search path (schema public up to PostgreSQL 14) could have an administrator
    -- run a function or an operator of theirs: one whose parameters fit a call better is what the call finds
    -- (CVE-2018-1058). From here on names and operators are PostgreSQL's own; it lasts until the transaction ends.
    SET LOCAL search_path = pg_catalog, pg_temp;

    role_name := coalesce(nullif(pg_catalog.current_setting('plungepool.role_name', true), ''), 'plungepool_app');
    connection_limit := coalesce(nullif(pg_catalog.current_setting('plungepool.connection_limit', true), ''), '20');
    role_password := nullif(pg_catalog.current_setting('plungepool.role_password', true), '');
    iam_login := nullif(pg_catalog.current_setting('plungepool.iam_login', true), '');
    has_rds_iam := EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rds_iam');

    IF EXISTS (
        SELECT FROM pg_catalog.pg_roles AS application, pg_catalog.pg_roles AS owner
        WHERE application.rolname = role_name
          AND (
              owner.rolsuper OR owner.rolname IN (current_user, session_user, 'rds_superuser')
              OR owner.oid = (SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
          )
          AND pg_catalog.pg_has_role(application.oid, owner.oid, 'MEMBER')
    ) THEN
        RAISE EXCEPTION 'role "%" owns this database or is a superuser, or is a member of a role that does or is: '
            'the application needs a role of its own', role_name
            USING ERRCODE = 'invalid_role_specification';
    END IF;

    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name) THEN
        EXECUTE pg_catalog.format('CREATE ROLE %I', role_name);
    END IF;
    IF EXISTS (
        SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name AND (NOT rolcanlogin OR rolconnlimit <> connection_limit)
    ) THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I LOGIN CONNECTION LIMIT %s', role_name, connection_limit);
    END IF;
    IF role_password IS NOT NULL THEN
        EXECUTE pg_catalog.format('ALTER ROLE %I PASSWORD %L', role_name, role_password);
    END IF;
    -- A role that has one of these could lift its limits, or read past them. Only what it has is taken: to name the
    -- others takes a superuser.
    FOR attribute IN
        SELECT taken.attribute
        FROM pg_catalog.pg_roles, LATERAL (VALUES
            ('NOCREATEROLE', rolcreaterole), ('NOCREATEDB', rolcreatedb), ('NOREPLICATION', rolreplication),
            ('NOBYPASSRLS', rolbypassrls)
        ) AS taken (attribute, held)
        WHERE rolname = role_name AND taken.held
    LOOP
        EXECUTE pg_catalog.format('ALTER ROLE %I %s', role_name, attribute);
    END LOOP;

    -- A role that has rds_iam can log in with a token only: IAM goes before the password. So a role whose password
    -- RDS Proxy keeps in a secret must not have it.
    iam_login := coalesce(iam_login, has_rds_iam AND role_password IS NULL);
    IF iam_login AND NOT has_rds_iam THEN
        RAISE EXCEPTION 'IAM login is asked for, and this server has no role rds_iam: it is not RDS or Aurora'
            USING ERRCODE = 'undefined_object';
    ELSIF iam_login THEN
        EXECUTE pg_catalog.format('GRANT rds_iam TO %I', role_name);
    ELSIF has_rds_iam AND pg_catalog.pg_has_role(role_name::pg_catalog.name, 'rds_iam'::pg_catalog.name, 'MEMBER') THEN
        EXECUTE pg_catalog.format('REVOKE rds_iam FROM %I', role_name);
    END IF;

    -- A statement, a wait for a lock and a transaction left open end by themselves. An environment that Lambda has
    -- discarded never says goodbye: its connection is closed by idle_session_timeout, which PostgreSQL 14 brought.
    FOR setting, value IN
        SELECT chosen.setting,
               coalesce(nullif(pg_catalog.current_setting('plungepool.' || chosen.setting, true), ''), chosen.value)
        FROM (VALUES
            ('statement_timeout', '10s'), ('lock_timeout', '3s'), ('idle_in_transaction_session_timeout', '10s'),
            ('idle_session_timeout', '15min')
        ) AS chosen (setting, value)
        WHERE EXISTS (SELECT FROM pg_catalog.pg_settings WHERE name = chosen.setting)
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name AND rolconfig @> ARRAY[setting || '=' || value]
        ) THEN
            EXECUTE pg_catalog.format('ALTER ROLE %I SET %I = %L', role_name, setting, value);
        END IF;
        -- What is set for the role in this database alone would go before it.
        IF EXISTS (
            SELECT FROM pg_catalog.pg_db_role_setting AS here, pg_catalog.unnest(here.setconfig) AS own
            WHERE here.setrole = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = role_name)
              AND here.setdatabase
                  = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
              AND pg_catalog.split_part(own, '=', 1) = setting
        ) THEN
            EXECUTE pg_catalog.format(
                'ALTER ROLE %I IN DATABASE %I RESET %I', role_name, pg_catalog.current_database(), setting
            );
        END IF;
    END LOOP;

    EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO %I', pg_catalog.current_database(), role_name);
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA shop TO %I', role_name);
    EXECUTE pg_catalog.format(
        'GRANT SELECT ON shop.customers, shop.products, shop.orders, shop.order_lines, shop.shipments TO %I', role_name
    );
    EXECUTE pg_catalog.format('GRANT INSERT ON shop.orders, shop.order_lines, shop.shipments TO %I', role_name);
    EXECUTE pg_catalog.format('GRANT UPDATE (stock) ON shop.products TO %I', role_name);
    EXECUTE pg_catalog.format('GRANT UPDATE (status, fulfilled_at) ON shop.orders TO %I', role_name);
    -- What has been done already, which goes when it has expired.
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA plungepool TO %I', role_name);
    EXECUTE pg_catalog.format(
        'GRANT SELECT, INSERT, UPDATE, DELETE ON plungepool.once_keys, plungepool.idempotency TO %I', role_name
    );

    -- What belongs to several tenants: rows by the policies of migration 004, and no column that says whose they are.
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA tenants TO %I', role_name);
    EXECUTE pg_catalog.format('GRANT SELECT, INSERT (sku, quantity) ON tenants.orders TO %I', role_name);

    -- As PostgreSQL 15 has it from the start: schema public is in the search path of every administrator who connects by
    -- other means. Whoever is to create there needs a grant of their own. Where public belongs to somebody else this is
    -- no more than a warning.
    IF EXISTS (
        SELECT FROM pg_catalog.pg_namespace, LATERAL pg_catalog.aclexplode(nspacl) AS granted
        WHERE nspname = 'public' AND granted.grantee = 0 AND granted.privilege_type = 'CREATE'
    ) THEN
        REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    END IF;
END
$roles$;
