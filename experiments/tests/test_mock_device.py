"""Whole runs on a mock device, which refuses tensors on the CPU where a GPU does."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest.mock import Mock, patch

import pytest
import torch

import data
import delays
import test_delays as oracle
import train
from experiments.forks import ideas

RUNS = ["base --valid-share=0.2", "shift --delays=fixed", "recurrent", "adaptive", "sparse"]

try:  # private functions of torch, which it may drop
    disabled = torch._C._disabled_torch_function_impl
    lift_only_cpu_tensors = torch._C._set_only_lift_cpu_tensors
    make_shell = torch.Tensor._make_wrapper_subclass
    register = torch.utils.backend_registration._setup_privateuseone_for_python_backend
    Mode = torch.utils._python_dispatch.TorchDispatchMode
except AttributeError as problem:
    if "DELAYS_REQUIRE_PEER" in os.environ:
        raise
    pytest.skip(f"no run on a mock device: {problem}", allow_module_level=True)


class OnDevice(torch.Tensor):
    """A tensor on the device: a shell around .inside, which has its numbers and is on the CPU."""

    __torch_function__ = disabled
    __torch_dispatch__ = None  # MockDevice has it

    @staticmethod
    def __new__(cls, inside):
        layout = inside.shape, inside.stride(), inside.storage_offset()
        shell = make_shell(cls, *layout, dtype=inside.dtype, device="mock:0")
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


class MockDevice(Mode):
    """Inside `with MockDevice():`, there is a device, and every operation of torch comes here."""

    reads = []  # how many numbers came from the device, each time that a program asked for some

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, tensors = dict(kwargs or {}), []
        each(tensors.append, [args, *kwargs.values()])
        uses_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
        device = kwargs.get("device")
        to_device = uses_device if device is None else device.type == "mock"
        name = operation.overloadpacket.__name__  # in place, it ends in _
        written = args[0] if name.endswith("_") else kwargs.get("out")

        # A GPU takes a tensor on the CPU in a copy, as an index, and as a number in arithmetic.
        if name in ("index", "index_put_") and isinstance(args[0], OnDevice):
            tensors = [args[0], *args[2:3]]
        if uses_device and name not in ("copy_", "_to_copy"):
            for tensor in tensors:
                number = tensor.dim() == 0 and tensor is not written
                takes = number and torch.Tag.pointwise in operation.tags
                if not isinstance(tensor, OnDevice) and not takes:
                    raise RuntimeError(f"{operation}: {list(tensor.shape)} is on the CPU")

        if device is not None:
            kwargs["device"] = torch.device("cpu")
        inside = each(lambda tensor: getattr(tensor, "inside", tensor), [args, *kwargs.values()])
        result = operation(*inside[0], **dict(zip(kwargs, inside[1:], strict=True)))
        if isinstance(written, torch.Tensor):
            result = written
        elif to_device:
            result = each(OnDevice, result)
        if uses_device and result is not None and not isinstance(result, (OnDevice, list)):
            self.reads.append(torch.as_tensor(result).numel())
        return result


def outcome(device, words, folder):
    """Return what a run on a device writes and prints: stopped, resumed and then evaluated."""
    data.DATASETS["little"] = data.Dataset(oracle.read_little, ("train", "test"), 5, 3, step_ms=4)
    sizes = dict(layers=1, batch_size=31, epochs=2)
    train.DEFAULTS["little"] = oracle.LITTLE | sizes | dict(device=device)
    train.time = Mock(time=Mock(return_value=0))
    delays.fourier_is_faster = lambda spikes, kernel: spikes.device.type != "cpu"  # on neither
    lift_only_cpu_tensors(True)  # or torch.tensor would bypass MockDevice
    train_epoch = train.train_epoch

    def watched(net, optimizer, spikes, epoch, *others):
        if epoch == 1:  # one epoch is saved
            raise KeyboardInterrupt
        MockDevice.reads.clear()
        means = train_epoch(net, optimizer, spikes, epoch, *others)
        assert device == "cpu" or MockDevice.reads == [len(means)], MockDevice.reads
        return means

    idea, *argv = [*words.split(), "--dataset=little", "--out", str(folder / device)]
    run, hooks = argv[-1], ideas.IDEAS.get(idea, {})
    with MockDevice(), patch("builtins.print") as printed:
        with pytest.raises(KeyboardInterrupt), patch.object(train, "train_epoch", watched):
            train.main(argv, **hooks)
        train.main(["--resume", run], **hooks)
        train.main(["--eval", run], **hooks)
    files = {path.name: path.read_bytes() for path in folder.glob(f"{device}/*")}
    return files | {"printed": str(printed.mock_calls).replace(run, "run")}


def test_runs_on_a_mock_device_are_those_of_the_cpu_and_read_it_once_an_epoch(tmp_path):
    # torch registers a device until a process ends, so these runs have a process of their own.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(register, "mock").result()
        for words in RUNS:
            cpu, mock = process.map(outcome, ["cpu", "mock"], [words] * 2, [tmp_path / words] * 2)
            assert [name for name in cpu if cpu[name] != mock[name]] == ["config.json"], words
