"""What misbehaving plugins share: where they are, and what is not theirs."""

from pathlib import Path

from common import segment

JOB = Path.cwd()
OUTSIDE = JOB.parents[2] / "outside"
SECRET = OUTSIDE / "secret"
OTHER_JOB = min(JOB.parent.iterdir())
OUTPUT = Path("output")
RESULT = OUTPUT / "inference" / "input" / "input_seg.nii.gz"
LOG = Path("plugin.log")
RECORD = Path("job.json")
COMMAND = Path("command.sh")


def segment_without(path):
    """Do the work, then remove one file of it, or of the job."""
    segment()
    path.unlink()
