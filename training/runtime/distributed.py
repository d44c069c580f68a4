"""Data-parallel training: `torchrun --nproc-per-node 8 -m labelcurve train ...`.

The first process leads. It alone runs the command: reads, prints, locks, writes. The others follow:
they wait until the leader calls them into a loop (`together`), process their part of each batch,
add their gradients to the sum, and end when the leader ends. A batch is the same rows whatever the
number of processes, and so is its loss: batch norm has the statistics of the whole batch.

In a run of one process every function here does nothing.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from labelcurve.bundle import cuda
from labelcurve.bundle.errors import DeviceError, LabelcurveError
from labelcurve.training.runtime import interruption

PATIENCE = timedelta(days=1)
"""How long a follower waits for the leader, which may have a million images to decode. Where a
process ends, the others are notified at once."""
LEADER_SECONDS = 5.0
"""Delay after which a follower that cannot reach the others ends, unless a signal ends it."""

_control: Any = None
"""Group of messages between the processes' CPUs; gradients have the default group."""


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _control is not None else 1


def rank() -> int:
    """Rank of this process; 0 leads."""
    return dist.get_rank() if _control is not None else 0


def salt() -> tuple[int, ...]:
    """Makes the random numbers of each follower its own; the leader's are those of one process."""
    return (rank(),) if rank() else ()


