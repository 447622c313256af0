"""Every row of the evaluation on the General Social Survey 2018.

python recipes/gss2018.py FOLDER [OPTIONS OF personae evaluate]

The ceiling is how often the same person gave the same answer to the same question two years later (GSS 2018 to 2020).
"""

import sys

from personae.cli.main import main

if __name__ == "__main__":
    main(["evaluate", "--ceiling", "0.646", "--out", "gss2018", *sys.argv[1:]])
