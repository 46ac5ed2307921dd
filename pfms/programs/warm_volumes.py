"""The adaptations of the steps around the network: fewer passes over the volume, in more threads.

Part of the program `warm_parent.py`: imports nothing of pfms. Each replaces a function of MONAI or
of the plugin by one that calls the original wherever it does not apply.
"""

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING or __package__:  # the tests and benches import it
    from pfms.programs import warm_progress
else:
    import warm_progress

Tensor = Any
Function = Callable[..., Any]

_KERNELS = Path(__file__).with_name("warm_kernels.py")


@functools.cache
def compiled_loops() -> ModuleType:
    """The compiled loops; raises ImportError if the plugin's environment lacks numba.

    By its path, since the plugin must not find our modules by name. While numba compiles, or loads
    what it kept, it looks for the module by its name.
    """
    spec = importlib.util.spec_from_file_location(_KERNELS.stem, _KERNELS)
    assert spec is not None  # noqa: S101 - Python can load a .py file
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


# --- reading --------------------------------------------------------------------------------------


def read_as_float32() -> None:
    """Bring the voxels that were read into C order and to float32 in one pass, with all cores.

    MONAI would do one after the other, with one.
    """
    loaders: Any = sys.modules.get("monai.transforms.io.array")
    readers: Any = sys.modules.get("monai.data.image_reader")
    if loaders is None or readers is None:
        return
    kernels = compiled_loops()
    torch: Any = sys.modules["torch"]
    own_init: Function = loaders.LoadImage.__init__
    own_get: Function = readers.NibabelReader._get_array_data

    @functools.wraps(own_init)
    def init(self: Any, *given: Any, **named: Any) -> None:
        own_init(self, *given, **named)
        for reader in self.readers:
            reader.pfms_float32 = self.dtype is np.float32

    @functools.wraps(own_get)
    def get_array_data(self: Any, image: Any, filename: Any) -> Any:
        array = own_get(self, image, filename)
        if (
            getattr(self, "pfms_float32", False)
            and isinstance(array, np.ndarray)
            and array.ndim == 3
            and array.dtype in kernels.FLOAT32_FROM  # so in this machine's byte order
            and array.T.flags.c_contiguous
            and array.flags.aligned
        ):
            out = np.empty(array.shape, np.float32)
            work = functools.partial(kernels.as_float32, array.T, out)
            kernels.in_slabs(array.shape[0], torch.get_num_threads(), work, kernels.TILE)
            return out
        return array

    loaders.LoadImage.__init__ = init
    readers.NibabelReader._get_array_data = get_array_data


# --- to another grid ------------------------------------------------------------------------------


def sample_by_rows() -> None:
    """Sample a volume on another grid without making the grid.

    torch makes 7 doubles for each voxel before it samples, and its result is double. Here the
    places along an axis (or of one voxel, where the grids are oblique to each other) are made when
    they are needed, and the result is float32, to which MONAI converts it anyway.
    """
    functional: Any = sys.modules.get("monai.transforms.spatial.functional")
    if functional is None:
        return
    kernels = compiled_loops()
    torch: Any = sys.modules["torch"]
    normalised: Function = importlib.import_module("monai.networks.utils").to_norm_affine

    def sample(volume: Tensor, theta: Tensor, size: tuple[int, ...]) -> Tensor:
        """`grid_sample(volume, affine_grid(theta, size))`, as float32.

        The volume has the shape (channels, z, y, x), theta (3, 4).
        """
        out = torch.empty((volume.shape[0], *size), dtype=torch.float32)
        arrays = volume.numpy(), out.numpy()
        if torch.equal(theta[:, :3], torch.diag(theta.diagonal())):
            columns = [c for axis in (2, 1, 0) for c in along(theta, size, axis, volume.shape[1:])]
            work = functools.partial(kernels.sample_aligned, arrays[0], *columns, arrays[1])
        else:
            axes = [normal_coordinates(size[axis]) for axis in (2, 1, 0)]
            work = functools.partial(
                kernels.sample_oblique, arrays[0], theta.numpy(), *axes, arrays[1]
            )
        kernels.in_slabs(size[0], torch.get_num_threads(), work, tell=warm_progress.tell)
        return out

    def along(
        theta: Tensor, size: tuple[int, ...], axis: int, extent: tuple[int, ...]
    ) -> tuple[Any, Any, Any]:
        """The voxel before each place along one axis, its weight, and the weight of the next."""
        line = [1, 1, 1]
        line[axis] = size[axis]
        grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *line], align_corners=False)
        at = ((grid.reshape(-1, 3)[:, 2 - axis] + 1) * extent[axis] - 1) / 2
        place = at.clamp(0, extent[axis] - 1).numpy()
        before = np.floor(place)
        return before.astype(np.int64), before + 1 - place, place - before

    def normal_coordinates(count: int) -> Any:
        """The coordinates in torch's grid: the centres of `count` cells between -1 and 1."""
        if count == 1:
            return np.zeros(1)
        return (torch.linspace(-1, 1, count, dtype=torch.float64) * (count - 1) / count).numpy()

    def does_as_torch(theta: Tensor) -> bool:
        """Whether this machine's torch rounds as the compiled loops do; on a few voxels."""
        volume = torch.linspace(-1, 1, 4 * 5 * 6, dtype=torch.float64).sin().reshape(1, 4, 5, 6)
        size = (3, 17, 65)
        grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *size], align_corners=False)
        expected = torch.nn.functional.grid_sample(
            volume[None], grid, padding_mode="border", align_corners=False
        )[0].to(torch.float32)
        return bool(torch.equal(sample(volume, theta, size), expected))

    class Sampler(functional.AffineTransform):  # type: ignore[misc]
        def forward(self, src: Tensor, theta: Tensor, spatial_size: Any = None) -> Tensor:
            applies = (
                src.dtype == theta.dtype == torch.float64
                and src.device.type == "cpu"
                and src.ndim == 5
                and src.shape[0] == 1
                and tuple(theta.shape) == (4, 4)
                and spatial_size is not None
                and (self.mode, self.padding_mode) == ("bilinear", "border")
                and (self.normalized, self.reverse_indexing) == (False, True)
                and not self.align_corners
                and not self.zero_centered
            )
            if applies:
                size = tuple(int(count) for count in spatial_size)
                steps = normalised(theta[None].clone(), src.shape[2:], size, False, False)[0]
                steps = steps[[2, 1, 0]][:, [2, 1, 0, 3]].contiguous()
                if does_as_torch(steps):
                    return sample(src[0].contiguous(), steps, size)[None]
                _say("this machine's torch rounds in another way: it samples the volume itself")
            return super().forward(src, theta, spatial_size)

    functional.AffineTransform = Sampler


