"""The one door to MLflow: runs that live through crash and outage, models logged from code.

Logging never blocks and never fails the job (design law 8): records go to a spool on disk, a thread sends
them, and a watchdog process sends what a killed driver left and gives its run the right final status.
"""

from tubelet.tracking.names import model_name, run_name
from tubelet.tracking.registry import (
    ModelLink,
    default_tracking_uri,
    metric_history,
    model_link,
    resolve_model,
)
from tubelet.tracking.tracker import Tracker

__all__ = [
    "ModelLink",
    "Tracker",
    "default_tracking_uri",
    "metric_history",
    "model_link",
    "model_name",
    "resolve_model",
    "run_name",
]
