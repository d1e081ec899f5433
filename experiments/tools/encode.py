"""Make SHD (regenerated) from the recordings of SHD (needs soundfile, numba and lauscher).

    python -m experiments.regenerate AUDIO OUT

AUDIO is the folder of the 10,420 FLAC files of hd_audio, the Heidelberg Digits (CC BY 4.0), from
https://zenkelab.org/resources/spiking-heidelberg-datasets-shd/.  OUT gets shd_train.h5 and
shd_test.h5, in the layout of the published SHD, and train.npz and test.npz, the data set
shd-regenerated, as in experiments/shd-regenerated.  The spikes of finished recordings are kept in
OUT/clips, so the same command continues a run that was stopped.

The model is that of the package lauscher: "The Heidelberg Spiking Data Sets for the Systematic
Evaluation of Spiking Neural Networks" (Cramer, Stradmann, Schemmel, Zenke, 2020).  Its basilar
membrane is from Sieroka, Dosch and Rupp (2006), its hair cell from Meddis (1986).
"""

import functools
import re
import sys
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np

import data

RECORDINGS = 10_420
WORDS = "zero one two three four five six seven eight nine"
WORDS += " null eins zwei drei vier fuenf sechs sieben acht neun"
CHANNELS = 700
RATE = 48_000  # samples of a recording per second
STEPS = RATE // 2  # steps of the model per second
DT = 1 / STEPS  # s
GRID = RATE // 10  # samples: silence fills a recording up to a multiple of 0.1 s
LOUDNESS = 0.3  # root mean square of a recording
FADE = RATE * 30 // 1000  # samples in 30 ms, over which a recording fades in, and out

RELEASE, REPLENISH, LOSS, RECOVER, REPROCESS = 2000.0, 5.05, 2500.0, 6580.0, 66.3  # per second
OFFSET, HALF = 5.0, 300.0  # in units of the membrane's velocity
FIRING = 50_000.0  # spikes per second and unit of transmitter
FIBRES = 40  # of a channel
REST = STEPS // 1000  # steps in 1 ms: how long fibres and bushy cells rest after a spike
TAU_SYNAPSE, TAU_MEMBRANE = 0.5e-3, 1e-3  # s
WEIGHT = 13_000 / FIBRES  # potential per second and unit of current

FORM = r"lang-(english|german)_speaker-(\d+)_trial-\d+_digit-(\d)\.flac"
Sample = namedtuple("Sample", "name seed label speaker")


