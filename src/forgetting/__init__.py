"""What did fine-tuning make my language model forget, what will it cost next time, and what actually helps?

The Python functions mirror the commands. `measure`, `profile`, `check` and `evaluate` compare a fine-tuned model with
its base; `measure_checkpoints` does so along a run, and `chain` for each step on the way to deployment. `scale` weakens
a finished adapter. `study` and `report` run and show a study, and `pilot` runs a small one for a plan; `table`, `fit`,
`predict`, `plan` and `compare` analyse the runs. `ForgettingCallback` measures during your own training, and
`ForgettingController` steers it to a forgetting budget. Results print as text, display in notebooks, and give data
frames and figures. Submodules load on first use: importing forgetting does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .analysis.api import compare as compare
    from .analysis.api import fit as fit
    from .analysis.api import plan as plan
    from .analysis.api import predict as predict
    from .analysis.compare import Comparison as Comparison
    from .analysis.fit import Fit as Fit
    from .analysis.fit import GroupedFits as GroupedFits
    from .analysis.plan import Plan as Plan
    from .analysis.plan import Plans as Plans
    from .analysis.plan.predict import Predictions as Predictions
    from .analysis.study_table import table as table
    from .capabilities.api import evaluate as evaluate
    from .capabilities.evaluate import Evaluation as Evaluation
    from .capabilities.evaluate import EvaluationCheck as EvaluationCheck
    from .capabilities.served import Server as Server
    from .config.schema import ProbeConfig as ProbeConfig
    from .config.schema import StudyConfig as StudyConfig
    from .config.schema import TextConfig as TextConfig
    from .errors import ForgettingError as ForgettingError
    from .errors import UsageError as UsageError
    from .measuring.callback import ForgettingCallback as ForgettingCallback
    from .measuring.chain import chain as chain
    from .measuring.chain_result import Chain as Chain
    from .measuring.checkpoint_curve import CheckpointCurve as CheckpointCurve
    from .measuring.checkpoints import measure_checkpoints as measure_checkpoints
    from .measuring.measure import check as check
    from .measuring.measure import measure as measure
    from .measuring.measure import profile as profile
    from .measuring.measurement import CheckResult as CheckResult
    from .measuring.measurement import Measurement as Measurement
    from .measuring.profile import Profile as Profile
    from .measuring.profile import ProfileCheck as ProfileCheck
    from .measuring.scale import scale as scale
    from .measuring.scaling import Scaling as Scaling
    from .studies.conclude import StudyResult as StudyResult
    from .studies.conclude import report as report
    from .studies.conclude import study as study
    from .studies.pilot import pilot as pilot
    from .studies.pilot_result import PilotResult as PilotResult
    from .tuning.controller import ForgettingController as ForgettingController
else:

    def __getattr__(name):
        """Load a public name on first use."""
        import importlib

        if name not in _PLACES:
            raise AttributeError(f"module 'forgetting' has no attribute '{name}'")
        globals()[name] = found = getattr(importlib.import_module(f"forgetting.{_PLACES[name]}"), name)
        return found

    def __dir__():
        """The public names, loaded or not."""
        return sorted([*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"])


__version__ = "0.1.0"

__all__ = [
    "Chain",
    "CheckResult",
    "CheckpointCurve",
    "Comparison",
    "Evaluation",
    "EvaluationCheck",
    "Fit",
    "ForgettingCallback",
    "ForgettingController",
    "ForgettingError",
    "GroupedFits",
    "Measurement",
    "PilotResult",
    "Plan",
    "Plans",
    "Predictions",
    "ProbeConfig",
    "Profile",
    "ProfileCheck",
    "Scaling",
    "Server",
    "StudyConfig",
    "StudyResult",
    "TextConfig",
    "UsageError",
    "chain",
    "check",
    "compare",
    "evaluate",
    "fit",
    "measure",
    "measure_checkpoints",
    "pilot",
    "plan",
    "predict",
    "profile",
    "report",
    "scale",
    "study",
    "table",
]

_PLACES = {
    "Chain": "measuring.chain_result",
    "CheckResult": "measuring.measurement",
    "CheckpointCurve": "measuring.checkpoint_curve",
    "Comparison": "analysis.compare",
    "Evaluation": "capabilities.evaluate",
    "EvaluationCheck": "capabilities.evaluate",
    "Fit": "analysis.fit",
    "ForgettingCallback": "measuring.callback",
    "ForgettingController": "tuning.controller",
    "ForgettingError": "errors",
    "GroupedFits": "analysis.fit",
    "Measurement": "measuring.measurement",
    "PilotResult": "studies.pilot_result",
    "Plan": "analysis.plan",
    "Plans": "analysis.plan",
    "Predictions": "analysis.plan.predict",
    "Profile": "measuring.profile",
    "ProfileCheck": "measuring.profile",
    "ProbeConfig": "config.schema",
    "Scaling": "measuring.scaling",
    "Server": "capabilities.served",
    "StudyConfig": "config.schema",
    "StudyResult": "studies.conclude",
    "TextConfig": "config.schema",
    "UsageError": "errors",
    "chain": "measuring.chain",
    "check": "measuring.measure",
    "compare": "analysis.api",
    "evaluate": "capabilities.api",
    "fit": "analysis.api",
    "measure": "measuring.measure",
    "measure_checkpoints": "measuring.checkpoints",
    "pilot": "studies.pilot",
    "plan": "analysis.api",
    "predict": "analysis.api",
    "profile": "measuring.measure",
    "report": "studies.conclude",
    "scale": "measuring.scale",
    "study": "studies.conclude",
    "table": "analysis.study_table",
}
"""The module of each public name. A test checks that `__all__` and the type-checking imports list the same names."""
