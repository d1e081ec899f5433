"""Spike files in the format of SHD and SSC, and a toy task, each as one uint8 tensor of counts.

SHD and SSC are spoken words passed through a cochlea model: Cramer, Stradmann, Schemmel, Zenke, "The
Heidelberg Spiking Data Sets for the Systematic Evaluation of Spiking Neural Networks", 2020.
"""
import gzip
import hashlib
import http.client
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from typing import NamedTuple

import h5py
import numpy as np
import torch

SERVERS = ["https://zenkelab.org/datasets", "https://compneuro.net/datasets"]
SPLITS = {"shd": ["train", "test"], "ssc": ["train", "valid", "test"], "toy": ["train", "test"]}
CLASSES = {"shd": 20, "ssc": 35, "toy": 10}
MD5 = {"shd_train.h5.gz": "d47c9825dee33347913e8ce0f2be08b0",
       "shd_test.h5.gz": "3062a80ec0c5719404d5b02e166543b1",
       "ssc_train.h5.zip": "d102be95e7144fcc0553d1f45ba94170",
       "ssc_valid.h5.zip": "b4eee3516a4a90dd0c71a6ac23a8ae43",
       "ssc_test.h5.zip": "a35ff1e9cffdd02a20eb850c17c37748"}
INPUTS = {"shd": 140, "ssc": 140, "toy": 20}
CHANNELS, STEP_MS = 700, 10


class Spikes(NamedTuple):
    counts: torch.Tensor    # uint8 [samples, steps, inputs], zero beyond a sample's own steps
    steps: torch.Tensor     # int64 [samples]: each sample's own number of steps
    labels: torch.Tensor    # int64 [samples]
    speakers: torch.Tensor  # int64 [samples]

    def select(self, which):
        return Spikes(*(field[which] for field in self))

    def to(self, device):
        return Spikes(*(field.to(device) for field in self))


def in_batches(spikes, batch_size, block=0, shuffle=True):
    """[(indices, longest)]: the samples of each batch of an epoch and the most steps among them.

    shuffle with block > 0: samples are shuffled, sorted by length within every `block` batches, and
    the batches shuffled again, so that a batch holds samples of similar length and little padding.
    """
    steps = spikes.steps.cpu()
    order = torch.randperm(len(steps)) if shuffle else steps.argsort(stable=True)
    if shuffle and block:
        order = torch.cat([part[steps[part].argsort(stable=True)]
                           for part in order.split(block * batch_size)])
    batches = list(order.to(spikes.labels.device).split(batch_size))
    longest = [int(part.max()) for part in steps[order].split(batch_size)]
    shuffled = torch.randperm(len(batches)) if shuffle and block else torch.arange(len(batches))
    return [(batches[i], longest[i]) for i in shuffled]


def load(dataset, split, data_dir):
    """Spikes of one split of shd, ssc or toy, on the CPU; fetched into data_dir if they are not there.

    Raises OSError or ValueError, each with a sentence for the user.
    """
    if dataset == "toy":
        return toy(split)
    path = find(f"{dataset}_{split}", data_dir)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return read(unpack(path, scratch), CLASSES[dataset])
    except (EOFError, KeyError, zlib.error, zipfile.BadZipFile, OSError) as error:
        raise OSError(f"{path} cannot be read as spikes ({error}): it may be incomplete; replace it, "
                      "or delete it to have the published file fetched.") from error


def find(name, data_dir):
    """The path of NAME.h5, .h5.gz or .h5.zip in data_dir; the published archive is fetched if need be."""
    for ending in (".h5", ".h5.gz", ".h5.zip"):
        path = os.path.join(data_dir, name + ending)
        if os.path.exists(path):
            return path
    return fetch(next(file for file in MD5 if file.startswith(name)), data_dir)


def fetch(file, data_dir):
    """Downloads a published file; what a broken attempt left is continued by the next.  -> path

    The file takes its name only once its checksum is right."""
    path = os.path.join(data_dir, file)
    problems = []
    for server in SERVERS * 2:
        try:
            os.makedirs(data_dir, exist_ok=True)
            _download(f"{server}/{file}", path + ".part")
            with open(path + ".part", "rb") as part:
                digest = hashlib.file_digest(part, "md5").hexdigest()
            if digest == MD5[file]:
                os.replace(path + ".part", path)
                return path
            os.remove(path + ".part")
            problems.append(f"{server}: the checksum is {digest}, not {MD5[file]}")
        except (OSError, http.client.HTTPException) as error:
            problems.append(f"{server}: {error}")
    raise OSError(f"{file} is not in {data_dir} and could not be fetched ({'; '.join(problems[:2])}). "
                  f"Put it there from {' or '.join(f'{s}/{file}' for s in SERVERS)}, or try "
                  "--dataset toy, which needs no files.")


