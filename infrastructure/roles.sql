-- The application's role: what it may do, and how much of the database it may hold. The server enforces these limits,
-- whatever a client does; Plungepool expects each of them to strike, and recovers.
--
-- prepare_database runs this file. By hand, as the owner of the database:
--     psql -c "SET plungepool.role_name = 'plungepool_app'" -c "SET plungepool.connection_limit = '20'" -f roles.sql
-- Settings: plungepool.role_name, .connection_limit, .role_password (a SCRAM verifier, or empty for none) and
-- .iam_login ('true', 'false', or empty: where the role rds_iam exists and no password is given). Runs any number of times.
DO $roles$
DECLARE
    role_name text := coalesce(nullif(current_setting('plungepool.role_name', true), ''), 'plungepool_app');
    connection_limit integer := coalesce(nullif(current_setting('plungepool.connection_limit', true), ''), '20');
    role_password text := nullif(current_setting('plungepool.role_password', true), '');
    iam_login boolean := nullif(current_setting('plungepool.iam_login', true), '');
    has_rds_iam boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_iam');
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = role_name AND (rolsuper OR rolname IN (current_user, session_user)))
    THEN
        RAISE EXCEPTION 'role "%" owns this database or is a superuser: the application needs a role of its own', role_name
            USING ERRCODE = 'invalid_role_specification';
    END IF;

    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
        EXECUTE format('CREATE ROLE %I', role_name);
    END IF;
    EXECUTE format('ALTER ROLE %I LOGIN CONNECTION LIMIT %s', role_name, connection_limit);
    IF role_password IS NOT NULL THEN
        EXECUTE format('ALTER ROLE %I PASSWORD %L', role_name, role_password);
    END IF;

    -- A role that has rds_iam can log in with a token only: IAM goes before the password. So a role whose password
    -- RDS Proxy keeps in a secret must not have it.
    iam_login := coalesce(iam_login, has_rds_iam AND role_password IS NULL);
    IF iam_login AND NOT has_rds_iam THEN
        RAISE EXCEPTION 'IAM login is asked for, and this server has no role rds_iam: it is not RDS or Aurora'
            USING ERRCODE = 'undefined_object';
    ELSIF iam_login THEN
        EXECUTE format('GRANT rds_iam TO %I', role_name);
    ELSIF has_rds_iam AND pg_has_role(role_name, 'rds_iam', 'MEMBER') THEN
        EXECUTE format('REVOKE rds_iam FROM %I', role_name);
    END IF;

    -- A statement, a wait for a lock and a transaction left open end by themselves.
    EXECUTE format('ALTER ROLE %I SET statement_timeout = %L', role_name, '10s');
    EXECUTE format('ALTER ROLE %I SET lock_timeout = %L', role_name, '3s');
    EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = %L', role_name, '10s');
    -- An environment that Lambda has discarded never says goodbye: its connection is closed here. PostgreSQL 14 and newer.
    IF current_setting('server_version_num')::integer >= 140000 THEN
        EXECUTE format('ALTER ROLE %I SET idle_session_timeout = %L', role_name, '15min');
    END IF;

    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role_name);
    EXECUTE format('GRANT USAGE ON SCHEMA shop TO %I', role_name);
    EXECUTE format('GRANT SELECT ON shop.customers, shop.products, shop.orders, shop.order_lines, shop.shipments TO %I', role_name);
    EXECUTE format('GRANT INSERT ON shop.orders, shop.order_lines, shop.shipments TO %I', role_name);
    EXECUTE format('GRANT UPDATE (stock) ON shop.products TO %I', role_name);
    EXECUTE format('GRANT UPDATE (status, fulfilled_at) ON shop.orders TO %I', role_name);
END
$roles$;
