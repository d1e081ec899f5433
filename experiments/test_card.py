"""Whole runs on a mock card, a device that refuses tensors on the CPU where a GPU does.

torch registers a device until a process ends, so these runs have a process of their own.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest.mock import Mock, patch

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import data
import delays
import test_delays as oracle
import train
from experiments import ideas


class OnCard(torch.Tensor):
    """A tensor on the card: a shell around .inside, a tensor on the CPU, which has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    __torch_dispatch__ = None  # Card has it

    @staticmethod
    def __new__(cls, inside):
        layout = inside.shape, inside.stride(), inside.storage_offset()
        shell = cls._make_wrapper_subclass(cls, *layout, dtype=inside.dtype, device="card:0")
        shell.inside = inside
        return shell

    def tolist(self):  # torch refuses to read a shell
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):  # or to save it
        return self.cpu().__reduce_ex__(protocol)


def each(change, values):
    """Apply a function to the tensors among values, and in lists of values."""
    if isinstance(values, (list, tuple)):
        return [each(change, value) for value in values]
    return change(values) if isinstance(values, torch.Tensor) else values


class Card(TorchDispatchMode):
    """Inside `with Card():`, there is a card, and every operation of torch comes here."""

    reads = []  # how many numbers came from the card, each time that a program asked for some

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, tensors = dict(kwargs or {}), []
        each(tensors.append, [args, *kwargs.values()])
        uses_card = any(isinstance(tensor, OnCard) for tensor in tensors)
        device = kwargs.get("device")
        to_card = uses_card if device is None else device.type == "card"
        written = kwargs.get("out", args[0]) if operation._schema.is_mutable else None

        # A GPU takes a tensor on the CPU in a copy, as an index, and as a number in arithmetic.
        name = operation.overloadpacket.__name__
        if name in ("index", "index_put_") and isinstance(args[0], OnCard):
            tensors = [args[0], *args[2:3]]
        if uses_card and name not in ("copy_", "_to_copy"):
            for tensor in tensors:
                number = tensor.dim() == 0 and tensor is not written
                takes = number and torch.Tag.pointwise in operation.tags
                if not isinstance(tensor, OnCard) and not takes:
                    raise RuntimeError(f"{operation}: {list(tensor.shape)} is on the CPU")

        if device is not None:
            kwargs["device"] = torch.device("cpu")
        inside = each(lambda tensor: getattr(tensor, "inside", tensor), [args, *kwargs.values()])
        result = operation(*inside[0], **dict(zip(kwargs, inside[1:], strict=True)))
        if isinstance(written, torch.Tensor):
            result = written
        elif to_card:
            result = each(OnCard, result)
        if uses_card and result is not None and not isinstance(result, (OnCard, list)):
            self.reads.append(torch.as_tensor(result).numel())
        return result


def refusal(text):
    """Return what the card says to an operation on x, which is there, and y, i on the CPU."""
    with Card(), pytest.raises(RuntimeError) as refused:
        x, y, i = torch.ones(2, 2, device="card"), torch.ones(2, 2), torch.zeros(2, 2).long()
        eval(text, {"torch": torch, "x": x, "y": y, "i": i})
    return str(refused.value)


def outcome(device, words, folder):
    """Return what a run on a device writes and prints: stopped, resumed and then evaluated."""
    data.DATASETS["little"] = data.Dataset(oracle.read_little, ("train", "test"), 5, 3, step_ms=4)
    sizes = dict(layers=1, batch_size=31, epochs=2)
    train.DEFAULTS["little"] = oracle.LITTLE | sizes | dict(device=device)
    train.time = Mock(time=Mock(return_value=0))
    delays.fourier_is_faster = lambda spikes, kernel: spikes.device.type != "cpu"  # on neither
    torch._C._set_only_lift_cpu_tensors(True)  # or torch.tensor would pass Card by
    train_epoch = train.train_epoch

    def watched(net, optimizer, spikes, epoch, *others):
        if epoch == 1:  # one epoch is saved
            raise KeyboardInterrupt
        Card.reads.clear()
        means = train_epoch(net, optimizer, spikes, epoch, *others)
        assert device == "cpu" or Card.reads == [len(means)], f"an epoch read {Card.reads}"
        return means

    idea, *argv = [*words.split(), "--dataset=little", "--out", str(folder / device)]
    run, hooks = argv[-1], ideas.IDEAS[idea]
    with Card(), patch("builtins.print") as printed:
        with pytest.raises(KeyboardInterrupt), patch.object(train, "train_epoch", watched):
            train.main(argv, **hooks)
        assert "last.pt" in os.listdir(run)  # or it would resume from nothing
        train.main(["--resume", run], **hooks)
        train.main(["--eval", run], **hooks)
    files = {path.name: path.read_bytes() for path in folder.glob(f"{device}/*")}
    return files | {"printed": str(printed.mock_calls).replace(run, "run")}


REFUSED = "x + y; x @ y; x.gather(0, i); torch.cat([x, y]); torch.add(y, y, out=x); y[x > 0]"
RUNS = ["base --valid-share=0.2", "warp --delays=fixed", "recurrent", "between-taps", "triangle"]


@pytest.mark.paper
def test_runs_on_a_card_are_those_of_the_cpu_and_read_it_once_an_epoch(tmp_path):
    setup = "_setup_privateuseone_for_python_backend"
    if not hasattr(backend_registration, setup) and "DELAYS_REQUIRE_PEER" not in os.environ:
        pytest.skip("no run on a mock card: this torch cannot register one")
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(getattr(backend_registration, setup), "card").result()
        for text in REFUSED.split("; "):
            assert "is on the CPU" in process.submit(refusal, text).result(), text
        for words in RUNS:
            cpu, card = process.map(outcome, ["cpu", "card"], [words] * 2, [tmp_path / words] * 2)
            assert [name for name in cpu if cpu[name] != card[name]] == ["config.json"], words
