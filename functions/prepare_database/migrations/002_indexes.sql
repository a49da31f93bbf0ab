-- One index for the pages of orders (read backwards) and for the sales of a day (a range of it).
CREATE INDEX orders_by_time ON shop.orders (placed_at, id);

CREATE INDEX orders_by_customer ON shop.orders (customer_id);
