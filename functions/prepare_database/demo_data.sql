-- A shop to look at: two customers, four products, and the orders of 14 January 2026. Fixed ids, so that the events in
-- events/ can name them; what is there already stays as it is.
INSERT INTO shop.customers (id, name, email) VALUES
    ('00000000-0000-4000-8000-0000000000c1', 'Ada Lovelace', 'ada@example.com'),
    ('00000000-0000-4000-8000-0000000000c2', 'Grace Hopper', 'grace@example.com')
ON CONFLICT DO NOTHING;

INSERT INTO shop.products (sku, name, price, stock) VALUES
    ('TOWEL', 'Bath towel', 19.90, 500),
    ('GOGGLES', 'Swimming goggles', 24.50, 200),
    ('CAP', 'Bathing cap', 7.25, 300),
    ('FLOAT', 'Pull buoy', 14.00, 0)
ON CONFLICT DO NOTHING;

WITH wanted AS (
    SELECT CAST('00000000-0000-4000-8000-' || lpad(n::text, 12, '0') AS uuid) AS id,
           CAST('00000000-0000-4000-8000-0000000000c' || 1 + n % 2 AS uuid) AS customer_id,
           timestamptz '2026-01-14 08:00:00+00' + n * interval '17 minutes' AS placed_at,
           (ARRAY['TOWEL', 'GOGGLES', 'CAP'])[1 + n % 3] AS sku,
           1 + n % 4 AS quantity
    FROM generate_series(1, 40) AS n
), placed AS (
    INSERT INTO shop.orders (id, customer_id, placed_at, total)
    SELECT wanted.id, customer_id, placed_at, quantity * price FROM wanted JOIN shop.products USING (sku)
    ON CONFLICT DO NOTHING
    RETURNING id
)
INSERT INTO shop.order_lines (order_id, sku, quantity, price)
SELECT placed.id, sku, quantity, price FROM placed JOIN wanted USING (id) JOIN shop.products USING (sku);

-- The orders of two tenants, each stored in its own name: where the owner is no superuser the policy binds it, too.
SELECT set_config('app.tenant_id', 'acme', true);
INSERT INTO tenants.orders (id, sku, quantity, placed_at) VALUES
    ('00000000-0000-4000-8000-0000000000a1', 'TOWEL', 12, '2026-01-14 09:00:00+00'),
    ('00000000-0000-4000-8000-0000000000a2', 'CAP', 30, '2026-01-14 10:00:00+00'),
    ('00000000-0000-4000-8000-0000000000a3', 'GOGGLES', 6, '2026-01-14 11:00:00+00')
ON CONFLICT DO NOTHING;
SELECT set_config('app.tenant_id', 'globex', true);
INSERT INTO tenants.orders (id, sku, quantity, placed_at) VALUES
    ('00000000-0000-4000-8000-0000000000b1', 'TOWEL', 200, '2026-01-14 09:30:00+00'),
    ('00000000-0000-4000-8000-0000000000b2', 'FLOAT', 50, '2026-01-14 10:30:00+00')
ON CONFLICT DO NOTHING;
SELECT set_config('app.tenant_id', '', true);
