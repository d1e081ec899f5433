"""Spike data: the files of SHD and SSC, a toy task, and events of one's own.

SHD and SSC (Cramer et al. 2020) are spoken words, which a model of the cochlea turned into spikes
of 700 channels.  A split of a data set is held as one tensor of counts, sample after sample.
"""

import gzip
import hashlib
import http.client
import os
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple
from urllib.request import Request, urlopen

import h5py
import numpy as np
import torch
from torch import Tensor

SERVERS = ["https://zenkelab.org/datasets", "https://compneuro.net/datasets"]
MD5 = {
    "shd_train.h5.gz": "d47c9825dee33347913e8ce0f2be08b0",
    "shd_test.h5.gz": "3062a80ec0c5719404d5b02e166543b1",
    "ssc_train.h5.zip": "d102be95e7144fcc0553d1f45ba94170",
    "ssc_valid.h5.zip": "b4eee3516a4a90dd0c71a6ac23a8ae43",
    "ssc_test.h5.zip": "a35ff1e9cffdd02a20eb850c17c37748",
}
DATA_DIR = "data"  # made if need be; any other folder has to exist, for its name may be mistyped
CHANNELS = 700  # of the cochlea
GROUP = 5  # channels that are summed to one input
INPUTS = CHANNELS // GROUP
STEP_MS = 10  # a step of time
LONGEST_S = 120  # a longer recording is refused: its times are probably not in seconds

# ------------------------------------------------------------------------------ samples and batches


class Spikes(NamedTuple):
    """The samples of a split, one after another.

    counts: uint8 [rows, inputs], spikes by step and input; a row is a step of a sample.
    steps: int64 [samples], how many rows each sample has.
    labels: int64 [samples], classes from 0.
    speakers: NumPy array [samples] of the numbers or names that the file has; always on the CPU.
    """

    counts: Tensor
    steps: Tensor
    labels: Tensor
    speakers: np.ndarray

    def to(self, device) -> "Spikes":
        counts, steps, labels = (field.to(device) for field in self[:3])
        return Spikes(counts, steps, labels, self.speakers)

    def select(self, which: np.ndarray) -> "Spikes":
        """The samples for which `which`, a bool array [samples], is True."""
        chosen = torch.from_numpy(which).to(self.steps.device)
        rows = chosen.repeat_interleave(self.steps)  # bool, for each row of counts
        return Spikes(
            self.counts[rows], self.steps[chosen], self.labels[chosen], self.speakers[which]
        )


def padded(spikes: Spikes, indices: Tensor, longest: int) -> Tensor:
    """Counts of some samples, each followed by zeros: uint8 [B, longest, inputs]."""
    steps = spikes.steps[indices]
    first_row = spikes.steps.cumsum(0)[indices] - steps
    t = torch.arange(longest, device=indices.device)
    own = t < steps[:, None]  # [B, longest]
    row = (first_row[:, None] + t) * own  # beyond a sample's end any row will do: it is zeroed
    return spikes.counts[row] * own[:, :, None]


