"""Files as large as SSC's, made of smaller ones in its layout, to try the program at full size.

    python experiments/full_size.py SMALL_DIR FULL_DIR
    python train.py --dataset ssc --data-dir FULL_DIR --hidden 64 --layers 1 --epochs 1

The samples of SMALL_DIR's ssc_train, ssc_valid and ssc_test are repeated until there are as many as
in the published files, and packed as .h5.zip.  FULL_DIR has to exist; it takes 1.5 GB, and 2.5 GB
more while a file is packed.
"""

import os
import sys
import zipfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import h5py
import numpy as np

import data

SAMPLES = {"train": 75466, "valid": 9981, "test": 20382}  # of the published files


def repeat(small: h5py.File, full: h5py.File, samples: int) -> None:
    """Fills `full` with so many samples, those of `small` again and again."""
    have = len(small["labels"])
    which = np.arange(samples) % have
    full["labels"] = small["labels"][:][which]
    speakers = small["extra/speaker"]
    full.create_dataset("extra/speaker", data=speakers[:][which], dtype=speakers.dtype)
    for name in ("spikes/times", "spikes/units"):
        column = small[name][:]
        target = full.create_dataset(name, (samples,), dtype=small[name].dtype)
        for start in range(0, samples, have):
            part = column[: samples - start]
            target[start : start + len(part)] = part


def main(small_dir: str, full_dir: str) -> None:
    if os.path.realpath(small_dir) == os.path.realpath(full_dir):
        raise ValueError(
            f"{full_dir} holds the small files: name another folder for the large ones"
        )
    for split, samples in SAMPLES.items():
        source = data.find("ssc", split, small_dir)
        if source is None or not os.path.isdir(full_dir):
            raise ValueError(f"expected ssc_{split}.h5 or .h5.zip in {small_dir}, and {full_dir}")
        path = os.path.join(full_dir, f"ssc_{split}.h5")
        part = path + ".part"  # an unfinished file has no name that would be read as data
        with data.opened(source) as file, h5py.File(file) as small, h5py.File(part, "w") as full:
            repeat(small, full, samples)
        with zipfile.ZipFile(path + ".zip.part", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(part, os.path.basename(path))
        os.replace(path + ".zip.part", path + ".zip")
        os.remove(part)
        print(f"{path}.zip: {samples:,} samples, {os.path.getsize(path + '.zip') / 1e9:.2f} GB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError) as problem:
        sys.exit(f"full_size.py: {problem}")
