"""Spike files in the format of SHD and SSC (spoken words through a model of the cochlea, Cramer et
al. 2020), and a toy task: each split as one tensor of counts."""
import gzip, hashlib, os, shutil, sys, tempfile, time, zipfile, zlib
from collections import namedtuple
from urllib.request import Request, urlopen
import h5py
import numpy as np
import torch

SERVERS = ["https://zenkelab.org/datasets", "https://compneuro.net/datasets"]
MD5 = {"shd_train.h5.gz": "d47c9825dee33347913e8ce0f2be08b0",
       "shd_test.h5.gz": "3062a80ec0c5719404d5b02e166543b1",
       "ssc_train.h5.zip": "d102be95e7144fcc0553d1f45ba94170",
       "ssc_valid.h5.zip": "b4eee3516a4a90dd0c71a6ac23a8ae43",
       "ssc_test.h5.zip": "a35ff1e9cffdd02a20eb850c17c37748"}
CHANNELS, GROUP, STEP_MS = 700, 5, 10  # of the cochlea; summed to one input; time step
INPUTS, CLASSES = {"shd": 140, "ssc": 140, "toy": 5}, {"shd": 20, "ssc": 35, "toy": 10}

# counts: uint8 [rows, inputs], sample after sample, a row a step; the rest: int64 [samples]
Spikes = namedtuple("Spikes", "counts steps labels speakers")

def padded(spikes, indices, longest):
    """Counts of some samples, each with zeros to `longest` steps: uint8 [B, longest, inputs]."""
    steps, t = spikes.steps[indices, None], torch.arange(longest, device=indices.device)
    rows, own = spikes.steps.cumsum(0)[indices, None] - steps + t, t < steps  # [B, longest]
    return spikes.counts[rows * own] * own[:, :, None]

def batches(spikes, size, shuffle=True):
    """[(indices of the samples, most steps of any)] by batch, shuffled or in order of length."""
    steps = spikes.steps.cpu()
    order = torch.randperm(len(steps)) if shuffle else steps.argsort(stable=True)
    longest = [int(own.max()) for own in steps[order].split(size)]
    return list(zip(order.to(spikes.steps.device).split(size), longest))

def load(dataset, split, data_dir):
    """Spikes of a split; a file not in data_dir is fetched into it.  OSErrors are for the user."""
    if dataset == "toy":
        return toy(split)
    names = [f"{dataset}_{split}.h5{packing}" for packing in ("", ".gz", ".zip")]
    path = next(filter(os.path.exists, (os.path.join(data_dir, name) for name in names)), None)
    path = path or fetch(next(name for name in names if name in MD5), data_dir)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = path if path.endswith(".h5") else os.path.join(scratch, names[0])
            if path.endswith(".zip"):
                shutil.unpack_archive(path, scratch)
            elif path.endswith(".gz"):
                with gzip.open(path) as packed, open(unpacked, "wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 20)
            return read(unpacked, CLASSES[dataset])
    except (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile,
            zlib.error) as problem:
        raise OSError(f"{path} is not a sound spike file of {dataset} ({problem}): replace it, or "
                      "delete it to have the published one fetched") from problem

def fetch(name, data_dir):
    """Downloads a published file, or its rest -> path, a name it gets if its md5 is right."""
    path, problems = os.path.join(data_dir, name), []
    partial = path + ".part"
    for server in SERVERS * 2:
        try:
            os.makedirs(data_dir, exist_ok=True)
            begun, first = time.time(), os.path.getsize(partial) if os.path.exists(partial) else 0
            ask = Request(f"{server}/{name}", headers={"Range": f"bytes={first}-"})
            with urlopen(ask, timeout=30) as reply, open(partial, "ab") as part:
                if reply.status != 206:  # the server starts from the beginning
                    first = part.truncate(0)
                done, total = first, first + int(reply.headers["Content-Length"])
                while block := reply.read(1 << 20):
                    done += part.write(block)
                    speed = (done - first) / 1e6 / (time.time() - begun)
                    print(f"\r{name} {done / 1e6:.1f} of {total / 1e6:.1f} MB, {speed:.1f} MB/s"
                          f", {done / total:.0%}", end="\n" * (done == total), file=sys.stderr)
            if done < total:
                raise OSError(f"the connection ended after {done} of {total} bytes")
            with open(partial, "rb") as part:
                digest = hashlib.file_digest(part, "md5").hexdigest()
            if digest == MD5[name]:
                os.replace(partial, path)
                return path
            os.remove(partial)
            raise OSError(f"md5 {digest}, expected {MD5[name]}")
        except OSError as problem:
            problems.append(f"{server}: {problem}")
            if getattr(problem, "code", None) == 416:  # the part has no rest: begin anew
                os.remove(partial)
    raise OSError(f"{name} is not in {data_dir} and could not be fetched ({'; '.join(problems)}): "
                  f"put it there from {' or '.join(f'{server}/{name}' for server in SERVERS)}, or "
                  "try --dataset toy, which needs no files")

def read(path, classes, chunk=128):
    """Spikes of an .h5 file, binned `chunk` samples at a time to keep memory low."""
    with h5py.File(path) as file:
        raw = [file[n] for n in ("labels", "extra/speaker", "spikes/times", "spikes/units")]
        sizes, (labels, speakers) = [*map(len, raw)], (np.int64(c[:]) for c in raw[:2])
        if len(set(sizes)) > 1 or not sizes[0] or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels {np.unique(labels).tolist()}, expected of 0..{classes - 1}; "
                             f"{sizes} labels, speakers, times, units, expected as many of each")
        parts = [bin_spikes(*(c[i:i + chunk] for c in raw[2:])) for i in range(0, sizes[0], chunk)]
    return Spikes(*map(torch.from_numpy, (*map(np.concatenate, zip(*parts)), labels, speakers)))

