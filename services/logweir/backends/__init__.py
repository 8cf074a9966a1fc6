"""Doors to the outside: Redis (journal), PostgreSQL (store, control, provisioning)."""
