"""After a stop or a crash: ends leftover processes and resumes the jobs that have not ended."""

import logging

from pfms.errors import Interrupted, NoMemory
from pfms.jobs.job import Job
from pfms.jobs.journal import Journal
from pfms.jobs.runs import Runs
from pfms.processes.kill import end_marked
from pfms.processes.marks import WORKSPACE_MARK
from pfms.storage.disk import reporting_full_disk
from pfms.storage.workspace import Workspace
from pfms.volumes.memory import RunMemory

log = logging.getLogger(__name__)


async def recover(
    workspace: Workspace, journal: Journal, runs: Runs, memory: RunMemory, max_attempts: int
) -> None:
    """End the processes that outlived their server, then queue or end each job that has not ended.

    Args:
        workspace: Locked by this server, so that every marked process belongs to an earlier one.
        journal: Of a table that is open and up to date with the folders.
        runs: Where the jobs continue.
        memory: What they may use: with other settings, or of an older pfms, a job may not fit.
        max_attempts: A job that was started this many times is not started again.

    Raises:
        DiskFull: There is no room to record the new state of a job.
    """
    records = journal.records
    ended = await end_marked(WORKSPACE_MARK, workspace.mark)
    if ended:
        log.warning("ended %d processes of an earlier server", ended)
    for model_id, seconds in await journal.call(records.last_seconds, 50):
        runs.estimates.remember(model_id, seconds)
    for job in await journal.call(records.active):
        recovered = _recovered(job, memory, max_attempts)
        if recovered is not job:
            try:
                with reporting_full_disk():
                    await journal.call(records.write, recovered)
            except OSError as error:  # one folder that cannot be written must not stop the start
                log.error("job %s is left alone: %s", job.id, error, extra={"job": job.id})
                continue
            if recovered.ended:
                runs.count_end(recovered)
            if recovered.state != job.state:
                log.warning(
                    "job %s was %s and is now %s",
                    job.id,
                    job.state,
                    recovered.state,
                    extra={"job": job.id},
                )
        if not recovered.ended:
            runs.add(recovered)


def _recovered(job: Job, memory: RunMemory, max_attempts: int) -> Job:
    if job.cancel_requested:
        return job.cancelled("It was cancelled, and the server stopped before it ended.")
    volume = job.volume
    needed = memory.needed(volume.shape, volume.spacing, volume.dtype, volume.scaled)
    if needed != job.estimated_memory_bytes:
        job = job.changed(estimated_memory_bytes=needed)
    try:
        memory.check(needed)
    except NoMemory as error:
        return job.failed(error)
    if job.state == "queued":
        return job
    if job.attempts >= max_attempts:
        return job.failed(
            Interrupted(
                f"The server died while running it, {job.attempts} times.",
                "POST to the job's /rerun to try once more.",
            )
        )
    return job.requeued(count_the_attempt=True)
