"""Python's own settings in the environment, and which of them no run gets. Pure."""

# They are meant for the server, or for looking into a program. What says where Python and its
# packages are (PYTHONPATH, PYTHONHOME, PYTHONUSERBASE, PYTHONNOUSERSITE) is not among them: the
# plugin has to be found in a run as the server finds it.
NOT_FOR_RUNS = (
    "PYTHONSAFEPATH",  # a script would not find what lies beside it
    "PYTHONWARNINGS",  # with `error`, a library's warning would end the run
    "PYTHONWARNDEFAULTENCODING",
    "PYTHONDEVMODE",
    "PYTHONOPTIMIZE",  # the plugin's assertions would not be looked at
    "PYTHONINSPECT",  # a run that failed would end with code 0
    "PYTHONSTARTUP",
    "PYTHONVERBOSE",  # thousands of lines would hide why a run failed
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONMALLOCSTATS",
    "PYTHONDUMPREFS",
    "PYTHONTRACEMALLOC",  # several times slower
    "PYTHONMALLOC",
)