def part(n: int, of: tuple[int, int] | None = None) -> slice:
    """The rows of this process among `n`: as many for each, but for one row.

    Args:
        of: another process and the number of them.
    """
    this, all_of_them = of or (rank(), size())
    return slice(n * this // all_of_them, n * (this + 1) // all_of_them)


def check(batch: int) -> None:
    """Refuses batches of too few images for all processes.

    Raises:
        LabelcurveError: some would have fewer than two.
    """
    if size() > 1 and batch < 2 * size():
        raise LabelcurveError(
            f"{size()} processes share batches of {batch} images: allowed are {batch // 2} and "
            "fewer (torchrun --nproc-per-node)"
        )


def run(work: Callable[[], dict[str, Any]], device: str) -> dict[str, Any] | None:
    """Runs `work` in the leader; a follower takes part where the leader calls it.

    Args:
        device: of `--device`; each process of a machine takes a different GPU.

    Returns:
        What `work` returns; None in a follower.

    Raises:
        LabelcurveError: in the one process that reports it. The others exit silently.
    """
    if not _launched():
        return work()
    try:
        _join(device)
        document = None
        if rank() == 0:
            document = work()
            _send(None)
        else:
            _follow()
        _leave()
        return document
    except interruption.Stopped as stopped:
        if rank() == 0:
            _first_to_say()
            with suppress(RuntimeError):
                _send(None)  # they wait for it, and an interpreter takes a while to exit
            raise
        os._exit(stopped.code)  # without waiting for messages that will never arrive
    except Exception as error:
        if not _first_to_say():
            os._exit(1)
        if _is_loss(error):
            raise LabelcurveError(
                f"one of the {size()} processes ended without an error (killed? out of memory?): "
                "the same command resumes from the last checkpoint"
            ) from error
        raise


def together(
    function: Callable[..., Any], /, *args: Any, mine: Mapping[str, Any], **kwargs: Any
) -> Any:
    """Calls a function of a module in all processes at once; what the leader's returns.

    Args:
        args: of the function, for all of them: sent there, arrays as they are.
        mine: further arguments that the leader's call alone has; the others have the defaults.
        kwargs: as `args`.
    """
    if size() > 1:
        _send((function, args, kwargs))
    return function(*args, **kwargs, **mine)


def share(value: Any) -> Any:
    """The leader's value, in every process."""
    if size() == 1:
        return value
    if rank() == 0:
        _send(value)
        return value
    return _receive()


def agree(value: float) -> float:
    """The leader's number, in every process: clocks differ, and decisions must not."""
    if size() == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(number, 0, group=_control)
    return float(number)


def check_signals() -> None:
    """Called after each step: a signal to one process ends all of them after the same step.

    Raises:
        interruption.Stopped: in a follower, when the leader has written its checkpoint and ended;
            the leader has it pending.
    """
    if size() == 1:
        return
    came = torch.tensor(interruption.came())
    dist.all_reduce(came, dist.ReduceOp.MAX, group=_control)
    if came:
        interruption.come(signal.Signals(int(came)))
        if rank():
            with suppress(RuntimeError):
                _receive()
            interruption.stop()


def total(tensors: Iterable[Tensor]) -> None:
    """Sums float tensors over the processes, in place."""
    if size() == 1:
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, summed in zip(
        tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(summed.view_as(tensor))


def total_gradients(module: nn.Module, *others: Tensor) -> None:
    """The same for the gradients of a module and other tensors, in one message."""
    gradients = (p.grad for p in module.parameters() if p.grad is not None)
    total([*gradients, *others])


def gathered(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rows of all processes, in their order."""
    if size() == 1:
        return rows
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, rows, group=_control)
    return np.concatenate(found)


class _Sum(torch.autograd.Function):
    """A sum over the processes whose gradient is one, too."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        summed = own.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        dist.all_reduce(summed)
        return summed


def gather(rows: Tensor, n: int) -> Tensor:
    """Float [B, D] of this process to [n, D] of all of them, with gradients for all of them.

    Args:
        n: rows of all processes; this one's are `part(n)`.
    """
    if size() == 1:
        return rows
    place = part(n)
    found: Tensor = _Sum.apply(nn.functional.pad(rows, (0, 0, place.start, n - place.stop)))
    return found


@contextmanager
def joined(module: nn.Module) -> Iterator[None]:
    """Gives all processes the leader's weights; inside, batch norms see the rows of all of them.

    `torch.nn.SyncBatchNorm` does the latter on GPUs alone; this is the same code on both.
    """
    if size() == 1:
        yield
        return
    module.load_state_dict(share({k: v.cpu() for k, v in module.state_dict().items()}))
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    for norm in norms:
        norm.forward = partial(_normalise, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    values = x.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    n = x.numel() // x.shape[1]
    # Count, mean and variance of each process, put together without cancellation (Chan et al.,
    # Updating formulae and a pairwise algorithm for computing sample variances, 1979)
    own = torch.stack(
        [values.new_full((x.shape[1],), n), values.mean(axes), values.var(axes, unbiased=False)]
    )
    parts = gather(own.flatten()[None], size()).view(size(), *own.shape)
    counts, means, variances = parts.unbind(1)
    whole = counts.sum(0)
    mean = (counts * means).sum(0) / whole
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / whole
    if norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        weight = norm.momentum
        if weight is None:
            weight = 1 / float(norm.num_batches_tracked)
        with torch.no_grad():
            norm.running_mean.lerp_(mean, weight)
            norm.running_var.lerp_(variance * whole / (whole - 1), weight)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    form = [1, -1] + [1] * (x.ndim - 2)
    return (values * scale.view(form) + shift.view(form)).to(x.dtype)


def _launched() -> bool:
    """Returns whether torchrun, or the like, started this process as one of several.

    Raises:
        LabelcurveError: the environment has only a part of what it sets, as in a job of a cluster.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return False
    given = {name: os.environ.get(name, "") for name in ("RANK", "MASTER_ADDR", "MASTER_PORT")}
    numbers = world.isdecimal() and given["RANK"].isdecimal()
    if not all(given.values()) or not numbers or int(given["RANK"]) >= int(world):
        found = ", ".join(f"{name}={value or '(not set)'}" for name, value in given.items())
        raise LabelcurveError(
            f"WORLD_SIZE={world} in the environment says that this is one of several processes, "
            f"and {found} do not fit: start them with torchrun, or unset WORLD_SIZE for one alone"
        )
    return True


def _join(device: str) -> None:
    global _control
    gpus = 0
    if device != "cpu":
        # NVML counts GPUs whose driver is too old for CUDA, and NCCL then ends in SIGABRT.
        cuda.check_driver(torch.version.cuda, f"torch {torch.__version__}")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # All on this machine. By itself, gloo asks for the address of the host's name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    _control = dist.new_group(backend="gloo", timeout=PATIENCE)
    local, here = (int(os.environ.get(f"LOCAL_{name}", "0")) for name in ("RANK", "WORLD_SIZE"))
    if gpus and here > gpus:
        raise DeviceError(
            f"{here} processes on a machine with {gpus} GPU(s): allowed is one a GPU "
            f"(torchrun --nproc-per-node {gpus}), or --device cpu"
        )
    if gpus:
        torch.cuda.set_device(local)


def _leave() -> None:
    global _control
    _control = None
    dist.destroy_process_group()


def _follow() -> None:
    while (call := _receive()) is not None:
        function, args, kwargs = call
        with interruption.deferred():
            function(*args, **kwargs)


def _send(value: Any) -> None:
    """To all followers. Arrays are not copied into the message, but follow it."""
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    raw = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    pieces = [np.frombuffer(message, np.uint8), *raw]
    sizes = torch.tensor([len(piece) for piece in pieces])
    dist.broadcast(torch.tensor(len(pieces)), 0, group=_control)
    dist.broadcast(sizes, 0, group=_control)
    for piece in pieces:
        if len(piece):
            dist.broadcast(torch.from_numpy(np.require(piece, requirements="W")), 0, group=_control)


def _receive() -> Any:
    number = torch.tensor(0)
    dist.broadcast(number, 0, group=_control)
    sizes = torch.zeros(int(number), dtype=torch.int64)
    dist.broadcast(sizes, 0, group=_control)
    pieces = [torch.empty(int(n), dtype=torch.uint8) for n in sizes]
    for piece in pieces:
        if len(piece):
            dist.broadcast(piece, 0, group=_control)
    message, *buffers = (piece.numpy() for piece in pieces)
    return pickle.loads(message.data, buffers=buffers)


def _is_loss(error: Exception) -> bool:
    """Returns whether it only reports that another process ended."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _first_to_say() -> bool:
    """Returns whether no other process has reported yet why all of them end."""
    try:
        return dist.distributed_c10d._get_default_store().add("said", 1) == 1
    except Exception:  # before there is a store, or after its process ended
        if os.environ["RANK"] == "0":
            return True
        # torchrun ends the others as soon as one has ended: the leader must report first.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LEADER_SECONDS)
        return False
