"""PostgreSQL: driver, pool, transactions, replica, tables and migrations. Imports redis, text, runtime."""
