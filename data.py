"""Spike data: SHD and SSC, the included copy of SHD, a toy task, and your own events.

SHD and SSC (Cramer et al. 2022) are recordings of spoken words that a model of the cochlea turned
into spikes on 700 channels.
"""

import hashlib
import http.client
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple
from urllib.request import urlopen

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class UserError(ValueError):
    """A mistake that the user can fix.  The programs print it as one line, without a traceback."""


class Spikes:
    """The samples of a split.

    counts: for each sample, uint8 [steps, inputs], the number of spikes of each input in each step.
    labels: [samples], classes from 0, which become int64; or values to learn, as floats.
    speakers: NumPy array [samples] of numbers or names, always on the CPU; -1 if left out.
    """

    def __init__(self, counts, labels, speakers=None):
        self.counts = [torch.as_tensor(sample) for sample in counts]
        labels = torch.as_tensor(labels)
        self.labels = labels if labels.is_floating_point() else labels.long()  # published: uint16
        self.speakers = np.full(len(labels), -1) if speakers is None else np.asarray(speakers)
        sizes = [len(self.counts), len(self.labels), len(self.speakers)]
        if len(set(sizes)) > 1:
            raise UserError(f"{sizes} samples, labels and speakers: expected equal numbers")

    @property
    def steps(self) -> Tensor:
        """The number of steps of each sample, int64 [samples]."""
        return torch.tensor([len(sample) for sample in self.counts])

    def to(self, device) -> "Spikes":
        counts = [sample.to(device) for sample in self.counts]
        return Spikes(counts, self.labels.to(device), self.speakers)

    def select(self, which: np.ndarray) -> "Spikes":
        """Return the samples that `which` names: a bool array [samples], or their indices."""
        chosen = np.arange(len(self.counts))[which]
        counts = [self.counts[i] for i in chosen]
        return Spikes(counts, self.labels[torch.from_numpy(chosen)], self.speakers[chosen])


def toy(split: str, data_dir: str = "", *, noise: float = 0.02) -> Spikes:
    """Return a split of a task that needs a memory: ten classes that differ in timing alone.

    Each class is an order in which eight inputs fire, each in a burst of four steps.  This pattern
    of 32 steps starts anywhere in a sample of 80 steps.  Noise has the same form: in each step,
    each input starts such a burst with probability `noise`.  data_dir is not used.
    """
    inputs, burst, length = 8, 4, 80
    samples, seed = {"train": (2000, 1), "test": (1000, 2)}[split]
    orders = np.tile(np.arange(inputs), (10, 1))
    # orders[c, p]: the input that fires in place p in class c.  Each row is shuffled on its own.
    orders = np.random.default_rng(0).permuted(orders, axis=1)
    labels = np.arange(samples, dtype=np.int64) % 10

    rng = np.random.default_rng(seed)
    onset = rng.integers(0, length - burst * inputs + 1, samples)
    begins = rng.random((samples, length, inputs)) < noise  # True where a burst begins
    for sample in range(samples):
        for place, channel in enumerate(orders[labels[sample]]):
            begins[sample, onset[sample] + burst * place, channel] = True
    counts = begins.astype(np.uint8)
    for later in range(1, burst):  # a burst lasts `burst` steps
        counts[:, later:] |= begins[:, :-later]
    return Spikes(counts, labels)


