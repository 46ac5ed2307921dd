"""What trainers save beside the weights, and the stand-ins that it is loaded as.

Part of the program `weights_child.py`: imports nothing of pfms.
"""

from typing import Any


class StandIn:
    """Replaces an object beside the weights: accepts any arguments, keeps nothing, does nothing."""

    def __new__(cls, *_: Any) -> Any:
        """Ignore the arguments in the pickle."""
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        """Ignore the arguments in the pickle."""

    def __setstate__(self, _: Any) -> None:
        """Ignore the state in the pickle."""


class PlainDictionary(StandIn):
    """Replaces a subclass of dict, whose instances torch would not fill."""

    def __new__(cls, *_: Any) -> Any:
        """Make an ordinary dict."""
        return {}


# What trainers put into checkpoints beside the weights: numbers, histories, hyperparameters. None
# of these is ever imported or called, since not even numpy's own functions are written to withstand
# hostile input: the pickle gets a stand-in for each. Any other name is refused.
ALLOWED_EXTRAS = {
    "argparse": "Namespace",
    "builtins": "dict list int float str bool",
    "datetime": "datetime",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    # the settings of Hydra, which many projects save with Lightning's hyperparameters
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode PathNode BytesNode",
    "pathlib": "PosixPath PurePosixPath WindowsPath PureWindowsPath",
    "pathlib._local": "PosixPath PurePosixPath WindowsPath PureWindowsPath",
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "typing": "Any",
}


def stand_ins() -> list[Any]:
    """A stand-in class for each allowed name, under the module and name that torch looks up."""
    made: list[Any] = [type("defaultdict", (PlainDictionary,), {"__module__": "collections"})]
    for module, names in ALLOWED_EXTRAS.items():
        made += [type(name, (StandIn,), {"__module__": module}) for name in names.split()]
    return made
