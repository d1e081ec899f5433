"""Spike data: SHD and SSC, a toy task, and events of one's own.

SHD and SSC (Cramer et al. 2020) are spoken words, which a model of the cochlea turned into spikes
of 700 channels.  A split of a data set is one tensor of counts, sample after sample.  First come
the samples, the table of data sets and the batches; then how files are read; fetching is last.
"""

import gzip
import hashlib
import http.client
import lzma
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple
from urllib.request import urlopen

import h5py
import numpy as np
import torch
from torch import Tensor


class UserError(ValueError):
    """A mistake of the user.  A program shows its words alone, and no traceback."""


class Spikes(NamedTuple):
    """The samples of a split, one after another.

    counts: uint8 [rows, inputs], spikes by step and input; a row is a step of a sample.  The counts
        lie on the device that computes, the other fields on the CPU.
    steps: int64 [samples], how many rows each sample has.
    labels: int64 [samples], classes from 0.
    speakers: NumPy array [samples] of the numbers or names that the file has.
    """

    counts: Tensor
    steps: Tensor
    labels: Tensor
    speakers: np.ndarray

    def to(self, device) -> "Spikes":
        return self._replace(counts=self.counts.to(device))

    def select(self, which: np.ndarray) -> "Spikes":
        """The samples for which `which`, a bool array [samples], is True."""
        chosen = torch.from_numpy(which)
        rows = chosen.repeat_interleave(self.steps)  # bool, for each row of counts
        return Spikes(
            self.counts[rows], self.steps[chosen], self.labels[chosen], self.speakers[which]
        )


class Dataset(NamedTuple):
    """What the program knows of a data set.

    read: a function of a split's name and the data folder that returns its Spikes.
    splits: "train", "test" and, where there is one, "valid".
    step_ms: length of a step of time.
    """

    read: Callable[[str, str], Spikes]
    splits: tuple[str, ...]
    inputs: int
    classes: int
    step_ms: float


CHANNELS = 700  # of the cochlea
GROUP = 5  # channels that are summed to one input
INPUTS = CHANNELS // GROUP
STEP_MS = 10

PAIR, TRIPLE = ("train", "test"), ("train", "valid", "test")

# A data set of one's own is one more row here, and one in train.DEFAULTS.  The functions that read
# come further down; a lambda looks them up when it is called.
DATASETS = {
    "shd": Dataset(lambda *args: read_published("shd", *args), PAIR, INPUTS, 20, STEP_MS),
    "ssc": Dataset(lambda *args: read_published("ssc", *args), TRIPLE, INPUTS, 35, STEP_MS),
    "toy": Dataset(lambda split, data_dir: toy(split), PAIR, 8, 10, STEP_MS),
}


def load(dataset: str, split: str, data_dir: str) -> Spikes:
    """The Spikes of a split, on the CPU.  A published file that is not in data_dir is fetched."""
    row = DATASETS[dataset]
    spikes = row.read(split, data_dir)
    inputs, classes = spikes.counts.shape[1], int(spikes.labels.max()) + 1
    if inputs != row.inputs or classes > row.classes:
        rule = f"its row in DATASETS says {row.inputs} and {row.classes}"
        raise UserError(f"{dataset} {split} has {inputs} inputs and {classes} classes: {rule}")
    return spikes


