"""Opens weights as the service's child does, but all of them in one process: torch starts slowly.

`PYTHON open_all.py FOLDER` prints what is said of each file in it, as a line of JSON.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pfms.plugin import PLUGIN
from pfms.programs import weights_child


def main(folder: Path) -> None:
    weights_child.confine()
    for path in sorted(folder.iterdir()):
        try:
            weights_child.convert(path, folder / "stored", PLUGIN.network)
            said = "accepted"
        except weights_child.Refused as refused:
            said = refused.detail if refused.code == "not-a-model" else refused.code
        except MemoryError:
            said = "too much memory"
        except Exception as error:  # as `weights_child.main` has it
            said = f"unforeseen: {error!r}"
        print(json.dumps([path.name, said]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
