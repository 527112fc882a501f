"""`python -m hf_vlm.cli`, which `torchrun -m` and `accelerate launch -m` start too."""

import sys

from hf_vlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
