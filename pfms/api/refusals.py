"""The errors that several calls may answer with, each group named once, for the documentation.

tests/documented.py holds every answer of the tests against what the documentation of its call says.
"""

from pfms import errors

MODEL_IN_QUERY = (errors.MissingModelID, errors.InvalidModelID)
MODEL_IN_PATH = (errors.ModelNotFound, errors.InvalidModelID)
UPLOAD = (
    errors.MissingFile,
    errors.InvalidParameter,
    errors.UnsupportedCoding,
    errors.RequestTimeout,
    errors.TooLarge,
)
VOLUME = (errors.NotANifti, errors.TruncatedNifti, errors.UnsupportedNifti)
QUEUE = (errors.QueueFull, errors.NoDevice)
RUN = tuple(errors.leaves(errors.RunFailed))
RESULT = (
    errors.JobNotFinished,
    errors.JobFailed,
    errors.ResultantNotMade,
    errors.Gone,
    errors.BadResult,
)
