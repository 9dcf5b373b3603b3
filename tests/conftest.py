"""What every test starts from."""

import os

# Two workers share two cores; threads of their own, more than there are cores, would wait for each other. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("reca", deadline=None, max_examples=60)  # machines may be busy
settings.load_profile("reca")