def toy(split: str, *, noise: float = 0.02) -> Spikes:
    """A task that needs a memory: ten classes, which differ in the order of the inputs alone.

    A class is an order of eight inputs.  They speak one after the other, each with spikes in four
    consecutive steps, and this pattern of 32 steps begins anywhere in a sample of 80.  Noise has
    the same form: in each step, each input begins such a burst with probability `noise`.  So a
    single step tells next to nothing of the class, and a count of spikes nothing.  A membrane that
    leaks slowly remembers something of an order too: experiments/RESULTS.md says how far that goes.
    """
    inputs, burst, steps = 8, 4, 80
    samples, seed = {"train": (2000, 1), "test": (1000, 2)}[split]
    orders = np.tile(np.arange(inputs), (10, 1))
    # orders[c, p]: the input that speaks in place p in class c, the same for train and test.
    orders = np.random.default_rng(0).permuted(orders, axis=1)
    labels = np.arange(samples, dtype=np.int64) % 10

    rng = np.random.default_rng(seed)
    onset = rng.integers(0, steps - burst * inputs + 1, (samples, 1))
    begins = rng.random((samples, steps, inputs)) < noise  # a burst begins here
    sample, place = np.arange(samples)[:, None], np.arange(inputs)
    # Three index arrays that broadcast to [samples, inputs]: the bursts of the pattern.
    begins[sample, onset + burst * place, orders[labels]] = True
    counts = begins.astype(np.uint8)
    for later in range(1, burst):
        counts[:, later:] |= begins[:, :-later]
    return join(list(counts), labels)


# ----------------------------------------------------------------------------------------- batches


def batches(spikes: Spikes, size: int, shuffle: bool = True) -> list[tuple[Tensor, int]]:
    """A list of (indices of the samples, steps of the longest of them), one for each batch.

    Without shuffle, samples come in order of length, which leaves the least padding to compute.
    """
    samples = len(spikes.steps)
    order = torch.randperm(samples) if shuffle else spikes.steps.argsort(stable=True)
    return [(indices, int(spikes.steps[indices].max())) for indices in order.split(size)]


def padded(spikes: Spikes, indices: Tensor, longest: int) -> Tensor:
    """Counts of some samples, each followed by zeros: uint8 [B, longest, inputs]."""
    counts = spikes.counts.new_zeros(len(indices), longest, spikes.counts.shape[1])
    ends = spikes.steps.cumsum(0)  # a sample's rows end before this one
    for b, index in enumerate(indices.tolist()):
        steps, end = int(spikes.steps[index]), int(ends[index])
        counts[b, :steps] = spikes.counts[end - steps : end]
    return counts


def augment(counts: Tensor, shift: int) -> Tensor:
    """A batch changed at random, a little as if other speakers had spoken: uint8 [B, T, inputs].

    All spikes of a sample move by the same number of inputs, from -shift to shift, which each
    sample draws for itself.  Those that leave the range are dropped.  A shift of 0 draws nothing.
    """
    if shift == 0:
        return counts
    samples, _, inputs = counts.shape
    move = torch.randint(-shift, shift + 1, (samples, 1), device=counts.device)
    source = torch.arange(inputs, device=counts.device) - move  # where each input comes from
    there = (source >= 0) & (source < inputs)  # [B, inputs]
    source = source.clamp(0, inputs - 1)[:, None].expand_as(counts)
    return counts.gather(2, source) * there[:, None]


# ------------------------------------------------------------------------------ reading SHD and SSC


def read_published(dataset: str, split: str, data_dir: str) -> Spikes:
    """SHD and SSC: reads the file of a split, which is fetched if need be."""
    path = find(dataset, split, data_dir)
    if path is None:
        name = next(name for name in MD5 if name.startswith(f"{dataset}_{split}."))
        path = fetch(name, data_dir)
    classes = DATASETS[dataset].classes
    try:
        if path.endswith(".h5"):
            return read_h5(path, classes)
        folder = os.path.dirname(path) or "."
        scratch = folder if os.access(folder, os.W_OK) else None  # None: the system's own
        # A temporary file has no name: it is gone when the process ends.
        with open_packed(path) as packed, tempfile.TemporaryFile(dir=scratch) as file:
            progress(f"unpacking {path}")
            shutil.copyfileobj(packed, file, 1 << 22)
            return read_h5(file, classes)
    except (OSError, UserError, *BROKEN) as problem:
        rule = "if the file is broken, replace it, or delete it to have the published one fetched"
        raise UserError(f"{path} could not be read ({problem}): {rule}") from problem


