"""python main.py --experiment_list ... --task_configs ...  (the same as ``virb run``)"""

import sys

from virb.cli import main

if __name__ == "__main__":
    sys.exit(main())
