-- What belongs to several tenants, in a schema of its own: each table in it has row-level security, and
-- `plungepool doctor --rls --schema tenants` says whether it holds. A transaction says for whom it is by app.tenant_id
-- (docs/tenants.md); where it does not, or says '', there are no rows.
CREATE SCHEMA tenants;

CREATE TABLE tenants.orders (
    -- Whose it is nobody has to write, and the application may not.
    tenant_id text NOT NULL DEFAULT nullif(current_setting('app.tenant_id', true), '') CHECK (tenant_id <> ''),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- The products are those of the shop, which all tenants share.
    sku text NOT NULL REFERENCES shop.products,
    quantity integer NOT NULL CHECK (quantity > 0),
    placed_at timestamptz NOT NULL DEFAULT now(),
    -- The tenant comes first in every key and index: a unique id alone would tell one tenant that another has it.
    PRIMARY KEY (tenant_id, id)
);

CREATE INDEX orders_by_tenant ON tenants.orders (tenant_id, placed_at, id);

-- FORCE: the policy binds the owner, too, as whom migrations run; a superuser it binds never.
ALTER TABLE tenants.orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants.orders FORCE ROW LEVEL SECURITY;

-- For rows that are read, and for rows that are written. The setting may be missing (true), and after a transaction that
-- had it a session keeps it as '': both are no tenant.
CREATE POLICY of_tenant ON tenants.orders
    USING (tenant_id = nullif(current_setting('app.tenant_id', true), ''))
    WITH CHECK (tenant_id = nullif(current_setting('app.tenant_id', true), ''));
