"""Groups of errors that several calls may return, for the documentation of the calls.

tests/documented.py compares every response in the tests with the documentation of its call.
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
    errors.TooManyRequests,
)
VOLUME = (errors.NotANifti, errors.TruncatedNifti, errors.UnsupportedNifti, errors.NoMemory)
QUEUE = (errors.QueueFull, errors.NoDevice, errors.TooManyRequests)
RUN = tuple(errors.leaves(errors.RunFailed))
RESULT = (
    errors.JobNotFinished,
    errors.JobFailed,
    errors.ResultantNotMade,
    errors.Gone,
    errors.BadResult,
)
