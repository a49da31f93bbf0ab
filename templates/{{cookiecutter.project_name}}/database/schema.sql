-- The table and the function's role, with the limits that the server enforces. Run it as the owner of the database, any
-- number of times: psql --file database/schema.sql
CREATE TABLE IF NOT EXISTS page_visits (
    page   text PRIMARY KEY,
    visits bigint NOT NULL
);

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{{ cookiecutter.database_user }}') THEN
        CREATE ROLE "{{ cookiecutter.database_user }}" LOGIN;
    END IF;
    -- On RDS and Aurora the function signs in with a token.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_iam') THEN
        GRANT rds_iam TO "{{ cookiecutter.database_user }}";
    END IF;
END
$$;

-- What the whole fleet may hold; at least the function's concurrency, or some of its environments are refused.
ALTER ROLE "{{ cookiecutter.database_user }}" CONNECTION LIMIT 20;
ALTER ROLE "{{ cookiecutter.database_user }}" SET statement_timeout = '10s';
ALTER ROLE "{{ cookiecutter.database_user }}" SET lock_timeout = '3s';
ALTER ROLE "{{ cookiecutter.database_user }}" SET idle_in_transaction_session_timeout = '10s';
ALTER ROLE "{{ cookiecutter.database_user }}" SET idle_session_timeout = '15min';

GRANT SELECT, INSERT, UPDATE ON page_visits TO "{{ cookiecutter.database_user }}";
