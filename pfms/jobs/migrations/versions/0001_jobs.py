"""The table of jobs and the events of each."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("model_id", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("ended_at", sa.String),
        sa.Column("purged_at", sa.String),
        sa.Column("idempotency_key", sa.String, unique=True),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_index("jobs_by_time", "jobs", ["created_at", "id"])
    op.create_index("jobs_by_state", "jobs", ["state", "created_at", "id"])
    op.create_index("jobs_by_model", "jobs", ["model_id", "created_at", "id"])
    op.create_index("jobs_by_both", "jobs", ["model_id", "state", "created_at", "id"])
    op.create_index("jobs_by_end", "jobs", ["ended_at"])
    op.create_table(
        "events",
        sa.Column("n", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_index("events_of_job", "events", ["job_id", "n"])
