"""The auth role: who may do what; keys of tenants. `app.py` is where to start reading."""
