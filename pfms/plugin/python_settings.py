"""Python's own settings in the environment that runs do not get. Pure."""

# These are meant for the server, or for debugging. Those that say where Python and its packages are
# (PYTHONPATH, PYTHONHOME, PYTHONUSERBASE, PYTHONNOUSERSITE) are not in the list: a run has to find
# the plugin as the server does.
NOT_FOR_RUNS = (
    "PYTHONSAFEPATH",  # a script would not find the modules beside it
    "PYTHONWARNINGS",  # with `error`, a library's warning would end the run
    "PYTHONWARNDEFAULTENCODING",
    "PYTHONDEVMODE",
    "PYTHONOPTIMIZE",  # the plugin's assertions would not be checked
    "PYTHONINSPECT",  # a run that failed would end with code 0
    "PYTHONSTARTUP",
    "PYTHONVERBOSE",  # thousands of lines would hide why a run failed
    "PYTHONPROFILEIMPORTTIME",
    "PYTHONMALLOCSTATS",
    "PYTHONDUMPREFS",
    "PYTHONTRACEMALLOC",  # several times slower
    "PYTHONMALLOC",
)
