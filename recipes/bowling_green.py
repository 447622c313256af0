"""Every row of the evaluation on a Polis conversation: people agree with, pass on, or disagree with statements.

python recipes/bowling_green.py FOLDER [OPTIONS OF personae evaluate]
"""

import sys

from personae.cli.main import main

if __name__ == "__main__":
    main(["evaluate", "--out", "bowling-green", *sys.argv[1:]])
