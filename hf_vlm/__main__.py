"""`python -m hf_vlm`: the same as `hf-vlm`."""

import sys

from hf_vlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
