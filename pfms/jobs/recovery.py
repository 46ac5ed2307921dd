"""After a stop or a crash: what an earlier server left is ended, mended and taken up again."""

import logging

from pfms.errors import Cancelled, Interrupted
from pfms.jobs.job import Cause, Job
from pfms.jobs.runs import Runs
from pfms.jobs.table import Records
from pfms.processes.kill import end_marked
from pfms.processes.marks import WORKSPACE_MARK
from pfms.storage.disk import full_disk_is_told
from pfms.storage.workspace import Workspace

log = logging.getLogger(__name__)


async def recover(workspace: Workspace, records: Records, runs: Runs, max_attempts: int) -> None:
    """End the processes that outlived their server, then queue or end each job that has not ended.

    Args:
        workspace: Held by this server, so that every marked process is of an earlier one.
        records: Open, and brought up to date with the folders.
        runs: Where the jobs go on.
        max_attempts: A job that was started so often does not start again.

    Raises:
        DiskFull: There is no room to record what becomes of a job.
    """
    ended = await end_marked(WORKSPACE_MARK, workspace.mark)
    if ended:
        log.warning("ended %d processes of an earlier server", ended)
    for model_id, seconds in await runs.in_journal(records.last_seconds, 50):
        runs.remember_seconds(model_id, seconds)
    for job in await runs.in_journal(records.active):
        taken_up = _take_up(job, max_attempts)
        if taken_up is not job:
            try:
                with full_disk_is_told():
                    await runs.in_journal(records.write, taken_up)
            except OSError as error:  # one folder that cannot be written stops no start
                log.error("job %s is left as it is: %s", job.id, error)
                continue
            log.warning("job %s was %s and is now %s", job.id, job.state, taken_up.state)
        if not taken_up.ended:
            runs.enter(taken_up)


def _take_up(job: Job, max_attempts: int) -> Job:
    if job.cancel_requested:
        cause = Cause.of(Cancelled("It was cancelled, and the server stopped meanwhile."))
        return job.moved("cancelled", error=cause, idempotency_key=None)
    if job.state == "queued":
        return job
    if job.attempts >= max_attempts:
        cause = Cause.of(
            Interrupted(
                f"The server died under it {job.attempts} times.",
                "POST to the job's /rerun to try once more.",
            )
        )
        return job.moved("failed", error=cause, idempotency_key=None)
    return job.moved("queued", device=None)
