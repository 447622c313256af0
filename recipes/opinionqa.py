"""Every row of the evaluation on one wave of OpinionQA.

python recipes/opinionqa.py FOLDER [OPTIONS OF personae evaluate]
"""

import sys

from personae.cli.main import main

if __name__ == "__main__":
    main(["evaluate", "--out", "opinionqa", *sys.argv[1:]])