# What gzip, zipfile and h5py raise for a broken file, beside OSError.
BROKEN = (EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def find(dataset: str, split: str, data_dir: str) -> str | None:
    """The path of a split's file in data_dir, packed or not; None if there is none."""
    paths = [os.path.join(data_dir, f"{dataset}_{split}.h5{end}") for end in ("", ".gz", ".zip")]
    return next(filter(os.path.exists, paths), None)


def open_packed(path: str):
    """The content of an .h5.gz or .h5.zip file, to be read from front to back."""
    if path.endswith(".gz"):
        return gzip.open(path)
    return zipfile.Path(path, os.path.basename(path)[: -len(".zip")]).open("rb")


def read_h5(file, classes: int) -> Spikes:
    """The Spikes of an .h5 file, a path or an open file, in the layout of SHD and SSC.

    labels and extra/speaker have an entry for each sample, spikes/times and spikes/units an array.
    """
    with h5py.File(file, "r") as h5:
        labels = whole_numbers("label", h5["labels"][:], classes)
        speakers = h5["extra/speaker"]
        if h5py.check_string_dtype(speakers.dtype):
            speakers = speakers.asstr()
        speakers = speakers[:]
        times, units = h5["spikes/times"], h5["spikes/units"]
        sizes = [len(labels), len(speakers), len(times), len(units)]
        if len(set(sizes)) > 1:
            raise UserError(f"it has {sizes} labels, speakers, times, units: expected one length")

        counts = []
        for start in range(0, len(labels), 128):  # h5py takes long to read them one by one
            here = slice(start, start + 128)
            for sample in zip(times[here], units[here], strict=True):
                counts.append(bin_sample(*sample, f"sample {len(counts)}"))
            progress(f"reading sample {len(counts)} of {len(labels)}")
    return join(counts, labels, speakers)


def bin_sample(times: np.ndarray, units: np.ndarray, name: str = "the sample") -> np.ndarray:
    """Counts of one sample of SHD or SSC, uint8 [steps, INPUTS].

    times: float16 [spikes], seconds.  units: channels 0..699.  name: of the sample, for errors.  As
    in the authors' code, time begins with the sample's first spike.
    """
    units = whole_numbers(f"{name}: unit", units, CHANNELS)
    ms = times.astype(np.float32) * 1000  # in float16, late spikes would slip into other steps
    ms -= ms.min(initial=np.inf)  # initial: for a sample without spikes
    longest = ms.max(initial=0)
    if not longest <= 10_000:  # published samples last up to 1.4 s; nan is not below anything
        found = f"{name} lasts {longest / 1000:.0f} s"
        raise UserError(f"{found}, longer than 10 s: expected times in seconds, not milliseconds")
    return count_spikes((ms / STEP_MS).astype(np.int64), units // GROUP, INPUTS)


def count_spikes(step: np.ndarray, channel: np.ndarray, inputs: int) -> np.ndarray:
    """Counts of one sample, uint8 [steps, inputs], up to its last spike; one empty step if none."""
    steps = int(step.max(initial=0)) + 1
    cell = step * inputs + channel  # of the flattened counts
    counts = np.bincount(cell, minlength=steps * inputs)
    if counts.max() > 255:
        raise UserError(f"{counts.max()} spikes in one step and input: expected at most 255")
    return counts.astype(np.uint8).reshape(steps, inputs)


def join(counts: list[np.ndarray], labels: np.ndarray, speakers=None) -> Spikes:
    """Spikes from the counts of each sample; without speakers, each is called -1."""
    steps = torch.tensor([len(sample) for sample in counts])
    speakers = np.full(len(labels), -1) if speakers is None else np.asarray(speakers)
    rows = torch.from_numpy(np.concatenate(counts))
    return Spikes(rows, steps, torch.from_numpy(labels), speakers)


# ------------------------------------------------------------------------------ events of one's own


def from_events(sample, step, channel, labels, inputs: int, speakers=None) -> Spikes:
    """Spikes of one's own data, from four arrays of whole numbers.

    sample, step, channel: one entry for each spike: its sample (0..samples-1), its time in steps,
        counted from 0 at the sample's beginning, and its input (0..inputs-1).
    labels: [samples], classes from 0.  speakers: [samples], numbers or names, if there are any.
    A sample ends with its last spike.  At most 255 spikes may share a step and input.  Raises a
    UserError for numbers out of these ranges.
    """
    labels = whole_numbers("label", labels)
    sample = whole_numbers("sample of spike", sample, len(labels))
    step = whole_numbers("step of spike", step)
    channel = whole_numbers("channel of spike", channel, inputs)
    sizes = [len(sample), len(step), len(channel)]
    if len(set(sizes)) > 1:
        raise UserError(f"sample, step and channel have {sizes} entries: expected as many each")
    order = np.argsort(sample, kind="stable")  # spikes of sample 0, of sample 1, ...
    ends = np.bincount(sample, minlength=len(labels)).cumsum()  # a sample's spikes end there
    counts = []
    for own in np.split(order, ends[:-1]):
        counts.append(count_spikes(step[own], channel[own], inputs))
    return join(counts, labels, speakers)


def whole_numbers(name: str, values, limit: int = 2**31) -> np.ndarray:
    """The values as int64 [n]; a UserError unless they are whole, from 0 and below the limit."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise UserError(f"{name} has shape {list(array.shape)}: expected a list of whole numbers")
    right = (array >= 0) & (array < limit) & (array == np.floor(array))
    if not right.all():
        at = right.argmin()  # the first that is not right
        raise UserError(f"{name} {at} is {array[at]}: expected a whole number, 0..{limit - 1}")
    return array.astype(np.int64)


# --------------------------------------- fetching the published files: skip this on a first reading

SERVERS = ["https://zenkelab.org/datasets", "https://compneuro.net/datasets"]
MD5 = {
    "shd_train.h5.gz": "d47c9825dee33347913e8ce0f2be08b0",
    "shd_test.h5.gz": "3062a80ec0c5719404d5b02e166543b1",
    "ssc_train.h5.zip": "d102be95e7144fcc0553d1f45ba94170",
    "ssc_valid.h5.zip": "b4eee3516a4a90dd0c71a6ac23a8ae43",
    "ssc_test.h5.zip": "a35ff1e9cffdd02a20eb850c17c37748",
}
DATA_DIR = "data"  # the default folder, which fetch makes; another one must exist


def fetch(name: str, data_dir: str) -> str:
    """Downloads a published file from the first server that has it.  Returns its path.

    The file has its name only once its md5 is right.  A process that is killed leaves a .part file.
    """
    if data_dir == DATA_DIR:
        os.makedirs(data_dir, exist_ok=True)
    path = os.path.join(data_dir, name)
    part = f"{path}.{os.getpid()}.part"
    problems = []
    for server in SERVERS:
        try:
            download(f"{server}/{name}", part, MD5[name])
            os.replace(part, path)
            return path
        except (OSError, http.client.HTTPException) as problem:
            problems.append(f"{server}: {' '.join(str(problem).split())}")
        finally:
            with suppress(FileNotFoundError):
                os.remove(part)
    raise UserError(
        f"{name} is not in {data_dir} and could not be fetched ({'; '.join(problems)}): put it "
        "there by hand, or try --dataset toy, which needs no files"
    )


def download(url: str, path: str, expected: str) -> None:
    """Writes what a server sends into the file `path`; raises an OSError for another md5."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "wb") as file, urlopen(url, timeout=30) as reply:
        print(f"fetching {url}", file=sys.stderr)
        size = f" of {reply.length / 1e6:.1f}" if reply.length else ""
        while block := reply.read(1 << 20):
            file.write(block)
            digest.update(block)
            progress(f"{file.tell() / 1e6:.1f}{size} MB")
    if digest.hexdigest() != expected:
        raise OSError(f"sent a file of md5 {digest.hexdigest()}, expected {expected}")


def md5(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def progress(text: str) -> None:
    """Overwrites a line on the terminal; silent where stderr is a file."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="\r", file=sys.stderr, flush=True)