def bin_spikes(times, units):
    """Times in s and channels 0..699, arrays by sample -> counts, uint8 [rows, inputs], a row for
    each 10 ms from a sample's first spike to its last, and steps [samples]: how many rows each."""
    size = np.array([len(t) for t in times])
    sample, some = np.repeat(np.arange(len(size)), size), size > 0
    # The files hold float16, good for 65504 at most and, above 2048, for even numbers: convert.
    ms = np.concatenate(times).astype(np.float32) * 1000
    first, last = np.zeros((2, len(size)), np.float32)
    begin = (np.cumsum(size) - size)[some]
    first[some], last[some] = (end.reduceat(ms, begin) for end in (np.minimum, np.maximum))
    steps = ((last - first) / STEP_MS).astype(np.int64) + 1
    row = (np.cumsum(steps) - steps)[sample] + ((ms - first[sample]) / STEP_MS).astype(np.int64)
    channel, inputs = np.concatenate(units).astype(np.int64), CHANNELS // GROUP
    if channel.max(initial=0) >= CHANNELS:
        raise ValueError(f"a spike of channel {channel.max()}, expected 0..{CHANNELS - 1}")
    counts = np.bincount(row * inputs + channel // GROUP, minlength=steps.sum() * inputs)
    if counts.max() > 255:
        raise ValueError(f"{counts.max()} spikes in one step and input, expected at most 255")
    return counts.reshape(-1, inputs).astype(np.uint8), steps

def toy(split, inputs=5, slot=5, jitter=0.25, noise=1, latest=20):
    """The task that needs delays.  A class is an order of the inputs: each has a slot of `slot`
    steps to itself, after a common random onset.  Its one spike falls on the slot's second step, or
    with probability `jitter` a step beside: no two coincide; step by step classes look the same."""
    samples, seed = {"train": (2000, 1), "test": (1000, 2)}[split]
    rng, sample = np.random.default_rng(seed), np.arange(samples)[:, None]
    order = np.stack([np.random.default_rng([0, c]).permutation(inputs) for c in range(10)])
    labels = sample[:, 0] % 10
    step = rng.choice(3, (samples, inputs), p=[jitter / 2, 1 - jitter, jitter / 2])
    step += slot * order[labels] + rng.integers(0, latest, (samples, 1))
    counts = np.zeros((samples, slot * inputs + latest, inputs), np.uint8)
    counts[sample, step, np.arange(inputs)] = 1
    place = rng.integers(0, counts.shape[1:], (samples, noise, 2))
    np.add.at(counts, (sample, place[..., 0], place[..., 1]), 1)
    return Spikes(torch.from_numpy(counts).flatten(0, 1), torch.full((samples,), counts.shape[1]),
                  torch.from_numpy(labels), torch.full((samples,), -1))
