"""The history of the jobs table's form, one file a step (Alembic)."""
