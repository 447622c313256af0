"""Every way to reply on ConvAI2: learned from the train file, tested once on the validation file.

python recipes/convai2.py FOLDER [OPTIONS OF personae converse evaluate]

FOLDER has train_self_original*.txt and valid_self_original.txt. A tenth of the train file is held out for choices:
whatever is chosen is chosen with --part choices (and another --out), never on the validation file.
"""

import sys
from pathlib import Path

from personae.cli.main import main

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        main(["converse", "evaluate", "--help"])
    folder = Path(sys.argv[1])
    (train,) = sorted(folder.glob("train_self_original*.txt"))[:1] or [folder / "train_self_original.txt"]
    test = ["--test", str(folder / "valid_self_original.txt")]
    main(["converse", "evaluate", str(train), *test, "--encoder", "minilm", "--out", "convai2", *sys.argv[2:]])