def batches(spikes: Spikes, size: int, shuffle=True, similar=False) -> list[tuple[Tensor, int]]:
    """A list of (indices of the samples, steps of the longest of them), one for each batch.

    Without shuffle, samples come in order of length, which leaves the least padding to compute.
    similar: shuffled, but the samples of a batch have similar lengths.  Random blocks of samples,
    of eight batches or a quarter of the set if that is less, are sorted by length and then cut.
    """
    steps = spikes.steps.cpu()
    order = torch.randperm(len(steps)) if shuffle else steps.argsort(stable=True)
    if shuffle and similar:
        block = size * max(1, min(8, len(steps) // size // 4))
        order = torch.cat([part[steps[part].argsort(stable=True)] for part in order.split(block)])
    parts = list(order.split(size))
    if shuffle and similar:
        parts = [parts[i] for i in torch.randperm(len(parts)).tolist()]
    return [(part.to(spikes.steps.device), int(steps[part].max())) for part in parts]


def augment(
    counts: Tensor, steps: Tensor, shift=0, warp=0.0, mask_inputs=0, mask_steps=0.0
) -> Tensor:
    """A batch changed at random, a little as if other speakers had spoken: [B, T, inputs].

    counts: [B, T, inputs], as padded returns them.  steps: [B], the steps of each sample.
    shift: all spikes of a sample move by the same number of inputs, from -shift to shift.  Those
        that leave the range are dropped.
    warp: before that, those of input i move to factor * i, with a factor from 1 - warp to 1 + warp.
        Some inputs are repeated or left out.  Vocal tracts of other lengths differ a little like
        that (vocal tract length perturbation, Jaitly and Hinton 2013).
    mask_inputs: in half of the samples, up to so many inputs in a row are silenced.
    mask_steps: in half of the samples, this share of the steps is silenced, in a row.
    Each sample draws its own numbers, on its device; what is off draws none.
    """
    samples, longest, inputs = counts.shape
    device = counts.device
    if shift or warp:
        # Where each input of the result comes from, [B, inputs]: the way back, last change first.
        source = torch.arange(inputs, device=device).expand(samples, inputs)
        if shift:
            source = source - torch.randint(-shift, shift + 1, (samples, 1), device=device)
        if warp:
            factor = 1 + warp * (2 * torch.rand(samples, 1, device=device) - 1)
            source = (source / factor).round().long()
        there = (source >= 0) & (source < inputs)
        source = source.clamp(0, inputs - 1)[:, None].expand_as(counts)
        counts = counts.gather(2, source) * there[:, None]
    if mask_inputs:
        width = torch.randint(1, mask_inputs + 1, (samples,), device=device)
        sizes = torch.full_like(width, inputs)
        counts = counts * ~random_block(sizes, width, inputs)[:, None]
    if mask_steps:
        width = (mask_steps * steps).long()
        counts = counts * ~random_block(steps, width, longest)[:, :, None]
    return counts


def random_block(sizes: Tensor, width: Tensor, length: int) -> Tensor:
    """bool [B, length]: in half of the rows a block is True, anywhere in the first sizes[b]."""
    # It can begin at so many places.  One that is wider than the row begins at 0 and fills it.
    room = (sizes - width).clamp(min=0) + 1
    start = (torch.rand(len(sizes), device=sizes.device) * room).long()
    happens = torch.rand(len(sizes), device=sizes.device) < 0.5
    i = torch.arange(length, device=sizes.device) - start[:, None]  # place within the block
    return (i >= 0) & (i < width[:, None]) & happens[:, None]


# --------------------------------------------------------------------------------- events to counts


def from_events(sample, step, channel, labels, inputs: int, speakers=None) -> Spikes:
    """Spikes of one's own data, from four arrays of whole numbers.

    sample, step, channel: one entry for each spike: its sample (0..samples-1), its time in steps,
        counted from 0 at the sample's beginning, and its input (0..inputs-1).
    labels: [samples], classes from 0.  speakers: [samples], numbers or names, if there are any.
    A sample ends with its last spike.  At most 255 spikes may share a step and input.
    """
    labels = whole_numbers("label", labels)
    sample = whole_numbers("sample of spike", sample, len(labels))
    step = whole_numbers("step of spike", step)
    channel = whole_numbers("channel of spike", channel, inputs)
    if not len(sample) == len(step) == len(channel):
        sizes = [len(sample), len(step), len(channel)]
        raise ValueError(f"sample, step and channel have {sizes} entries: expected as many each.")
    # `own` below are the places of one sample's spikes.
    order = np.argsort(sample, kind="stable")
    ends = np.bincount(sample, minlength=len(labels)).cumsum()
    counts = [count_spikes(step[own], channel[own], inputs) for own in np.split(order, ends[:-1])]
    return join(counts, labels, speakers)


def whole_numbers(name: str, values, upper: int | None = None) -> np.ndarray:
    """The values as int64 [n]; a ValueError unless they are whole, from 0 and below `upper`.

    Without upper, below 2**31.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        found = f"type {array.dtype} and shape {list(array.shape)}"
        raise ValueError(f"{name} has {found}: expected a list of whole numbers.")
    wanted = "at least 0, below 2**31" if upper is None else f"0..{upper - 1}"
    limit = 2**31 if upper is None else upper
    right = (array >= 0) & (array < limit) & (array == np.floor(array))
    if not right.all():
        at = right.argmin()  # the first that is not right
        raise ValueError(f"{name} {at} is {array[at]}: expected a whole number, {wanted}.")
    return array.astype(np.int64)


def count_spikes(step: np.ndarray, channel: np.ndarray, inputs: int) -> np.ndarray:
    """Counts of one sample, uint8 [steps, inputs], up to its last spike; one empty step if none."""
    steps = int(step.max(initial=0)) + 1
    cell = step * inputs + channel  # of the flattened counts
    counts = np.bincount(cell, minlength=steps * inputs)
    if counts.max() > 255:
        raise ValueError(f"{counts.max()} spikes in one step and input: expected at most 255.")
    return counts.astype(np.uint8).reshape(steps, inputs)


def join(counts: list[np.ndarray], labels: np.ndarray, speakers=None) -> Spikes:
    """Spikes from the counts of each sample; without speakers, each is called -1."""
    if len(labels) == 0:
        raise ValueError("there are no samples: expected at least one.")
    steps = np.array([len(sample) for sample in counts], dtype=np.int64)
    speakers = np.full(len(labels), -1) if speakers is None else np.asarray(speakers)
    if speakers.shape != labels.shape:
        shape = list(speakers.shape)
        raise ValueError(f"speakers of shape {shape}, {len(labels)} labels: expected one each.")
    joined = torch.from_numpy(np.concatenate(counts))
    return Spikes(joined, torch.from_numpy(steps), torch.from_numpy(labels), speakers)


def bin_sample(times, units) -> np.ndarray:
    """Counts of one sample of SHD or SSC, uint8 [steps, INPUTS].

    times: float16, seconds.  units: channels 0..699.  As in the authors' code, time begins with the
    sample's first spike.
    """
    times, units = np.asarray(times), whole_numbers("unit", units, CHANNELS)
    if len(times) != len(units):
        raise ValueError(f"{len(times)} times and {len(units)} units: expected as many of each.")
    if not np.isfinite(times).all():
        raise ValueError(f"time {np.isfinite(times).argmin()} is not finite: expected seconds.")
    if len(times) == 0:
        return np.zeros((1, INPUTS), np.uint8)
    ms = times.astype(np.float32) * 1000  # as float16 it would overflow, and lose whole steps
    ms -= ms.min()
    if ms.max() > LONGEST_S * 1000:
        lasts = f"it lasts {ms.max() / 1000:.0f} s, longer than {LONGEST_S} s"
        raise ValueError(f"{lasts}: expected times in seconds; are these milliseconds?")
    return count_spikes((ms / STEP_MS).astype(np.int64), units // GROUP, INPUTS)


# -------------------------------------------------------------------------------- files and servers


def load(dataset: str, split: str, data_dir: str) -> Spikes:
    """The Spikes of a split.  A published file that is not in data_dir is fetched into it.

    Raises OSError or ValueError, each with a sentence for the user.
    """
    return DATASETS[dataset].read(split, data_dir)


def find(dataset: str, split: str, data_dir: str) -> str | None:
    """The path of a split's file in data_dir, packed or not; None if there is none."""
    paths = [os.path.join(data_dir, f"{dataset}_{split}.h5{end}") for end in ("", ".gz", ".zip")]
    return next(filter(os.path.exists, paths), None)


def read_published(dataset: str, classes: int, split: str, data_dir: str) -> Spikes:
    """SHD and SSC: reads the file of a split, which is fetched if need be."""
    path = find(dataset, split, data_dir)
    if path is None:
        name = next(name for name in MD5 if name.startswith(f"{dataset}_{split}."))
        path = fetch(name, data_dir)
    try:
        with opened(path) as file:
            return read_h5(file, classes)
    except Exception as problem:  # gzip, zip and h5py raise many kinds for a broken file
        # A lack of memory, of disk or of rights says nothing against the file.
        if isinstance(problem, MemoryError) or getattr(problem, "errno", None):
            raise
        raise ValueError(
            f"{path} is not a sound spike file of {dataset} ({problem}): replace it, or delete it "
            "to have the published one fetched"
        ) from problem


@contextmanager
def opened(path: str):
    """An open .h5 file; an .h5.gz or .h5.zip file is unpacked, into a file that leaves no trace."""
    if path.endswith(".h5"):
        with open(path, "rb") as file:
            yield file
        return
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK):
        folder = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as file:  # has no name: it goes when the process does
        try:
            with packed(path) as source:
                while block := source.read(1 << 22):
                    file.write(block)
                    progress(f"unpacking {path}: {file.tell() / 1e6:.0f} MB")
        except OSError as problem:
            if problem.errno:
                problem.strerror = f"{problem.strerror}, while unpacking {path} into {folder}"
            raise
        yield file


def packed(path: str):
    if path.endswith(".gz"):
        return gzip.open(path)
    name = os.path.basename(path).removesuffix(".zip")
    return zipfile.Path(path, name).open("rb")


def read_h5(file, classes: int, chunk: int = 128) -> Spikes:
    """The Spikes of an .h5 file in the layout of SHD and SSC; reads `chunk` samples at a time."""
    with h5py.File(file, "r") as h5:
        labels = whole_numbers("label", h5["labels"][:], classes)
        speakers = h5["extra/speaker"]
        if h5py.check_string_dtype(speakers.dtype):
            speakers = speakers.asstr()
        speakers = speakers[:]
        times, units = h5["spikes/times"], h5["spikes/units"]
        sizes = [len(labels), len(speakers), len(times), len(units)]
        if len(set(sizes)) > 1 or not sizes[0]:
            found = f"{sizes} labels, speakers, times, units"
            raise ValueError(f"{found}: expected as many of each, and at least one")

        counts = []
        for start in range(0, len(labels), chunk):
            here = slice(start, start + chunk)
            for sample_times, sample_units in zip(times[here], units[here], strict=True):
                try:
                    counts.append(bin_sample(sample_times, sample_units))
                except ValueError as problem:
                    raise ValueError(f"sample {len(counts)}: {problem}") from problem
            progress(f"reading sample {len(counts)} of {len(labels)}")
    return join(counts, labels, speakers)


def fetch(name: str, data_dir: str) -> str:
    """Downloads a published file, or what is missing of it.  Returns its path.

    It is NAME.part until its md5 is right.  A call that breaks off leaves that for the next one to
    complete.  Each server is tried twice.
    """
    if os.path.normpath(data_dir) == DATA_DIR:
        os.makedirs(data_dir, exist_ok=True)
    if not os.path.isdir(data_dir):
        raise ValueError(f"--data-dir {data_dir!r} is no folder: make it, or mend its name")
    path = os.path.join(data_dir, name)
    problems = []
    with claimed(path + ".claim", f"downloads {name}"):
        for server in SERVERS * 2:
            try:
                download(f"{server}/{name}", path + ".part", MD5[name])
                os.replace(path + ".part", path)
                return path
            except (OSError, ValueError, http.client.HTTPException) as problem:
                if getattr(problem, "code", None) == 416:  # no more bytes, but a wrong md5
                    os.remove(path + ".part")
                words = " ".join(str(problem).split()) or type(problem).__name__
                problems.append(f"{server}: {words}")
    raise OSError(
        f"{name} is not in {data_dir} and could not be fetched ({'; '.join(problems)}): put it "
        f"there from {' or '.join(SERVERS)}, or try --dataset toy, which needs no files"
    )


def download(url: str, part: str, digest: str) -> None:
    """Appends to the file `part` what it lacks of the content at `url`, and checks its md5."""
    have = os.path.getsize(part) if os.path.exists(part) else 0
    if have and md5(part) == digest:
        return
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urlopen(request, timeout=30) as reply:
        length = int(reply.headers["Content-Length"] or -1)
        if length < 0:
            raise OSError("it does not say how long the file is")
        if reply.status != 206:  # the server sends all of it
            if length < have:
                raise OSError(f"it has {length} bytes, fewer than the {have} in {part}")
            have = 0
        total = have + length
        print(f"fetching {url}, {total / 1e6:.1f} MB", file=sys.stderr)
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            while block := reply.read(1 << 20):
                have += file.write(block)
                progress(f"{have / 1e6:.1f} of {total / 1e6:.1f} MB, {have / total:.0%}")
    if have != total:
        raise OSError(f"the connection ended after {have} of {total} bytes")
    found = md5(part)
    if found != digest:
        os.remove(part)
        raise OSError(f"md5 {found}, expected {digest}")


def md5(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest()


def progress(text: str) -> None:
    """Overwrites a line on the terminal; silent where stderr is a file."""
    if sys.stderr and sys.stderr.isatty():
        print(f"\r{text:<60}", end="\r", file=sys.stderr, flush=True)


@contextmanager
def claimed(path: str, task: str):
    """Keeps others from a task while this process is at it, by a file that names the process.

    An abandoned claim is removed.  Any other claim raises an OSError.
    """
    if abandoned(path):
        # One process at a time may remove it.  It looks again, for another one may have removed it
        # since, and put a claim of its own there.
        with claimed(path + ".void", task):
            if abandoned(path):
                os.remove(path)
    try:
        claim = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        rule = f"wait for it, or delete {path} if it no longer runs"
        raise OSError(f"another process {task}: {rule}") from None
    try:
        os.write(claim, f"{socket.gethostname()} {os.getpid()}".encode())
        os.close(claim)
        yield
    finally:
        with suppress(OSError):  # it is gone, or a problem with the folder has been raised
            os.remove(path)


def abandoned(path: str) -> bool:
    """Whether a claim is that of a process of this host that no longer runs.

    On Windows one cannot ask whether a process runs, so there no claim counts as abandoned.
    """
    try:
        with open(path) as file:
            host, pid = file.read().split()
        if host == socket.gethostname() and os.name != "nt":
            os.kill(int(pid), 0)  # sends nothing: it asks whether the process runs
    except ProcessLookupError:
        return True
    except (FileNotFoundError, PermissionError, OverflowError, ValueError):
        pass  # there is no claim; or it is another user's, or cannot be read
    return False


# ------------------------------------------------------------------------------------- the toy task


def toy(split: str, data_dir: str = "", *, jitter: float = 0.25, noise: int = 8) -> Spikes:
    """A task that needs a memory: ten classes, which differ in the order of the inputs alone.

    A class is an order of the inputs.  After a random onset of up to 20 steps each input has a slot
    of 5 steps to itself, and spikes in three consecutive steps of it.  They begin at the slot's
    second step; with probability `jitter` one step earlier, with as much one step later.  So only
    one input speaks at a time, and whoever sees a single step, without knowing when it is, cannot
    tell the classes apart.  With membranes that forget at once, only delays remember an order; a
    leak of 100 ms does nearly as well.  `noise` more spikes a sample fall anywhere.  data_dir is not used.
    """
    inputs, slot, burst, latest = 8, 5, 3, 20
    samples, seed = {"train": (2000, 1), "test": (1000, 2)}[split]
    rng = np.random.default_rng(seed)
    slots = np.tile(np.arange(inputs), (10, 1))
    # slots[c, i]: in which slot input i speaks in class c.
    slots = np.random.default_rng(0).permuted(slots, axis=1)
    labels = np.arange(samples, dtype=np.int64) % 10
    onset = rng.integers(0, latest + 1, (samples, 1))
    within = rng.choice(3, (samples, inputs), p=[jitter, 1 - 2 * jitter, jitter])
    start = onset + slot * slots[labels] + within  # of each input's burst, [samples, inputs]

    steps = latest + slot * inputs
    counts = np.zeros((samples, steps, inputs), np.uint8)
    sample, channel = np.arange(samples)[:, None], np.arange(inputs)
    for later in range(burst):
        counts[sample, start + later, channel] = 1  # [samples, inputs] cells
    noise_step = rng.integers(0, steps, (samples, noise))
    noise_input = rng.integers(0, inputs, (samples, noise))
    np.add.at(counts, (sample, noise_step, noise_input), 1)
    return join(list(counts), labels)


# ------------------------------------------------------------------------------------ the data sets


class Dataset(NamedTuple):
    """What the rest of the program knows of a data set.

    read: a function of a split's name and the data folder that returns its Spikes.
    splits: "train", "test" and, where there is one, "valid".
    step_ms: length of a step of time.
    """

    read: Callable[[str, str], Spikes]
    splits: tuple[str, ...]
    inputs: int
    classes: int
    step_ms: float


# A data set of one's own is one more row here, and one in train.DEFAULTS.
DATASETS = {
    "shd": Dataset(partial(read_published, "shd", 20), ("train", "test"), INPUTS, 20, STEP_MS),
    "ssc": Dataset(
        partial(read_published, "ssc", 35), ("train", "valid", "test"), INPUTS, 35, STEP_MS
    ),
    "toy": Dataset(toy, ("train", "test"), 8, 10, STEP_MS),
}