def _download(url, part):
    done = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing beyond what is here: whether it is right, the checksum tells
            return
        raise
    with response:
        if response.status != 206:  # the server sends the file from its beginning
            done = 0
        total = done + int(response.headers.get("Content-Length", 0))
        start, first, shown = time.monotonic(), done, 0.0
        with open(part, "ab" if done else "wb") as out:
            while block := response.read(1 << 18):
                out.write(block)
                done += len(block)
                if time.monotonic() - shown > 0.5 or done == total:
                    shown = time.monotonic()
                    speed = (done - first) / 1e6 / max(shown - start, 1e-3)
                    print(f"\r{os.path.basename(url)}  {done / 1e6:.1f} of {total / 1e6:.1f} MB  "
                          f"{speed:.1f} MB/s  {100 * done / max(total, done):.0f} %",
                          end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def unpack(path, scratch):
    """The path of an .h5 file with the contents of path, unpacked into scratch if need be."""
    if path.endswith(".h5"):
        return path
    target = os.path.join(scratch, "spikes.h5")
    with open(target, "wb") as out:
        if path.endswith(".gz"):
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, out, 1 << 20)
        else:
            with zipfile.ZipFile(path) as archive:
                member = next(n for n in archive.namelist() if n.endswith(".h5"))
                with archive.open(member) as packed:
                    shutil.copyfileobj(packed, out, 1 << 20)
    return target


def read(path, classes, group=5, chunk=128):
    """Spikes of an .h5 file, read `chunk` samples at a time; `group` channels make one input."""
    parts = []
    with h5py.File(path) as file:
        labels = torch.from_numpy(file["labels"][:].astype(np.int64))
        speakers = torch.from_numpy(file["extra/speaker"][:].astype(np.int64))
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(f"{path} has labels {labels.min()}..{labels.max()}: expected 0..{classes - 1}.")
        for i in range(0, len(labels), chunk):
            parts.append(bin_spikes(file["spikes/times"][i:i + chunk],
                                    file["spikes/units"][i:i + chunk], group))
    steps = torch.from_numpy(np.concatenate([own for _, own in parts]))
    counts = torch.zeros(len(labels), int(steps.max()), CHANNELS // group, dtype=torch.uint8)
    for i in range(0, len(labels), chunk):  # each part is freed once it is copied
        part, _ = parts.pop(0)
        counts[i:i + len(part), :part.shape[1]] = torch.from_numpy(part)
    return Spikes(counts, steps, labels, speakers)


def bin_spikes(times, units, group=5):
    """Spike times in s and channels 0..699, an array per sample -> counts, uint8 [samples, steps,
    700 / group], in steps of 10 ms from each sample's first spike on, and steps, int64 [samples]."""
    size = np.array([len(t) for t in times])
    owner = np.repeat(np.arange(len(size)), size)
    # The files hold float16, which overflows at 65504 and resolves 1 ms at 1 s: convert it first.
    time_s = np.concatenate(times).astype(np.float32)
    unit = np.concatenate(units).astype(np.int64)
    begin = (np.cumsum(size) - size)[size > 0]
    first, last = np.zeros(len(size), np.float32), np.zeros(len(size), np.float32)
    first[size > 0], last[size > 0] = np.minimum.reduceat(time_s, begin), np.maximum.reduceat(time_s, begin)
    step = ((time_s - first[owner]) * 1000 / STEP_MS).astype(np.int64)
    steps = ((last - first) * 1000 / STEP_MS).astype(np.int64) + 1
    shape = len(size), int(steps.max()), CHANNELS // group
    cell = (owner * shape[1] + step) * shape[2] + unit // group
    counts = np.bincount(cell, minlength=shape[0] * shape[1] * shape[2]).reshape(shape)
    if counts.max() > 255:
        raise ValueError(f"{counts.max()} spikes in one cell")
    return counts.astype(np.uint8), steps


def toy(split, classes=10, inputs=20, spacing=2, noise=4, latest_onset=20):
    """The task that only delays can solve: which of ten orders the inputs spike in.

    Every input spikes once.  A class is a permutation that gives each input a slot of `spacing`
    steps for itself; in which step of the slot its spike falls is random, as is the onset of the
    whole.  So no two inputs of a pattern ever coincide, and what a neuron without memory sees at its
    single steps is the same in all classes.  `noise` spikes are added at random.
    """
    order = np.random.default_rng(0).permuted(np.tile(np.arange(inputs), (classes, 1)), axis=1)
    rng = np.random.default_rng([1, SPLITS["toy"].index(split)])
    samples = {"train": 2000, "test": 1000}[split]
    labels = np.arange(samples) % classes
    step = rng.integers(0, latest_onset, (samples, 1)) + spacing * order[labels]
    step += rng.integers(0, spacing, step.shape)
    steps = latest_onset + spacing * inputs
    counts = np.zeros((samples, steps, inputs), np.uint8)
    sample = np.arange(samples)[:, None]
    counts[sample, step, np.arange(inputs)] = 1
    np.add.at(counts, (sample, rng.integers(0, steps, (samples, noise)),
                       rng.integers(0, inputs, (samples, noise))), 1)
    return Spikes(torch.from_numpy(counts), torch.full((samples,), steps),
                  torch.from_numpy(labels), torch.full((samples,), -1))
