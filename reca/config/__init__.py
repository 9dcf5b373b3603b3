"""The one configuration: composed by Hydra from ``conf/``, validated by pydantic, stored in ``params.yaml``.

Sections are named after the stages that read them. Keys that change a result are in ``model data extract train generate
evaluate register seed``, which DVC tracks. Keys that change only speed or location are in ``hardware tracking paths``,
which ``dvc.yaml`` never names.
"""

from reca.config.compose import CONF as CONF
from reca.config.compose import ROOT as ROOT
from reca.config.compose import Config as Config
from reca.config.compose import ConfigError as ConfigError
from reca.config.compose import compose as compose
from reca.config.compose import flatten as flatten
from reca.config.sections import AdapterSection as AdapterSection
from reca.config.sections import CollagesData as CollagesData
from reca.config.sections import DataSection as DataSection
from reca.config.sections import EvaluateSection as EvaluateSection
from reca.config.sections import FidelitySettings as FidelitySettings
from reca.config.sections import FolderData as FolderData
from reca.config.sections import HubData as HubData
from reca.config.sections import MixtureSection as MixtureSection
from reca.config.sections import PromotionRule as PromotionRule
from reca.config.sections import ScenesData as ScenesData
from reca.config.sections import ScenesSettings as ScenesSettings
from reca.config.sections import TrainSection as TrainSection
from reca.config.sections import UnderstandingSettings as UnderstandingSettings
from reca.config.sections import WebDatasetData as WebDatasetData
