"""What is slow once in a process, done when the server of the ranks imports this module."""

import torch

from reca.models.loading import FAMILIES
from reca.runtime.code_digest import code_digest
from tests.contract.test_model_family import load

torch.set_num_threads(1)
for family in FAMILIES:
    code_digest("train", family=family)
load("janus_tiny")
