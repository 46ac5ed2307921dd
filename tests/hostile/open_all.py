"""Opens weights as the service's child does, but imports torch only once, since it starts slowly.

`PYTHON open_all.py FOLDER` prints what is said of each file in it, as a line of JSON.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pfms.plugin import PLUGIN
from pfms.programs import weights_child


def said_of(path: Path) -> str:
    """What the child would say of a file; this process may open no other afterwards."""
    try:
        weights_child.convert(path, path.parent.parent / "stored", PLUGIN.network, [])
    except weights_child.Refused as refused:
        return refused.detail if refused.code == "not-a-model" else refused.code
    except MemoryError:
        return "too much memory"
    except Exception as error:  # as `weights_child.main` has it
        return f"unforeseen: {error!r}"
    return "accepted"


def main(folder: Path) -> None:
    weights_child.limit()
    weights_child.plugin_network(PLUGIN.network)  # imports torch, for all of them
    for path in sorted(folder.iterdir()):
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        print(json.dumps([path.name, said_of(path)]), flush=True)
        os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
