"""Turn a recording into spikes of SHD's 700 channels (needs soundfile, numba, lauscher, scipy).

    python -m experiments.tools.encode SOUND SPIKES.npz

SOUND is a recording of a word at 48 kHz.  SPIKES.npz gets `times` and `units`, as of `encode`, for
data.bin_sample.

The model is that of the package lauscher: "The Heidelberg Spiking Data Sets for the Systematic
Evaluation of Spiking Neural Networks" (Cramer, Stradmann, Schemmel, Zenke, 2020).  Its basilar
membrane is from Sieroka, Dosch and Rupp (2006), its hair cell from Meddis (1986).
"""

import functools
import sys

import numpy as np

from data import CHANNELS, UserError

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


def encode(path: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the spikes of a recording: times in s, float16 [spikes], and channels, uint16.

    seed: of the random numbers that decide which fibres fire.
    """
    import numba
    import scipy.fft
    import soundfile

    try:
        audio, rate = soundfile.read(path)
    except soundfile.SoundFileError as problem:
        raise UserError(f"{path} cannot be read: {problem}") from problem
    if rate != RATE or audio.ndim > 1 or len(audio) < 2 * FADE or not audio.any():
        found = f"{path} has the shape {audio.shape} at {rate} samples per second"
        raise UserError(f"{found}: expected one channel at {RATE}, 60 ms or longer, with a sound")
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
    Transmitter is in the hair cell (q), in the cleft to the fibres (c), or being reprocessed (w).
    A fibre that does not rest fires in a step with a probability p in proportion to c.  The number
    n of those that fire is binomial: the first with P(0) + ... + P(n) >= random.  Their current i
    drives the bushy cell, which spikes when its potential v reaches 1, and then rests at 0.
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


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit(__doc__)
    try:
        times, units = encode(argv[0], seed=0)
        np.savez(argv[1], times=times, units=units)
    except (UserError, ImportError, OSError) as problem:
        sys.exit(f"encode.py: {problem}")


if __name__ == "__main__":
    main(sys.argv[1:])
