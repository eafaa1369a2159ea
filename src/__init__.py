"""Makes `python -m src.training.train` run from a checkout: `src.x` is looked up in `src/cvpipe/x`.

Everything inside is imported as `cvpipe.…`, so that each module exists once whichever way it was started.
"""

import sys
from pathlib import Path

__path__ = [str(Path(__file__).parent / "cvpipe")]
sys.path.insert(0, str(Path(__file__).parent))