# --- from scores to a file ------------------------------------------------------------------------


def one_hot_in_one_pass() -> None:
    """Make the one-hot label map from the scores in one pass, in the order in which a file has it.

    MONAI makes indices of 8 bytes first, and the writer brings the array into the file's order.
    """
    post: Any = sys.modules.get("monai.transforms.post.array")
    writers: Any = sys.modules.get("monai.data.image_writer")
    if post is None or writers is None:
        return
    kernels = compiled_loops()
    torch: Any = sys.modules["torch"]
    own_call: Function = post.AsDiscrete.__call__
    own_create: Function = writers.ImageWriter.create_backend_obj.__func__

    def is_plain(scores: Any) -> bool:
        return (
            isinstance(scores, torch.Tensor)
            and scores.ndim == 4
            and 1 < scores.shape[0] < 256
            and scores.dtype == torch.float32
            and scores.device.type == "cpu"
            and scores.is_contiguous()
            and not scores.requires_grad
        )

    @functools.wraps(own_call)
    def call(
        self: Any,
        img: Any,
        argmax: bool | None = None,
        to_onehot: int | None = None,
        threshold: float | None = None,
        rounding: str | None = None,
    ) -> Any:
        asked = (
            self.argmax if argmax is None else argmax,
            self.to_onehot if to_onehot is None else to_onehot,
            self.threshold if threshold is None else threshold,
            self.rounding if rounding is None else rounding,
        )
        if not is_plain(img) or self.kwargs or asked != (True, img.shape[0], None, None):
            return own_call(self, img, argmax, to_onehot, threshold, rounding)
        channels, width, height, depth = img.shape
        labels = torch.empty((channels, depth, height, width), dtype=torch.float32)
        arrays = img.as_subclass(torch.Tensor).numpy(), labels.numpy()
        kernels.in_slabs(
            depth,
            torch.get_num_threads(),
            functools.partial(kernels.one_hot_of_largest, *arrays),
            kernels.TILE,
            warm_progress.tell,
        )
        return post.convert_to_dst_type(labels.permute(0, 3, 2, 1), img, dtype=torch.float)[0]

    def create_backend_obj(cls: type, /, data_array: Any, **named: Any) -> Any:
        if isinstance(data_array, torch.Tensor) and data_array.device.type == "cpu":
            array = data_array.detach().as_subclass(torch.Tensor).numpy()
            if array.T.flags.c_contiguous:
                return array
        return own_create(cls, data_array, **named)

    post.AsDiscrete.__call__ = call
    writers.ImageWriter.create_backend_obj = classmethod(create_backend_obj)


def save_beside_picture() -> None:
    """Write the label map in a second thread while the plugin draws its picture."""
    transforms: Any = sys.modules.get("monai.transforms.io.array")
    plotting: Any = sys.modules.get("spleenseg.plotting.plotting")
    if transforms is None or not hasattr(plotting, "plot_infer"):
        return
    own_save: Function = transforms.SaveImage.__call__
    own_plot: Function = plotting.plot_infer
    pending: list[Future[Any]] = []

    @functools.wraps(own_save)
    def save(self: Any, img: Any, *rest: Any, **named: Any) -> Any:
        with contextlib.closing(_Thread()) as thread:
            pending.append(thread.submit(own_save, self, img, *rest, **named))
        return img

    @functools.wraps(own_plot)
    def plot(*given: Any, **named: Any) -> Any:
        try:
            return own_plot(*given, **named)
        finally:  # its own error would hide that the label map could not be written
            while pending:
                pending.pop().result()

    transforms.SaveImage.__call__ = save
    plotting.plot_infer = plot


class _Thread(ThreadPoolExecutor):
    """One thread, for one call: closing it does not wait."""

    def __init__(self) -> None:
        super().__init__(1)

    def close(self) -> None:
        self.shutdown(wait=False)


def _say(text: str) -> None:
    print(f"pfms: {text}", file=sys.stderr)  # noqa: T201 - into the run's log


ADAPTATIONS: dict[str, Callable[[], None]] = {
    "read-as-float32": read_as_float32,
    "sample-by-rows": sample_by_rows,
    "one-hot-in-one-pass": one_hot_in_one_pass,
    "save-beside-picture": save_beside_picture,
}
