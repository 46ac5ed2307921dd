"""The servers that a user has given a name: `~/.config/pfms/profiles.toml`.

::

    [default]
    server = "https://pfms.clinic.example"
    ca = "/etc/ssl/clinic.pem"
    token_file = "/home/me/clinic.token"
"""

import os
import tomllib
from pathlib import Path

DEFAULT = "default"
KEYS = ("server", "ca", "token_file")


def read_profile(name: str | None) -> dict[str, str]:
    """What a profile says; without a name, the profile `default`, which need not exist.

    Raises:
        ValueError: There is no such profile, or what is in the file is none.
    """
    own = os.environ.get("XDG_CONFIG_HOME", "")
    file = (Path(own) if own else Path.home() / ".config") / "pfms" / "profiles.toml"
    try:
        profiles = tomllib.loads(file.read_text())
    except FileNotFoundError:
        profiles = {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    if name is None and DEFAULT not in profiles:
        return {}
    found = profiles.get(name or DEFAULT)
    if not isinstance(found, dict):
        raise ValueError(f"{file} has no profile [{name}]")
    for key, value in found.items():
        if key not in KEYS or not isinstance(value, str):
            raise ValueError(f"{file}: {key} is none of {', '.join(KEYS)}, in quotes")
    return {key: str(value) for key, value in found.items()}
