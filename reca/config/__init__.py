"""The one configuration: composed by Hydra from ``conf/``, validated by pydantic, stored in ``params.yaml``.

Sections are named after the stages that read them. Keys that change a result are in ``model data extract train generate
evaluate register seed``, which DVC tracks. Keys that change only speed or location are in ``hardware tracking paths``,
which ``dvc.yaml`` never names.
"""

from reca.config.compose import CONF, ROOT, Config, ConfigError, compose, flatten
from reca.config.sections import (
    AdapterSection,
    BenchmarkName,
    CollagesData,
    DataSection,
    EvaluateSection,
    FidelitySettings,
    FolderData,
    HubData,
    MixtureSection,
    PromotionRule,
    ScenesData,
    ScenesSettings,
    TrainSection,
    UnderstandingSettings,
    WebDatasetData,
)

__all__ = [
    "CONF",
    "ROOT",
    "AdapterSection",
    "BenchmarkName",
    "CollagesData",
    "Config",
    "ConfigError",
    "DataSection",
    "EvaluateSection",
    "FidelitySettings",
    "FolderData",
    "HubData",
    "MixtureSection",
    "PromotionRule",
    "ScenesData",
    "ScenesSettings",
    "TrainSection",
    "UnderstandingSettings",
    "WebDatasetData",
    "compose",
    "flatten",
]
