-- A small shop. Money is numeric, never a float. Keys are random UUIDs: a statement that calls nextval ties a client of
-- RDS Proxy to one database connection, and ids that do not count tell nobody how many orders there are.
CREATE TABLE shop.customers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL,
    email text NOT NULL UNIQUE
);

CREATE TABLE shop.products (
    sku text PRIMARY KEY,
    name text NOT NULL,
    price numeric(12, 2) NOT NULL CHECK (price >= 0),
    stock integer NOT NULL CHECK (stock >= 0)
);

CREATE TABLE shop.orders (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    customer_id uuid NOT NULL REFERENCES shop.customers,
    status text NOT NULL DEFAULT 'placed' CHECK (status IN ('placed', 'fulfilled')),
    total numeric(14, 2) NOT NULL CHECK (total >= 0),
    placed_at timestamptz NOT NULL DEFAULT now(),
    fulfilled_at timestamptz,
    CHECK ((status = 'fulfilled') = (fulfilled_at IS NOT NULL))
);

-- The price is that of the day of the order: a product that becomes dearer changes no order.
CREATE TABLE shop.order_lines (
    order_id uuid NOT NULL REFERENCES shop.orders,
    sku text NOT NULL REFERENCES shop.products,
    quantity integer NOT NULL CHECK (quantity > 0),
    price numeric(12, 2) NOT NULL CHECK (price >= 0),
    PRIMARY KEY (order_id, sku)
);

-- At most one shipment an order, whatever a queue delivers twice.
CREATE TABLE shop.shipments (
    order_id uuid PRIMARY KEY REFERENCES shop.orders,
    created_at timestamptz NOT NULL DEFAULT now()
);
