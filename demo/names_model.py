"""`make chat`: whether its arguments name a model, as the exit code 0.

python -m demo.names_model [MODEL] [--flags]
"""

import sys

from demo.serve import names

if __name__ == "__main__":
    sys.exit(not names(sys.argv[1:], "model"))
