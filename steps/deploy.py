"""Deploy a registered classifier and test it with one photo; show its status, promote, roll back or delete it."""

import logging
from typing import TYPE_CHECKING

from carmodel.parameters import Deploy
from steps.command import run_step

if TYPE_CHECKING:
    from carmodel.tracking.runs import StepRun


def work(settings: Deploy, step: "StepRun") -> None:
    """Do what `action` names, and keep the status of the deployment in the tags of the run."""
    import mlflow

    from carmodel.deploy.actions import run_action
    from carmodel.deploy.messages import command, next_commands, say

    logging.getLogger("azure").setLevel(logging.ERROR)  # the SDK warns of each experimental class
    try:
        status = run_action(settings)
    except (KeyboardInterrupt, SystemExit):
        if settings.action != "status":
            say(f"interrupted: operations that were started may continue\n{next_commands(settings)}")
        raise
    name = f"{settings.target} {settings.name}"
    if status is None:
        step.summarise(f"{name}: there is no deployment of this name")
    elif settings.action == "delete":
        step.summarise(f"{name}: {status.state}")
    else:
        step.next = "" if settings.action == "status" else command(settings, "status")
        mlflow.set_tags({"carmodel.state": status.state, "carmodel.address": status.url})
        step.summarise(f"{name}: {status.state}, {status.url or 'no URL yet'}; {status.detail}")


if __name__ == "__main__":
    run_step("deploy", Deploy, work)