def plan(names: list[str]) -> dict[str, list[Sample]]:
    """Return the samples of each split in the order of its file.

    The result depends on the sorted names of all recordings.  The test split has speakers 4 and 5,
    as published, and a random twentieth of the recordings of each remaining speaker and language,
    since the published choice is unknown.
    """
    samples = []
    groups = {}
    for i, name in enumerate(sorted(names)):
        match = re.fullmatch(FORM, name)
        if match is None:
            sys.exit(f"{name} is not named like {FORM}: move it out of the folder")
        language, speaker, digit = match[1], int(match[2]), int(match[3])
        samples.append(Sample(name, 7000 + i, digit + 10 * (language == "german"), speaker))
        groups.setdefault((language, speaker), []).append(i)

    test = set()
    rng = np.random.default_rng(0)
    for (_, speaker), group in sorted(groups.items()):
        if speaker not in (4, 5):
            group = rng.permutation(group)[: len(group) // 20]
        test.update(group)

    splits = {}
    for split in ("train", "test"):
        members = [s for i, s in enumerate(samples) if (i in test) == (split == "test")]
        order = np.random.default_rng(1).permutation(len(members))
        splits[split] = [members[i] for i in order]
    return splits


def encode(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the spikes of a recording: times in s, float16 [spikes], and channels, uint16."""
    import numba
    import scipy.fft
    import soundfile

    try:
        audio, rate = soundfile.read(path)
    except soundfile.SoundFileError as problem:
        sys.exit(f"{path} cannot be read ({problem}): unpack hd_audio again")
    if rate != RATE:
        sys.exit(f"{path} has {rate} samples per second, not {RATE}: unpack hd_audio again")
    audio *= LOUDNESS / np.sqrt(np.mean(audio**2))
    audio[:FADE] *= np.hanning(2 * FADE)[:FADE]
    audio[-FADE:] *= np.hanning(2 * FADE)[FADE:]

    samples = len(audio) + -len(audio) % GRID
    spectrum = np.fft.fft(audio, samples)[: samples // 2 + 1].astype(np.complex64)
    # Half a spectrum gives half as many samples: these are the steps.
    motion = scipy.fft.ifft(response(samples) * spectrum, axis=1, overwrite_x=True).real
    motion = motion[:, : len(audio) // 2]  # [channels, steps]

    random = np.random.RandomState(seed).random_sample(motion.shape)
    machine_code = numba.njit(cache=True)(channel_spikes)
    spikes = list(map(machine_code, motion, random))  # [channels, steps]
    step, channel = np.nonzero(np.transpose(spikes))
    return (step / STEPS).astype(np.float16), channel.astype(np.uint16)


@functools.lru_cache(maxsize=1)  # it takes half a minute and 100 MB
def response(samples: int) -> np.ndarray:
    """Return the membrane's response to each frequency: complex64 [channels, samples // 2 + 1]."""
    from lauscher.transformations.basilar_membrane import BasilarMembrane

    membrane = BasilarMembrane(CHANNELS)
    omega = 2 * np.pi * np.linspace(1, STEPS, samples // 2 + 1)
    return np.array([membrane._v(omega, place) for place in membrane.ch], np.complex64)


def channel_spikes(velocity: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Return in which steps the bushy cell of a channel spikes: bool [steps].

    velocity: of the basilar membrane; random: numbers between 0 and 1; both [steps].
    Transmitter is in the hair cell (q), in the cleft to the fibres (c), or being reprocessed (w):

        k = RELEASE u / (u + HALF) with u = velocity + OFFSET, and 0 where u < 0
        dq/dt = REPLENISH (1 - q) + REPROCESS w - k q, without the first term where q > 1
        dc/dt = k q - (LOSS + RECOVER) c
        dw/dt = RECOVER c - REPROCESS w

    A fibre that does not rest fires in a step with the probability p = FIRING c dt.  The number n
    of those that fire is binomial: the first with P(0) + ... + P(n) >= random.  They drive the
    bushy cell, which spikes when v reaches 1, and then rests at 0:

        di/dt = -i / TAU_SYNAPSE + n / dt
        dv/dt = -v / TAU_MEMBRANE + WEIGHT i
    """
    k = RELEASE * OFFSET / (OFFSET + HALF)  # in silence
    c = REPLENISH * k / (LOSS * k + REPLENISH * (LOSS + RECOVER))
    q = c * (LOSS + RECOVER) / k
    w = c * RECOVER / REPROCESS
    i, v, last = 0.0, 0.0, -STEPS  # last: the step of the last spike
    fired = np.zeros(len(velocity), np.int64)
    spikes = np.zeros(len(velocity), np.bool_)
    for t in range(len(velocity) - 1):  # as in lauscher, the last step has no spike
        u = max(velocity[t] + OFFSET, 0.0)
        k = RELEASE * u / (u + HALF)
        dq = REPLENISH * max(1 - q, 0.0) + REPROCESS * w - k * q
        dc = k * q - (LOSS + RECOVER) * c
        dw = RECOVER * c - REPROCESS * w
        q, c, w = q + dq * DT, c + dc * DT, w + dw * DT

        p = FIRING * c * DT
        free = FIBRES - fired[max(t - REST + 1, 0) : t].sum()
        n = 0
        share = (1 - p) ** free  # P(0)
        left = random[t] - share
        while left > 0 and n < free:
            n += 1
            share *= (free - n + 1) * p / (n * (1 - p))  # P(n)
            left -= share
        fired[t] = n

        i = i * np.exp(-DT / TAU_SYNAPSE) + n
        v = v * np.exp(-DT / TAU_MEMBRANE) + WEIGHT * DT * i
        if t <= last + REST:
            v = 0.0
        if v >= 1:
            last = t
            spikes[t] = True
    return spikes


def write(path: Path, samples: list[Sample], clips: dict[Sample, Path]) -> None:
    """Write the file of a split, from the spike files of its samples."""
    with h5py.File(path.with_suffix(".part"), "w") as file:
        times = file.create_dataset("spikes/times", len(samples), h5py.vlen_dtype(np.float16))
        units = file.create_dataset("spikes/units", len(samples), h5py.vlen_dtype(np.uint16))
        for i, sample in enumerate(samples):
            with np.load(clips[sample]) as spikes:
                times[i] = spikes["times"]
                units[i] = spikes["units"]
        file["labels"] = np.array([sample.label for sample in samples], np.uint16)
        file["extra/speaker"] = np.array([sample.speaker for sample in samples], np.uint16)
        file["extra/keys"] = np.array(WORDS.split(), np.bytes_)
    path.with_suffix(".part").replace(path)


def write_counts(out: Path, split: str) -> None:
    """Write the counts of a split's .h5 file in `out` as the network sees them, as SPLIT.npz."""
    spikes = data.load("shd", split, str(out))
    np.savez_compressed(
        out / "part.npz",
        counts=np.concatenate(spikes.counts),  # uint8 [steps of all samples, inputs]
        steps=spikes.steps.numpy().astype(np.int16),
        labels=spikes.labels.numpy().astype(np.uint8),
        speakers=spikes.speakers.astype(np.uint8),
    )
    (out / "part.npz").replace(out / f"{split}.npz")


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit(__doc__)
    audio, out = map(Path, argv)
    splits = plan([path.name for path in audio.glob("*.flac")])
    samples = splits["train"] + splits["test"]
    if len(samples) != RECORDINGS:
        found = f"{audio} has {len(samples):,} FLAC files, expected {RECORDINGS:,}"
        sys.exit(f"{found}: unpack hd_audio again, and name the folder that holds its files")
    if not all(find_spec(name) for name in ("soundfile", "numba", "lauscher")):
        sys.exit("a package is missing: run python -m pip install soundfile numba lauscher")
    import soundfile

    folder = out / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    # A seed depends on the names of all recordings, so it is part of the name.
    clips = {s: folder / f"{s.seed}-{s.name}.npz" for s in samples}
    todo = [s for s in samples if not clips[s].exists()]
    todo.sort(key=lambda s: soundfile.info(audio / s.name).frames)  # for the cache of response
    with ProcessPoolExecutor() as pool:
        encoded = pool.map(encode, [audio / s.name for s in todo], [s.seed for s in todo])
        for done, (sample, (times, units)) in enumerate(zip(todo, encoded, strict=True), 1):
            np.savez(folder / "part.npz", times=times, units=units)
            (folder / "part.npz").replace(clips[sample])
            if done % 100 == 0:
                print(f"{done:,} of {len(todo):,} recordings", flush=True)
    for split in splits:
        write(out / f"shd_{split}.h5", splits[split], clips)
        write_counts(out, split)


if __name__ == "__main__":
    main(sys.argv[1:])