def batches(spikes: Spikes, size: int, shuffle: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (indices of the samples, their counts [B, T, inputs]) for each batch.

    Zeros follow the shorter samples of a batch.  Without shuffle, samples come in order of length,
    which leaves little padding.  Indices are on the CPU, counts where the samples are.
    """
    order = torch.randperm(len(spikes.counts)) if shuffle else spikes.steps.argsort(stable=True)
    for indices in order.split(size):
        yield indices, pad_sequence([spikes.counts[i] for i in indices], batch_first=True)


# ------------------------------------------------------------------------------ reading SHD and SSC

CHANNELS = 700  # of the cochlea
GROUP = 5  # channels that are summed to one input, as the authors do
INPUTS = CHANNELS // GROUP
STEP_MS = 10
WORDS = "zero one two three four five six seven eight nine"  # of SHD, by label
WORDS = (WORDS + " null eins zwei drei vier fuenf sechs sieben acht neun").split()


def bin_sample(times: np.ndarray, units: np.ndarray, step_ms: float = STEP_MS) -> np.ndarray:
    """Return the counts of one sample of SHD or SSC, uint8 [steps, INPUTS].

    times: float16 [spikes], in seconds.  units: channels 0..699.  step_ms: the length of a step.
    Time starts at the first spike, as in SpikingJelly's reader, which the authors used.
    """
    units = whole_numbers("unit", units, CHANNELS)
    if len(times) != len(units):
        raise UserError(f"a sample has {len(times)} times, but {len(units)} units")
    ms = times.astype(np.float32) * 1000  # a product in float16 would move spikes, late ones most
    ms -= ms.min(initial=np.inf)  # a sample may be empty
    longest = ms.max(initial=0)
    if not longest <= 10_000:  # published samples last up to 1.4 s; nan fails too
        raise UserError(f"a sample lasts {longest / 1000:.0f} s: expected times in seconds, not ms")
    return count_spikes((ms / step_ms).astype(np.int64), units // GROUP, INPUTS)


def count_spikes(step: np.ndarray, channel: np.ndarray, inputs: int) -> np.ndarray:
    """Return the counts of one sample, uint8 [steps, inputs], up to the step of its last spike.

    A sample without spikes is one empty step.
    """
    length = int(step.max(initial=0)) + 1
    counts = np.bincount(step * inputs + channel, minlength=length * inputs)  # flattened
    return as_uint8(counts.reshape(length, inputs))


def as_uint8(counts: np.ndarray) -> np.ndarray:
    """Return counts as uint8.  Raises a UserError if one of them is above 255."""
    if counts.max() > 255:
        raise UserError(f"{counts.max()} spikes of one input in one step: expected at most 255")
    return counts.astype(np.uint8)


def whole_numbers(name: str, values, limit: int = 2**31) -> np.ndarray:
    """Return the values as int64 [n].  Raises a UserError unless all are whole, 0..limit-1."""
    array = np.asarray(values)
    valid = (array >= 0) & (array < limit) & (array == np.floor(array))
    if not valid.all():
        at = valid.argmin()  # the first one that is not valid
        raise UserError(f"{name} {at} is {array[at]}: expected a whole number, 0..{limit - 1}")
    return array.astype(np.int64)


def read_published(dataset: str, split: str, data_dir: str, step_ms: float = STEP_MS) -> Spikes:
    """Read the file of a split of SHD or SSC, after fetching it if it is missing."""
    path = os.path.join(data_dir, f"{dataset}_{split}.h5")
    if not os.path.exists(path):
        fetch(path)
    try:
        return read_h5(path, step_ms)
    except Exception as problem:  # h5py raises many kinds
        raise UserError(f"{path} could not be read: {problem}") from problem


def read_h5(path: str, step_ms: float = STEP_MS) -> Spikes:
    """Return the Spikes of an .h5 file in the layout of SHD and SSC, in steps of step_ms.

    Sample n has the arrays spikes/times[n] and spikes/units[n], labels[n] and extra/speaker[n].
    """
    with h5py.File(path, "r") as h5:
        labels = h5["labels"][:]
        speakers = h5["extra/speaker"]
        if h5py.check_string_dtype(speakers.dtype):  # SSC's speakers are names
            speakers = speakers.asstr()
        speakers = speakers[:]
        samples = zip(h5["spikes/times"], h5["spikes/units"], strict=True)
        counts = [bin_sample(times, units, step_ms) for times, units in samples]
    return Spikes(counts, labels, speakers)


def read_included(split: str, data_dir: str = "", merge: int = 1) -> Spikes:
    """Read a split of SHD (regenerated), which the repository includes.  data_dir is not used.

    merge: how many neighbouring steps of 10 ms are summed to one.
    """
    folder = os.path.join(os.path.dirname(__file__), "experiments/included/shd-regenerated")
    with np.load(os.path.join(folder, f"{split}.npz")) as file:
        ends = file["steps"].cumsum(dtype=np.int64)  # where each sample ends
        counts = np.split(file["counts"], ends[:-1])
        counts = [merge_steps(sample, merge) for sample in counts]
        return Spikes(counts, file["labels"], file["speakers"])


def merge_steps(counts: np.ndarray, merge: int) -> np.ndarray:
    """Sum each `merge` neighbouring steps of a sample, uint8 [steps, inputs], into one."""
    begins = np.arange(0, len(counts), merge)  # the last step may have fewer of them
    return as_uint8(np.add.reduceat(counts, begins, dtype=np.int64))


# --------------------------------------------------------------------------------- your own events


def from_events(sample, step, channel, labels, inputs: int, speakers=None) -> Spikes:
    """Return the Spikes of your own data, from four arrays of whole numbers.

    sample, step, channel: one entry per spike: its sample (0..samples-1), its time in steps since
        the start of the sample (below 100,000), and its input (0..inputs-1).
    labels: [samples], classes from 0.  speakers: [samples], numbers or names, if you have them.
    A sample ends with its last spike.  Raises a ValueError for unequal lengths, for a number out of
    range, and for more than 255 spikes of one input in one step.
    """
    labels = whole_numbers("label", labels)
    sample = whole_numbers("sample of spike", sample, len(labels))
    step = whole_numbers("step of spike", step, 100_000)  # above that, it may be in microseconds
    channel = whole_numbers("channel of spike", channel, inputs)
    sample, step, channel = np.stack([sample, step, channel])  # refuses unequal lengths
    order = np.argsort(sample, kind="stable")  # the spikes of sample 0, then of sample 1, ...
    ends = np.bincount(sample, minlength=len(labels)).cumsum()  # where each sample's spikes end
    parts = np.split(order, ends[:-1])  # of each sample, the indices of its spikes
    counts = [count_spikes(step[part], channel[part], inputs) for part in parts]
    return Spikes(counts, labels, speakers)


# --------------------------------------------------------------------------- the table of data sets


class Dataset(NamedTuple):
    """What the programs know about a data set.

    read: a function of a split's name and the data folder that returns the Spikes of the split.
    splits: "train" and at least one of "test" and "valid".
    inputs, classes: of the network.  With one class, labels are values to learn.
    """

    read: Callable[[str, str], Spikes]
    splits: tuple[str, ...]
    inputs: int
    classes: int
    step_ms: float  # the length of a time step


# To add a data set, add a row here and one in train.DEFAULTS.
DATASETS = {
    "shd": Dataset(partial(read_published, "shd"), ("train", "test"), INPUTS, 20, STEP_MS),
    "shd-regenerated": Dataset(read_included, ("train", "test"), INPUTS, 20, STEP_MS),
    "shd-20ms": Dataset(
        partial(read_published, "shd", step_ms=20), ("train", "test"), INPUTS, 20, 20
    ),
    "shd-regenerated-20ms": Dataset(
        partial(read_included, merge=2), ("train", "test"), INPUTS, 20, 20
    ),
    "ssc": Dataset(partial(read_published, "ssc"), ("train", "valid", "test"), INPUTS, 35, STEP_MS),
    "toy": Dataset(toy, ("train", "test"), 8, 10, STEP_MS),
}


def load(dataset: str, split: str, data_dir: str) -> Spikes:
    """Return the Spikes of a split, on the CPU.  A published file is fetched if it is missing.

    Raises a UserError if the file cannot be fetched or read, or does not match its row in DATASETS.
    """
    row = DATASETS[dataset]
    spikes = row.read(split, data_dir)
    inputs = {sample.shape[1] for sample in spikes.counts}
    if inputs != {row.inputs}:
        found = f"{dataset} {split} has {sorted(inputs)} inputs"
        raise UserError(f"{found}, its row in DATASETS says {row.inputs}")
    labels = spikes.labels
    if row.classes > 1:  # otherwise they are values to learn
        labels = whole_numbers(f"{dataset} {split}: label", labels, row.classes)
    return Spikes(spikes.counts, labels, spikes.speakers)


# --------------------------------------- fetching the published files: skip this on a first reading

SERVERS = ["https://zenkelab.org/datasets", "https://compneuro.net/datasets"]
MD5 = {
    "shd_train.h5.zip": "f3252aeb598ac776c1b526422d90eecb",
    "shd_test.h5.zip": "1503a5064faa34311c398fb0a1ed0a6f",
    "ssc_train.h5.zip": "d102be95e7144fcc0553d1f45ba94170",
    "ssc_valid.h5.zip": "b4eee3516a4a90dd0c71a6ac23a8ae43",
    "ssc_test.h5.zip": "a35ff1e9cffdd02a20eb850c17c37748",
}


def fetch(path: str) -> None:
    """Download the packed form of a published file, verify its md5, and unpack it to `path`."""
    for packed in (f"{path}.zip", f"{path}.gz"):
        if os.path.exists(packed):
            raise UserError(f"{path} is missing, but {packed} is there: unpack it")
    data_dir, name = os.path.split(path)
    os.makedirs(data_dir, exist_ok=True)
    problems = []
    for server in SERVERS:
        try:
            # Within data_dir, since os.replace needs one file system.
            with tempfile.TemporaryDirectory(dir=data_dir) as folder:
                packed = os.path.join(folder, f"{name}.zip")
                download(f"{server}/{name}.zip", packed, MD5[f"{name}.zip"])
                with zipfile.ZipFile(packed) as archive:
                    archive.extract(name, folder)
                os.replace(os.path.join(folder, name), path)
            return
        except (OSError, http.client.HTTPException) as problem:
            problems.append(f"{server}: {' '.join(str(problem).split())}")
    found = f"{name} is not in {data_dir} and could not be fetched ({'; '.join(problems)})"
    raise UserError(f"{found}: put it there by hand, or try --dataset toy, which needs no files")


def download(url: str, path: str, expected: str) -> None:
    """Write what a server sends into the file `path`.  Raises an OSError if the md5 is wrong."""
    print(f"fetching {url}", file=sys.stderr)
    md5 = hashlib.md5()
    with open(path, "wb") as file, urlopen(url, timeout=30) as reply:
        while block := reply.read(1 << 20):
            file.write(block)
            md5.update(block)
            progress(f"{file.tell() / 1e6:.0f} MB")
    if md5.hexdigest() != expected:
        raise OSError(f"sent a file of md5 {md5.hexdigest()}, expected {expected}")


def progress(text: str) -> None:
    """Overwrite a line on the terminal.  Prints nothing if stderr is not one."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="\r", file=sys.stderr, flush=True)
